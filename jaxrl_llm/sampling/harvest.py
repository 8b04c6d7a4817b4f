"""The host's side of the slot engine: contexts are read once, slots are kept at work, and what they draw is gathered."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_llm.distributed import fetch
from jaxrl_llm.networks.axes import current_queues, current_row_shards
from jaxrl_llm.sampling import engine
from jaxrl_llm.sampling.records import RUNNING, Samples, Sampling

FIRST_WIDTH = 64  # columns of tails where they may become more than twice as many; then four times, later twice as many
SMALLEST_BUCKET = 16  # of context lengths, which are padded to powers of two
FEWEST_SLOTS = 8  # below which slots without work stay
UNEVEN = 1.125  # the longest queue, as a share of the mean, above which contexts are read several times


class Found(NamedTuple):
    """What R requests have given so far; arrays of the host, written in place."""

    tokens: np.ndarray  # int32 [R, L]
    numbers: np.ndarray  # float32 [4, R, L], log-probabilities as of `draw`, and the entropy
    length: np.ndarray  # int32 [R]
    reason: np.ndarray  # int32 [R]
    routes: np.ndarray | None = None  # int16 [R, L, layers, k] or None
    prompt_routes: np.ndarray | None = None  # int16 [C, T, layers, k] or None
    older: np.ndarray | None = None  # int32 [R] or None, see `Samples`


Cut = Callable[[Found, np.ndarray], np.ndarray]


def bucket(number: int, least: int = 1) -> int:
    """The least power of two that is at least both."""
    return max(least, 1 << max(number - 1, 0).bit_length())


class Changing(NamedTuple):
    """Parameters that others take the place of while they sample; nobody else need hold those of before."""

    column: int  # at least 1, counted from the beginning, the first one that the others draw
    given: Callable[[int], Any]  # of 0, and then of that column: what draws from there on; waits until it is there


def first_of(params: Any) -> Any:
    """The parameters that sampling begins with."""
    return params.given(0) if isinstance(params, Changing) else params


@functools.partial(jax.jit, static_argnames=("network",))
def read(network, params, tokens, lengths):
    """What the network says of contexts, compiled, see `Network.read`."""
    return network.read(params, tokens, lengths)


@functools.partial(jax.jit, static_argnames=("network",))
def laid_out(network, params):
    """The parameters of each layer as decoding wants them, compiled, see `Network.each_layer`."""
    return network.each_layer(params)


def samples_of(found: Found) -> Samples:
    """The samples, cleared past each row's length."""
    kept = np.arange(found.tokens.shape[1]) < found.length[:, None]
    logp, tempered_logp, sampling_logp, entropy = np.where(kept, found.numbers, 0.0)
    return Samples(
        tokens=np.where(kept, found.tokens, 0), logp=logp, tempered_logp=tempered_logp, sampling_logp=sampling_logp,
        entropy=entropy, length=found.length, finish_reason=found.reason,
        routes=None if found.routes is None else np.where(kept[..., None, None], found.routes, -1),
        prompt_routes=found.prompt_routes, older=found.older,
    )  # fmt: skip


class Work(NamedTuple):
    """What is to be sampled."""

    network: Any  # with `read`, `step`, `each_layer`, `init_tails` and `unembed`
    params: Any  # its parameters, or `Changing` ones
    contexts: Sequence[Sequence[int]]  # token ids of C different contexts
    of_context: np.ndarray  # int [R], context of each request
    keys: jax.Array  # [R], see `row_keys`
    sampling: Sampling  # of R rows
    width: int | None = None  # that contexts are padded to; None for a power of two
    record_routes: bool = False  # whether the experts of tokens are recorded


def progress(work: Work, *, columns: int, slots: int, chunk: int | None = None, cut: Cut | None = None) -> Iterator[Found]:
    """What has been found after each stop of the engine, the last time all of it.

    It is given out when the engine is at work again, so that what is done with it costs no time of the device.

    Args:
      work: R requests.
      columns: L, most tokens of a sample.
      slots: S, of which those beyond R stay idle.
      chunk: columns between two stops, the first of which comes after one; None for as few stops as can be.
      cut: `(found, requests) -> ended`, bool: which of the requests at work end, for reasons of the host's.
    """
    network, params, queues = work.network, first_of(work.params), current_queues()
    change = work.params.column if isinstance(work.params, Changing) else math.inf  # column at which the parameters do
    inner, per_queue = current_row_shards() // queues, slots // queues
    row, numbers, sizes = _shared_out(work)
    contexts, lengths, found = _beginning(work, params, columns, row)
    queue, places = _queue(work, row, numbers, sizes)
    layers = laid_out(network, params)
    width = bucket(columns) if columns <= 2 * FIRST_WIDTH else FIRST_WIDTH
    routes = None if found.routes is None else found.routes.shape[2:]
    state = engine.begin(network, queue, slots=slots, width=width, routes=routes)
    ended, first = np.zeros(slots, bool), 0
    least = -(-FEWEST_SLOTS // (queues * inner)) * inner
    while True:
        until = min(change, width if chunk is None else min(width, first + (chunk if found.length.any() else 1)))
        # Quarters, and not what is left at the moment: few numbers of slots mean few programs.
        few = -(-per_queue // 4 // inner) * inner if per_queue > least else 0
        state = engine.run(network, params, layers, contexts, lengths, queue, state, ended, until, few, places=places)
        if found.length.any():
            yield found
        request, start, column, taken = fetch((state.request, state.start, state.column, state.next))
        _gather(work, found, fetch(state.log), slice(first, int(column)), numbers, sizes)
        first, request, start = int(column), request.reshape(queues, -1), start.reshape(queues, -1)
        live = request < sizes[:, None]
        if cut is not None:
            live[live] = ~cut(found, np.take_along_axis(numbers, np.where(live, request, 0), axis=1)[live])
        ended = (request < sizes[:, None]) & ~live
        over = (taken == sizes).all()
        if not live.any() and over:
            yield found
            return
        if over and live.sum(axis=1).max() <= few:
            per_queue = max(few, least)
            rows = np.argsort(~live, axis=1, kind="stable")[:, :per_queue]
            state = engine.chosen(network, state, rows.ravel())
            start, live, ended = (np.take_along_axis(own, rows, axis=1) for own in (start, live, ended))
        ended = ended.ravel()
        if first == change:
            # Those of before are let go first. What they said of contexts and tokens stays, and is what the others see.
            params = layers = None
            params, change, found = work.params.given(work.params.column), math.inf, found._replace(older=found.length.copy())
            layers = laid_out(network, params)
        if first == width:
            seen = int(start[live].min(initial=width))
            if seen * 4 >= width:
                state, first, change = engine.shifted(network, state, seen), width - seen, change - seen
            else:
                width = _next_width(width, columns, over, int(start[live].max(initial=0)))
                state = engine.widened(network, state, width=width)


def _next_width(width: int, columns: int, last: bool, start: int) -> int:
    """The next width, or less where nobody can need as many columns any more: few widths mean few programs."""
    wider = 4 * width if width == FIRST_WIDTH else 2 * width
    return min(wider, -(-(start + columns) // 64) * 64) if last else wider


def _rows(contexts: int) -> int:
    """Rows for so many contexts: a power of two, or the next multiple of the devices that share them out."""
    shards = current_row_shards()
    return -(-bucket(contexts) // shards) * shards


def _dealt(loads: np.ndarray) -> np.ndarray:
    """Queue [C] of each context: the heaviest first, each to the lightest queue that has room for it."""
    queues = current_queues()
    room, sums, found = np.full(queues, _rows(len(loads)) // queues), np.zeros(queues), np.zeros(len(loads), np.int64)
    for context in np.argsort(-loads, kind="stable"):
        queue = found[context] = int(np.argmin(np.where(room > 0, sums, np.inf)))
        room[queue] -= 1
        sums[queue] += loads[context]
    return found


def _shared_out(work: Work) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row [C] of each context, the requests [Q, R / Q] of each queue in their order, filled up, and how many these are [Q]."""
    queues, contexts = current_queues(), len(work.contexts)
    queue = _dealt(np.bincount(work.of_context, np.broadcast_to(work.sampling.limit, len(work.of_context)), contexts))
    row = queue * (_rows(contexts) // queues) + _places(queue, np.bincount(queue, minlength=queues))
    sizes = np.bincount(queue[work.of_context], minlength=queues).astype(np.int32)
    numbers = np.zeros((queues, bucket(int(sizes.max()))), np.int64)
    for own, size, number in zip(numbers, sizes, range(queues), strict=True):
        own[:size] = np.flatnonzero(queue[work.of_context] == number)
        own[size:] = own[max(size - 1, 0)]
    return row, numbers, sizes


def _beginning(work: Work, params, columns: int, of_context: np.ndarray) -> tuple[Any, np.ndarray, Found]:
    """What the network says of all contexts but for their last tokens, the lengths without these, and nothing found yet."""
    size, contexts, rows = len(work.of_context), work.contexts, _rows(len(work.contexts))
    width = work.width or bucket(max(map(len, contexts)), SMALLEST_BUCKET)
    tokens, lengths = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32)
    for row, context in zip(of_context, contexts, strict=True):
        lengths[row] = len(context) - 1
        tokens[row, : lengths[row]] = context[:-1]
    past, experts = read(work.network, params, tokens, lengths)
    found = Found(
        tokens=np.zeros((size, columns), np.int32),
        numbers=np.zeros((4, size, columns), np.float32),
        length=np.zeros(size, np.int32),
        reason=np.full(size, RUNNING, np.int32),
    )
    if not work.record_routes:
        return past, lengths, found
    experts = fetch(experts).astype(np.int16)[of_context]
    inside = np.arange(width)[:, None, None] < lengths[of_context, None, None, None]
    routes = np.full((size, columns, *experts.shape[2:]), -1, np.int16)
    return past, lengths, found._replace(routes=routes, prompt_routes=np.where(inside, experts, -1))


def evened(contexts: list, of_context: np.ndarray) -> tuple[list, np.ndarray]:
    """The contexts, those of more samples than others several times where there is room, and the number of that of each sample.

    A step has the same number of places for each context. A prompt that was drawn twice would double them for all, and make
    another program. Where queues would be of unlike lengths, contexts are read more often.
    """
    counts, places = np.bincount(of_context, minlength=len(contexts)), 1
    while bucket(int((-(-counts // places)).sum())) > _rows(len(contexts)):
        places *= 2
    while places > 1 and _longest(counts, places) * current_queues() > UNEVEN * len(of_context):
        places //= 2
    pieces = -(-counts // places)
    number = (np.cumsum(pieces) - pieces)[of_context] + _places(of_context, counts) // places
    return [context for context, count in zip(contexts, pieces, strict=True) for _ in range(count)], number


def _longest(counts: np.ndarray, places: int) -> int:
    """Samples of the longest queue, with so many places for a context."""
    parts = np.concatenate([np.minimum(places, count - np.arange(0, count, places)) for count in counts])
    return int(np.bincount(_dealt(parts), parts).max())


def _places(of_context: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many before each request have the same context, int [R]; `counts` are those of all."""
    places = np.empty(len(of_context), np.int64)
    places[np.argsort(of_context, kind="stable")] = np.arange(len(of_context)) - np.repeat(np.cumsum(counts) - counts, counts)
    return places


def _queue(work: Work, row: np.ndarray, numbers: np.ndarray, sizes: np.ndarray) -> tuple[engine.Queue, int]:
    """The requests as `_shared_out` shares them out, and the places that a context needs."""
    of_context, contexts = work.of_context, work.contexts
    counts = np.bincount(of_context, minlength=len(contexts))
    places, rows = bucket(int(counts.max())), numbers.ravel()
    own_row = row % (_rows(len(contexts)) // len(sizes))
    shared = {"stop_ids": work.sampling.stop_ids, "logit_mask": work.sampling.logit_mask}
    if shared["logit_mask"] is not None and len(shared["logit_mask"]) > 1:
        shared["logit_mask"] = shared["logit_mask"][rows]
    own = jax.tree.map(lambda leaf: leaf[rows], work.sampling.replace(**dict.fromkeys(shared)))
    queue = engine.Queue(
        size=sizes,
        cell=(own_row[of_context] * places + _places(of_context, counts)).astype(np.int32)[rows],
        token=np.array([contexts[number][-1] for number in of_context], np.int32)[rows],
        length=np.array([len(contexts[number]) for number in of_context], np.int32)[rows],
        keys=work.keys[rows],
        sampling=own.replace(**shared),
    )
    return queue, places


def _gather(work: Work, found: Found, log: engine.Log, columns: slice, numbers: np.ndarray, sizes: np.ndarray) -> None:
    """Puts what stands in these columns of a log into its places; see `_shared_out`."""
    log = jax.tree.map(lambda leaf: leaf[columns], log)
    queue = np.arange(log.token.shape[1]) * len(sizes) // log.token.shape[1]
    column, slot = np.nonzero(log.request < sizes[queue])
    request, count = numbers[queue[slot], log.request[column, slot]], log.count[column, slot]
    found.tokens[request, count] = log.token[column, slot]
    found.numbers[:, request, count] = log.numbers[column, :, slot].T
    np.maximum.at(found.length, request, count + 1)
    reason = log.reason[column, slot]
    found.reason[request[reason != RUNNING]] = reason[reason != RUNNING]
    if log.routes is None:
        return
    routes, later = log.routes[column, slot], count > 0
    found.routes[request[later], count[later] - 1] = routes[later]
    # The first step of a sample reads the last token of its context.
    context = work.of_context[request[~later]]
    last = np.array([len(work.contexts[number]) - 1 for number in context], np.int64)
    found.prompt_routes[context, last] = routes[~later]
