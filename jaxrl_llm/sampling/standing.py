"""A standing engine: slots that take requests while others are sampled, for whoever asks when he likes.

It is the slot engine without a queue: each slot has a context of its own, and what is asked next goes into a slot that is idle
when the engine is at rest. A sample is a function of the parameters, the prompt and the seed, whatever else is sampled.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.distributed import fetch
from jaxrl_llm.sampling import engine
from jaxrl_llm.sampling.harvest import FIRST_WIDTH, SMALLEST_BUCKET, bucket, laid_out, read
from jaxrl_llm.sampling.records import RUNNING, make_sampling, row_keys

_PER_ROW = ("temperature", "top_k", "top_p", "min_p", "limit")


class Asked(NamedTuple):
    """A request for one sample."""

    prompt: Sequence[int]  # token ids, at least one
    limit: int  # most new tokens, at least 1
    seed: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


class Drawn(NamedTuple):
    """What a slot drew in a stretch."""

    slot: int
    tokens: list[int]
    logp: list[float]  # nats, of the policy at the temperature of the sampling
    reason: int  # `records.RUNNING`, or why the sample is over


@dataclasses.dataclass(eq=False)
class Standing:
    """An engine at rest, see `standing`; it changes in place."""

    network: Any  # hashable, without parameters
    params: Any
    layers: Any  # of the network, laid out once
    vocab_size: int
    contexts: Any  # what the network says of the contexts of S slots
    lengths: np.ndarray  # int32 [S], tokens of each context but for the last
    context_width: int
    queue: engine.Queue  # a request for each slot, of the same number
    slots: engine.Slots
    busy: np.ndarray  # bool [S]
    ended: np.ndarray  # bool [S], those that are given up when the engine goes on


def standing(network, params, *, slots: int, vocab_size: int, stop_ids: Sequence[int] = ()) -> Standing:
    """An engine with idle slots.

    Args:
      network: with `step` and its kin, as `sampling.generate` wants it, without parameters.
      params: its parameters.
      slots: S, samples that are drawn at a time.
      vocab_size: of the network.
      stop_ids: tokens that end a sample.
    """
    width = SMALLEST_BUCKET
    sampling = make_sampling(slots, vocab_size, max_new_tokens=1, stop_ids=stop_ids)
    queue = engine.Queue(
        size=np.full(1, slots, np.int32), cell=np.arange(slots, dtype=np.int32), token=np.zeros(slots, np.int32),
        length=np.ones(slots, np.int32), keys=row_keys(0, 0, np.zeros(slots)), sampling=jax.tree.map(np.array, sampling),
    )  # fmt: skip
    lengths = np.zeros(slots, np.int32)
    contexts, _ = read(network, params, np.zeros((slots, width), np.int32), lengths)
    begun = engine.begin(network, queue, slots=slots, width=FIRST_WIDTH)
    idle = begun.replace(request=jnp.full(slots, slots, jnp.int32), next=jnp.full(1, slots, jnp.int32))
    layers, nobody = laid_out(network, params), np.zeros(slots, bool)
    return Standing(network, params, layers, vocab_size, contexts, lengths, width, queue, idle, nobody, nobody.copy())


def admit(own: Standing, requests: Sequence[Asked]) -> list[int]:
    """Puts requests into idle slots, at most as many as there are; their numbers.

    Raises ValueError: a request that cannot be sampled; nothing is admitted then.
    """
    free = np.flatnonzero(~own.busy)[: len(requests)]
    if len(free) < len(requests):
        raise ValueError(f"{len(requests)} requests for {len(free)} idle slots; wait until others are over")
    if not requests:
        return []
    fields = {name: [getattr(asked, name) for asked in requests] for name in _PER_ROW}
    chosen = _sampling(own, fields)
    tokens, lengths = _padded([asked.prompt for asked in requests])
    fresh, _ = read(own.network, own.params, tokens, lengths)
    if tokens.shape[1] > own.context_width:
        own.contexts = _wider(own.network, own.params, own.contexts, tokens.shape[1])
        own.context_width = tokens.shape[1]
    rows = np.full(len(tokens), len(own.busy))
    rows[: len(free)] = free
    own.contexts = _placed(own.contexts, fresh, rows)
    sampling, queue = own.queue.sampling, own.queue
    for name in _PER_ROW:
        getattr(sampling, name)[free] = getattr(chosen, name)
    queue.token[free] = [asked.prompt[-1] for asked in requests]
    queue.length[free] = [len(asked.prompt) for asked in requests]
    own.lengths[free] = queue.length[free] - 1
    keys = jnp.concatenate([row_keys(asked.seed % 2**32, 0, [asked.seed >> 32 & 0xFFFFFFFF]) for asked in requests])
    own.queue = queue.replace(keys=queue.keys.at[free].set(keys))
    own.slots = _taken(own.slots, free, queue.token[free])
    own.busy[free], own.ended[free] = True, False
    return free.tolist()


def _sampling(own: Standing, fields: dict[str, list]):
    """What requests ask for, checked."""
    usual = {"top_k": own.vocab_size, "top_p": 1.0, "min_p": 0.0}
    given = {name: [usual.get(name) if value is None else value for value in values] for name, values in fields.items()}
    return make_sampling(len(given["limit"]), own.vocab_size, max_new_tokens=given.pop("limit"), **given)


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """All tokens but the last of each prompt, in arrays of sizes that are powers of two, and their numbers."""
    width, rows = bucket(max(map(len, prompts)), SMALLEST_BUCKET), bucket(len(prompts))
    tokens, lengths = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32)
    for row, prompt in enumerate(prompts):
        lengths[row] = len(prompt) - 1
        tokens[row, : lengths[row]] = prompt[:-1]
    return tokens, lengths


def _wider(network, params, contexts, width: int):
    """The contexts with room for so many tokens."""
    rows = jax.tree.leaves(contexts)[0].shape[0]
    tokens, lengths = jax.ShapeDtypeStruct((rows, width), jnp.int32), jax.ShapeDtypeStruct((rows,), jnp.int32)
    like, _ = jax.eval_shape(network.read, params, tokens, lengths)
    return jax.tree.map(lambda own, new: _grown(own, new.shape), contexts, like)


def _grown(leaf, shape: tuple[int, ...]):
    return jnp.pad(leaf, [(0, size - own) for own, size in zip(leaf.shape, shape, strict=True)])


@functools.partial(jax.jit, donate_argnames=("contexts",))
def _placed(contexts, fresh, rows):
    def put(own, new):
        return own.at[rows].set(_grown(new, (new.shape[0], *own.shape[1:])), mode="drop")

    return jax.tree.map(put, contexts, fresh)


@functools.partial(jax.jit, donate_argnames=("slots",))
def _taken(slots: engine.Slots, rows, tokens) -> engine.Slots:
    return slots.replace(
        request=slots.request.at[rows].set(rows), token=slots.token.at[rows].set(tokens), count=slots.count.at[rows].set(0),
        start=slots.start.at[rows].set(slots.column),
    )  # fmt: skip


def give_up(own: Standing, slot: int) -> None:
    """Ends the sample of a slot, of which nothing more is said."""
    own.ended[slot] = own.busy[slot]
    own.busy[slot] = False


def advance(own: Standing, columns: int = 8) -> list[Drawn]:
    """Draws up to so many tokens in all slots that are at work; what each drew. Those whose samples are over are idle then."""
    if not own.busy.any():
        own.slots, own.ended[:] = _freed(own.slots), False
        return []
    width, first = own.slots.log.token.shape[0], int(own.slots.column)
    if first == width:
        first = _make_room(own)
        width = own.slots.log.token.shape[0]
    until = min(width, first + columns)
    own.slots = engine.run(
        own.network, own.params, own.layers, own.contexts, own.lengths, own.queue, own.slots, own.ended, until, 0, places=1
    )
    log, end = fetch((own.slots.log, own.slots.column))
    own.ended[:] = False  # only now: the program may read the array itself until it is done
    found = []
    for slot in np.flatnonzero(own.busy):
        there = log.request[first : int(end), slot] == slot
        reasons = log.reason[first : int(end), slot][there]
        reason = int(reasons[-1]) if len(reasons) else RUNNING
        logp = log.numbers[first : int(end), 1, slot][there]
        found.append(Drawn(int(slot), log.token[first : int(end), slot][there].tolist(), logp.tolist(), reason))
        own.busy[slot] = reason == RUNNING
    return found


@jax.jit
def _freed(slots: engine.Slots) -> engine.Slots:
    """All slots idle, with their tails from the first column on."""
    return slots.replace(
        request=jnp.full_like(slots.request, len(slots.request)), start=jnp.zeros_like(slots.start),
        column=jnp.zeros_like(slots.column),
    )  # fmt: skip


def _make_room(own: Standing) -> int:
    """Columns behind the last one: the first ones leave where nobody sees them any more, and there are more otherwise."""
    width = own.slots.log.token.shape[0]
    seen = int(fetch(own.slots.start)[own.busy].min(initial=width))
    if seen * 4 >= width:
        own.slots = engine.shifted(own.network, own.slots, seen)
        return width - seen
    own.slots = engine.widened(own.network, own.slots, width=2 * width)
    return width
