"""What `train --dry-run` says: all that a run opens is opened, nothing is trained, and nothing is left behind."""

import copy
import functools
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxrl_llm import distributed
from jaxrl_llm.data import Cursor, Tokenizer, encode_example, encode_prompt
from jaxrl_llm.sampling.memory import device_memory
from jaxrl_llm.training.fitting import program_bytes
from jaxrl_llm.training.meshes import build_mesh
from jaxrl_llm.training.phases import Phase, all_phases
from jaxrl_llm.training.plan import item_size
from jaxrl_llm.training.programs import all_programs, planned_run
from jaxrl_llm.training.run import Run, open_run
from jaxrl_llm.training.state import PREFERENCE, REINFORCEMENT, SUPERVISED

SHOWN = 2  # examples of each phase


def rehearse(config: ConfigDict) -> list[str]:
    """Lines that say what a run of the configuration would do: its phases, its memory, and what its first batch reads.

    Data, networks, rewards and environments are opened as a run opens them, in a folder that is gone afterwards.

    Raises ValueError: what a run would refuse.
    """
    own = copy.deepcopy(config)
    own.log.live, own.log.trackers = False, ()
    with tempfile.TemporaryDirectory() as folder, open_run(own, folder) as run:
        lines = [_devices(run), _data(run)]
        for phase in all_phases(run).values():
            if phase.steps:
                lines += ["", *_of_phase(run, phase)]
        return [*lines, "", *_of_sampling(own)]


def _devices(run: Run) -> str:
    mesh = "" if run.mesh is None else f", mesh {dict(run.mesh.shape)}"
    return f"devices: {jax.device_count()} {jax.devices()[0].device_kind}{mesh}"


def _data(run: Run) -> str:
    dropped = run.counts["dropped"] + run.counts["held_out_dropped"]
    told = f"; {dropped} are too long and left out" if dropped else ""
    return f"data: {run.counts['examples']} examples, {run.counts['held_out']} held-out ones{told}"


def _of_phase(run: Run, phase: Phase) -> Iterator[str]:
    params = run.network.params
    state = jax.eval_shape(phase.initial_state, params)
    sizes = {"parameters": params, "with optimizer and state": state} | ({} if run.frozen is None else {"frozen": run.frozen})
    yield f"{phase.name}: {phase.steps} steps of {phase.method.name}"
    yield "  " + ", ".join(f"{name} {_bytes(tree)}" for name, tree in sizes.items())
    if beside := ", ".join(f"{name} by {own.config.method.name}" for name, own in run.modules.items()):
        yield f"  beside it learn {beside}"
    first = {SUPERVISED: run.config.sft.batch, PREFERENCE: run.config.preference.batch, REINFORCEMENT: run.config.rl.prompts}
    examples, numbers, _ = run.draw(Cursor(), min(first[phase.name], len(run.source)))
    yield f"  the first step reads {len(examples)} examples, such as"
    for number, example in zip(numbers[:SHOWN], examples, strict=False):
        yield f"    {number}: {_shown(run.tokenizer, example, phase.name)}"


def _bytes(tree: Any) -> str:
    """Of all devices together."""
    return _size(sum(np.prod(leaf.shape) * item_size(leaf.dtype) for leaf in jax.tree.leaves(tree)))


def _size(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def _shown(tokenizer: Tokenizer, example: dict[str, Any], phase: str) -> str:
    """What is read of an example, as the tokens say it; of demonstrations the part that is learned stands in [[ ]]."""
    decode = functools.partial(tokenizer.decode, skip_special_tokens=False)
    if phase == SUPERVISED:
        ids, learned = encode_example(tokenizer, example)
        pieces, inside = [], False
        for token, own in [*zip(ids, learned, strict=True), (None, False)]:
            if bool(own) != inside:
                pieces.append("[[" if own else "]]")
                inside = bool(own)
            pieces += [] if token is None else [token]
        return _joined(pieces, decode) + f"  ({len(ids)} tokens, {int(sum(map(bool, learned)))} learned)"
    ids = encode_prompt(tokenizer, example["prompt"], tools=example.get("tools"))
    answers = {name: example[name] for name in ("chosen", "rejected", "answer") if example.get(name) is not None}
    told = "".join(f"; {name} {str(value)[:200]!r}" for name, value in answers.items())
    return f"{decode(ids)!r} ({len(ids)} tokens){told}"


def _joined(pieces: list, decode) -> str:
    texts, ids = [], []
    for piece in [*pieces, ""]:
        if isinstance(piece, str):
            texts += [repr(decode(ids))[1:-1] if ids else "", piece]
            ids = []
        else:
            ids.append(piece)
    return "".join(texts)


def _of_sampling(config: ConfigDict) -> Iterator[str]:
    """The programs of a step of the RL phase as they are compiled here, where a plan knows them."""
    if not config.rl.steps:
        return
    try:
        run = planned_run(config, jax.devices() if build_mesh(config) is not None else jax.devices()[:1])
    except ValueError as error:
        yield f"memory of the RL phase is not planned: {error}"
        return
    yield f"a step of the RL phase, samples as long as they may be, of {_size(device_memory())} a device:"
    for program in all_programs(run, device_memory()):
        with distributed.sharded(program.mesh):
            needed = program_bytes(program.function, *program.arguments, **program.options)
        yield f"  {program.name}: {_size(needed)}" + (f", {program.times} times" if program.times > 1 else "")
