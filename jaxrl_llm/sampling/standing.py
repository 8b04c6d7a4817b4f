"""A standing engine: slots that take requests while others are sampled, for whoever asks when he likes.

It is the slot engine without a queue: each slot has a context of its own, and what is asked next goes into a slot that is idle
when the engine is at rest. A sample is a function of parameters, the text before it and noise, whatever else is sampled. What
a slot has read and drawn can stay there (`keep`): what goes on from it (`go_on`) reads only what is new.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.distributed import fetch
from jaxrl_llm.networks.axes import current_queues, current_row_shards
from jaxrl_llm.sampling import engine, turns
from jaxrl_llm.sampling.harvest import FIRST_WIDTH, SMALLEST_BUCKET, bucket, laid_out, read
from jaxrl_llm.sampling.records import RUNNING, make_sampling

FIRST_CONTEXT = 64  # tokens of contexts where they may become more; later twice as many: few widths mean few programs
_PER_ROW = ("temperature", "top_k", "top_p", "min_p", "limit")


class Asked(NamedTuple):
    """A request for one sample."""

    prompt: Sequence[int]  # token ids, at least one; of what goes on, those that nobody has read
    limit: int  # most new tokens, at least 1
    noise: tuple[int, int, int] = (0, 0, 0)  # seed, step and number, as in `records.row_keys`
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    mask: np.ndarray | None = None  # bool [V], False where a token may not be sampled


class Drawn(NamedTuple):
    """What a slot drew in a stretch, n tokens."""

    slot: int
    tokens: list[int]
    numbers: np.ndarray  # float32 [4, n], see `engine.Log`
    reason: int  # `records.RUNNING`, or why the sample is over
    # int16 [m, layers, k] or None, experts of the m tokens that were read since the last stretch of the slot
    routes: np.ndarray | None = None


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
    longest: int  # context, beyond which there need be no room
    queue: engine.Queue  # a request for each slot, of the same number
    noise: np.ndarray  # uint32 [3, S]
    slots: engine.Slots
    start: np.ndarray  # int32 [S], column of the tails in which the last sample of each slot has begun
    busy: np.ndarray  # bool [S]
    ended: np.ndarray  # bool [S], those that are given up when the engine goes on
    allowed: np.ndarray  # bool [V], tokens that no request forbids
    masks: bool = False  # whether requests have forbidden some
    experts: list[list[np.ndarray]] | None = None  # of the tokens that each slot has read since its last stretch
    tokens_read: int = 0  # in prefill so far
    columns: int = 0  # that were drawn so far


def standing(
    network, params, *, slots: int, vocab_size: int, context: int, stop_ids: Sequence[int] = (), logit_mask=None,
    record_routes: bool = False,
) -> Standing:  # fmt: skip
    """An engine with idle slots.

    Args:
      network: with `step` and its kin, as `sampling.generate` wants it, without parameters.
      params: its parameters.
      slots: S, samples that are drawn at a time; under a mesh filled up to a multiple of the devices that share out rows.
      vocab_size: of the network.
      context: most tokens of a text; for few of them there is room from the beginning, for others when they come.
      stop_ids: tokens that end a sample.
      logit_mask: bool [V], False where no sample may have a token.
      record_routes: whether to tell the experts of tokens.

    Raises ValueError: routes of a network without experts, or arguments out of range.
    """
    shards, queues = current_row_shards(), current_queues()
    slots = -(-slots // shards) * shards
    own, width, nobody = slots // queues, min(bucket(context + turns.CHUNKS[0]), FIRST_CONTEXT), np.zeros(slots, bool)
    sampling = make_sampling(slots, vocab_size, max_new_tokens=1, stop_ids=stop_ids, logit_mask=logit_mask)
    noise, lengths = np.zeros((3, slots), np.uint32), np.zeros(slots, np.int32)
    queue = engine.Queue(
        size=np.full(queues, own, np.int32), cell=np.arange(slots, dtype=np.int32) % own, token=np.zeros(slots, np.int32),
        length=np.ones(slots, np.int32), keys=_keys(*noise), sampling=jax.tree.map(np.array, sampling),
    )  # fmt: skip
    contexts, experts = read(network, params, np.zeros((slots, width), np.int32), lengths)
    if record_routes and experts is None:
        raise ValueError("record_routes is True, but the network has no experts; leave it out")
    routes = experts.shape[2:] if record_routes else None
    idle = _freed(engine.begin(network, queue, slots=slots, width=FIRST_WIDTH, routes=routes), queue.size)
    return Standing(
        network, params, laid_out(network, params), vocab_size, contexts, lengths, width, context, queue, noise, idle,
        lengths.copy(), nobody, nobody.copy(),
        allowed=np.ones(vocab_size, bool) if logit_mask is None else np.asarray(logit_mask, bool),
        experts=[[] for _ in range(slots)] if record_routes else None,
    )  # fmt: skip


@jax.jit
def _keys(seed, step, number):
    def key(*own):
        return functools.reduce(jax.random.fold_in, own[1:], jax.random.key(own[0]))

    return jax.vmap(key)(seed, step, number)


def renew(own: Standing, params) -> None:
    """Goes on with other parameters; what those of before have read stays."""
    own.params = own.layers = None
    own.params, own.layers = params, laid_out(own.network, params)


def admit(own: Standing, requests: Sequence[Asked], slots: Sequence[int] | None = None) -> list[int]:
    """Puts requests into idle slots, at most as many as there are; their numbers.

    Args:
      own: the engine.
      requests: whose prompts are read, equal ones once.
      slots: idle ones to put them into; by default the first.

    Raises ValueError: a request that cannot be sampled; nothing is admitted then.
    """
    free = np.flatnonzero(~own.busy)[: len(requests)] if slots is None else np.array(slots, np.int64)
    if len(free) < len(requests) or own.busy[free].any():
        raise ValueError(f"{len(requests)} requests for {(~own.busy).sum()} idle slots; wait until others are over")
    if not requests:
        return []
    chosen = _sampling(own, requests)
    numbers: dict[tuple[int, ...], int] = {}
    of_fresh = np.array([numbers.setdefault(tuple(asked.prompt[:-1]), len(numbers)) for asked in requests])
    tokens, lengths = _padded(list(numbers))
    fresh, experts = read(own.network, own.params, tokens, lengths)
    own.tokens_read += int(lengths.sum())
    _make_wide(own, tokens.shape[1])
    rows, places = _by_queue(own, free, bucket(int(np.bincount(free // own.queue.size[0]).max())))
    own.contexts = turns.placed(own.contexts, fresh, rows, of_fresh[places])
    own.lengths[free] = lengths[of_fresh]
    if own.experts is not None:
        experts = fetch(experts).astype(np.int16)
        for slot, place in zip(free, of_fresh, strict=True):
            own.experts[slot] = [experts[place, : lengths[place]]]
    _begin(own, free, requests, chosen)
    return free.tolist()


def has_states(own: Standing) -> bool:
    """Whether layers have states in place of columns, which cannot be taken back."""
    return min(jax.tree.leaves(engine.column_axes(own.network, len(own.busy)))) < 0


def keep(own: Standing, counts: dict[int, int]) -> None:
    """Lets slots whose samples are over hold all that they have read, so that `go_on` can.

    Args:
      own: the engine, which has drawn nothing since then.
      counts: tokens of the sample by slot, at most as many as were drawn.
    """
    columns = np.zeros(len(own.busy), np.int32)
    columns[list(counts)] = list(counts.values())
    if counts:
        _make_wide(own, int((own.lengths + columns).max()))
        own.contexts = turns.kept(own.network, own.contexts, own.slots.tails, own.lengths.copy(), own.start.copy(), columns)
    own.lengths += columns


def go_on(own: Standing, requests: dict[int, Asked]) -> None:
    """Goes on in slots behind what they `keep`; only the tokens of the requests are read.

    Raises ValueError: a request that cannot be sampled; nothing has changed then.
    """
    slots, asked = np.array(list(requests), np.int64), list(requests.values())
    if not asked:
        return
    chosen, left = _sampling(own, asked), {slot: list(one.prompt[:-1]) for slot, one in requests.items() if len(one.prompt) > 1}
    while left:
        width, now = _next_texts(own, left)
        _read_behind(own, {slot: left[slot][:width] for slot in sorted(now)}, width)
        left = {slot: tokens[width:] if slot in now else tokens for slot, tokens in left.items()}
        left = {slot: tokens for slot, tokens in left.items() if tokens}
    _begin(own, slots, asked, chosen)


def _next_texts(own: Standing, left: dict[int, list[int]]) -> tuple[int, set[int]]:
    """How many tokens are read next at most, and in which slots: texts of like lengths are read together."""
    size, order = int(own.queue.size[0]), sorted(left, key=lambda slot: (-len(left[slot]), slot))
    width = next((width for width in turns.CHUNKS if width >= len(left[order[0]])), turns.CHUNKS[-1])
    queues = [[slot for slot in order if slot // size == queue] for queue in range(len(own.queue.size))]
    few = max(map(len, queues)) <= 4 * turns.ROWS
    rows = turns.ROWS if few else turns.TOKENS // width
    return width, {slot for queue in queues for slot in queue[:rows]}


def _read_behind(own: Standing, texts: dict[int, list[int]], width: int) -> None:
    """Reads up to `width` tokens behind the contexts of slots."""
    slots, size = np.array(list(texts)), int(own.queue.size[0])
    few = np.bincount(slots // size).max() <= turns.ROWS
    rows, places = _by_queue(own, slots, min(turns.ROWS if few else turns.TOKENS // width, size))
    tokens, lengths = np.zeros((len(rows), width), np.int32), np.zeros(len(rows), np.int32)
    own_row = rows < own.queue.size[0]
    for row in np.flatnonzero(own_row):
        text = texts[int(slots[places[row]])]
        tokens[row, : len(text)], lengths[row] = text, len(text)
    before = np.where(own_row, own.lengths[slots[places]], 0)
    _make_wide(own, int(before.max()) + width)
    own.contexts, experts = turns.extended(own.network, own.params, own.layers, own.contexts, tokens, lengths, before, rows)
    own.lengths[slots] += [len(text) for text in texts.values()]
    own.tokens_read += int(lengths.sum())
    if own.experts is not None:
        experts = fetch(experts).astype(np.int16)
        for row in np.flatnonzero(own_row):
            own.experts[slots[places[row]]].append(experts[row, : lengths[row]])


def _by_queue(own: Standing, slots: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """For so many rows of each queue, number of a slot within the queue, too large for none, and its place in `slots`."""
    size = int(own.queue.size[0])
    rows, places = np.full((len(own.queue.size), room), size, np.int32), np.zeros((len(own.queue.size), room), np.int32)
    for queue in range(len(rows)):
        mine = np.flatnonzero(slots // size == queue)
        rows[queue, : len(mine)], places[queue, : len(mine)] = slots[mine] % size, mine
    return rows.ravel(), places.ravel()


def _begin(own: Standing, slots: np.ndarray, requests: Sequence[Asked], chosen) -> None:
    """Begins samples of slots whose contexts hold all but the last token of what is before them."""
    sampling, queue = own.queue.sampling, own.queue
    for name in _PER_ROW:
        getattr(sampling, name)[slots] = getattr(chosen, name)
    if chosen.logit_mask is not None and not own.masks:
        sampling, own.masks = sampling.replace(logit_mask=np.repeat(own.allowed[None], len(own.busy), axis=0)), True
    if own.masks:
        sampling.logit_mask[slots] = own.allowed if chosen.logit_mask is None else chosen.logit_mask
    queue.token[slots] = [asked.prompt[-1] for asked in requests]
    queue.length[slots] = own.lengths[slots] + 1
    own.noise[:, slots] = np.array([asked.noise for asked in requests], np.uint32).T
    own.queue = queue.replace(keys=_keys(*own.noise.copy()), sampling=sampling)
    size = int(queue.size[0])
    begun = np.zeros(len(own.busy), bool)
    begun[slots] = True
    own.slots = _taken(own.slots, begun, queue.token.copy(), np.arange(len(begun), dtype=np.int32) % size)
    own.start[slots], own.busy[slots], own.ended[slots] = int(own.slots.column), True, False


@functools.partial(jax.jit, donate_argnames=("slots",))
def _taken(slots: engine.Slots, begun, tokens, numbers) -> engine.Slots:
    return slots.replace(
        request=jnp.where(begun, numbers, slots.request), token=jnp.where(begun, tokens, slots.token),
        count=jnp.where(begun, 0, slots.count), start=jnp.where(begun, slots.column, slots.start),
    )  # fmt: skip


def _sampling(own: Standing, requests: Sequence[Asked]):
    """What requests ask for, checked."""
    usual = {"top_k": own.vocab_size, "top_p": 1.0, "min_p": 0.0}
    fields = {name: [getattr(asked, name) for asked in requests] for name in _PER_ROW}
    given = {name: [usual.get(name) if value is None else value for value in values] for name, values in fields.items()}
    if any(asked.mask is not None for asked in requests):
        given["logit_mask"] = np.stack([own.allowed if one.mask is None else own.allowed & one.mask for one in requests])
    return make_sampling(len(requests), own.vocab_size, max_new_tokens=given.pop("limit"), **given)


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts in arrays of sizes that are powers of two, or go evenly over devices, and their lengths."""
    shards, width = current_row_shards(), bucket(max(map(len, prompts)) + 1, SMALLEST_BUCKET)
    rows = -(-bucket(len(prompts)) // shards) * shards
    tokens, lengths = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
    return tokens, lengths


def _make_wide(own: Standing, width: int) -> None:
    """Room for so many tokens in each context."""
    if width <= own.context_width:
        return
    own.context_width = min(bucket(width), max(own.longest, -(-width // 64) * 64))
    tokens, lengths = (jax.ShapeDtypeStruct((len(own.busy), *shape), jnp.int32) for shape in ((own.context_width,), ()))
    like, _ = jax.eval_shape(own.network.read, own.params, tokens, lengths)
    own.contexts = jax.tree.map(lambda leaf, new: turns.grown(leaf, new.shape), own.contexts, like)


def give_up(own: Standing, slot: int) -> None:
    """Ends the sample of a slot, of which nothing more is said."""
    own.ended[slot] = own.busy[slot]
    own.busy[slot] = False


def advance(own: Standing, columns: int = 8, leaving: int = 0) -> list[Drawn]:
    """Draws up to so many tokens in all slots that are at work; what each drew. Those whose samples are over are idle then.

    Args:
      own: the engine.
      columns: most tokens of a slot.
      leaving: samples whose end is waited for no longer than that; 0 for as many as there are.
    """
    if not own.busy.any():
        own.slots, own.ended[:] = _freed(own.slots, own.queue.size), False
        return []
    width, first = own.slots.log.token.shape[0], int(own.slots.column)
    if first == width:
        first = _make_room(own)
        width = own.slots.log.token.shape[0]
    queues = len(own.queue.size)
    at_work = int(own.busy.reshape(queues, -1).sum(axis=1).max())
    few = max(at_work - leaving, 0) if leaving else 0
    own.slots = engine.run(
        own.network, own.params, own.layers, own.contexts, own.lengths, own.queue, own.slots, own.ended,
        min(width, first + columns), few, places=1,
    )  # fmt: skip
    log, end = fetch((own.slots.log, own.slots.column))
    own.columns += int(end) - first
    own.ended[:] = False  # only now: the program may read the array itself until it is done
    log, found = jax.tree.map(lambda leaf: leaf[first : int(end)], log), []
    counts = (log.request < own.queue.size[0]).sum(axis=0).tolist()  # of the first columns: nobody begins in between
    tokens, numbers = log.token.T.tolist(), np.moveaxis(log.numbers, 2, 0).swapaxes(1, 2).copy()
    for slot in np.flatnonzero(own.busy).tolist():
        count = counts[slot]
        reason = int(log.reason[count - 1, slot]) if count else RUNNING
        found.append(Drawn(slot, tokens[slot][:count], numbers[slot, :, :count], reason))
        own.busy[slot] = reason == RUNNING
    if log.routes is None:
        return found
    before, own.experts = own.experts, [[] for _ in own.experts]  # whoever has read something is at work
    routes = [np.concatenate([*before[one.slot], log.routes[: counts[one.slot], one.slot]]) for one in found]
    return [one._replace(routes=own_routes) for one, own_routes in zip(found, routes, strict=True)]


@jax.jit
def _freed(slots: engine.Slots, size) -> engine.Slots:
    """All slots idle, with their tails from the first column on; `size` is that of each queue."""
    return slots.replace(
        request=jnp.repeat(size, len(slots.request) // len(size)).astype(jnp.int32), start=jnp.zeros_like(slots.start),
        column=jnp.zeros_like(slots.column), next=jnp.asarray(size, jnp.int32),
    )  # fmt: skip


def _make_room(own: Standing) -> int:
    """Columns behind the last one: the first ones leave where nobody sees them any more, and there are more otherwise."""
    width = own.slots.log.token.shape[0]
    seen = int(own.start[own.busy].min(initial=width))
    if seen * 4 >= width:
        own.start = np.maximum(own.start - seen, 0)
        own.slots = engine.shifted(own.network, own.slots, seen)
        return width - seen
    own.slots = engine.widened(own.network, own.slots, width=2 * width)
    return width
