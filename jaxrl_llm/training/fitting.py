"""Micro-batches of an update that fit into memory, by what the compiler says of its program."""

import math
from collections.abc import Callable
from typing import Any

import jax

from jaxrl_llm.networks.axes import current_column_shards
from jaxrl_llm.sampling.memory import device_memory
from jaxrl_llm.training.report import say
from jaxrl_llm.training.run import Run
from jaxrl_llm.training.timing import timed
from jaxrl_llm.types import Batch

SHARE = 0.9  # of a device's memory, for an update and all that it is given


def make_fitted(run: Run, update: Callable, micro_batches: int) -> Callable:
    """Builds `fitted(state, pack, frozen=None) -> what update(state, batch, frozen) gives`, of the batch of `pack()`.

    Where the program for that batch would take more memory than a device has, `pack(part_tokens=...)` cuts it into more
    micro-batches, of half as many rows each, until they have one. What is chosen depends on the batch and the device alone,
    and not on what came before or is free at the moment: another number of parts rounds otherwise, and a run that is resumed
    must not.

    Args:
      update: jitted.
      micro_batches: of the configuration; above 0, their number is fixed.
    """
    needed: dict[Any, float] = {}

    def fits(state, batch: Batch, frozen) -> bool:
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shapes not in needed:
            needed[shapes] = program_bytes(update, state, batch, frozen)
        return needed[shapes] <= SHARE * device_memory()

    def fitted(state, pack: Callable[..., Batch], frozen: Any = None):
        batch = run.place(pack())
        with timed("update"):
            while not micro_batches and (rows := _rows(batch) // run.shards) > 1 and not fits(state, batch, frozen):
                tokens = rows // 2 * _width(batch) // current_column_shards()
                say(f"the update does not fit into memory; micro-batches of {tokens} tokens", enabled=run.config.log.live)
                batch = run.place(pack(part_tokens=tokens))
            return update(state, batch, frozen)

    return fitted


def program_bytes(update: Callable, *inputs: Any, **options: Any) -> float:
    """Bytes of each device that a jitted function takes, its inputs and outputs included; inf where the compiler finds no room.

    The program is compiled, and is there when the function is called.
    """
    try:
        memory = update.lower(*inputs, **options).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs


def _rows(batch: Batch) -> int:
    """Rows of a micro-batch."""
    return len(batch.tokens) // len(batch.parts)


def _width(batch: Batch) -> int:
    return (batch if batch.forest is None else batch.forest).tokens.shape[1]
