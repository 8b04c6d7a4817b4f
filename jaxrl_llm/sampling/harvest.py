"""The host's side of the slot engine: contexts are read once, slots are kept at work, and what they draw is gathered."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_llm.distributed import fetch
from jaxrl_llm.networks.axes import current_row_shards
from jaxrl_llm.sampling import engine
from jaxrl_llm.sampling.records import RUNNING, Samples, Sampling

FIRST_WIDTH = 64  # columns of tails where they may become more than twice as many; then four times, later twice as many
SMALLEST_BUCKET = 16  # of context lengths, which are padded to powers of two
FEWEST_SLOTS = 8  # below which slots without work stay


class Found(NamedTuple):
    """What R requests have given so far; arrays of the host, written in place.

    Attributes:
      tokens: int32 [R, L].
      numbers: float32 [4, R, L], log-probabilities as of `draw`, and the entropy.
      length: int32 [R].
      reason: int32 [R].
      routes: int16 [R, L, layers, k] or None.
      prompt_routes: int16 [C, T, layers, k] or None.
    """

    tokens: np.ndarray
    numbers: np.ndarray
    length: np.ndarray
    reason: np.ndarray
    routes: np.ndarray | None = None
    prompt_routes: np.ndarray | None = None


Cut = Callable[[Found, np.ndarray], np.ndarray]


def bucket(number: int, least: int = 1) -> int:
    """The least power of two that is at least both."""
    return max(least, 1 << max(number - 1, 0).bit_length())


@functools.partial(jax.jit, static_argnames=("network",))
def _read(network, params, tokens, lengths):
    return network.read(params, tokens, lengths)


@functools.partial(jax.jit, static_argnames=("network",))
def _laid_out(network, params):
    return network.each_layer(params)


def samples_of(found: Found) -> Samples:
    """The samples, cleared past each row's length."""
    kept = np.arange(found.tokens.shape[1]) < found.length[:, None]
    logp, tempered_logp, sampling_logp, entropy = np.where(kept, found.numbers, 0.0)
    return Samples(
        tokens=np.where(kept, found.tokens, 0),
        logp=logp,
        tempered_logp=tempered_logp,
        sampling_logp=sampling_logp,
        entropy=entropy,
        length=found.length,
        finish_reason=found.reason,
        routes=None if found.routes is None else np.where(kept[..., None, None], found.routes, -1),
        prompt_routes=found.prompt_routes,
    )


class Work(NamedTuple):
    """What is to be sampled.

    Attributes:
      network: with `read`, `step`, `each_layer`, `init_tails` and `unembed`.
      params: its parameters.
      contexts: token ids of C different contexts.
      of_context: int [R], context of each request.
      keys: [R], see `row_keys`.
      sampling: of R rows.
      width: that contexts are padded to; None for a power of two.
      record_routes: whether the experts of tokens are recorded.
    """

    network: Any
    params: Any
    contexts: Sequence[Sequence[int]]
    of_context: np.ndarray
    keys: jax.Array
    sampling: Sampling
    width: int | None = None
    record_routes: bool = False


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
    network, params, size = work.network, work.params, len(work.of_context)
    read, lengths, found = _beginning(work, columns)
    queue, places = _queue(work)
    layers = _laid_out(network, params)
    width = bucket(columns) if columns <= 2 * FIRST_WIDTH else FIRST_WIDTH
    routes = None if found.routes is None else found.routes.shape[2:]
    state = engine.begin(network, queue, slots=slots, width=width, routes=routes)
    ended, first, shards = np.zeros(slots, bool), 0, current_row_shards()
    while True:
        until = width if chunk is None else min(width, first + (chunk if found.length.any() else 1))
        # Quarters, and not what is left at the moment: few numbers of slots mean few programs.
        few = -(-slots // 4 // shards) * shards if slots > max(FEWEST_SLOTS, shards) else 0
        state = engine.run(network, params, layers, read, lengths, queue, state, ended, until, few, places=places)
        if found.length.any():
            yield found
        request, start, column, taken = fetch((state.request, state.start, state.column, state.next))
        _gather(work, found, fetch(state.log), slice(first, int(column)))
        first, ended = int(column), np.zeros(slots, bool)
        if cut is not None:
            at_work = np.flatnonzero(request < size)
            ended[at_work] = cut(found, request[at_work])
        live = (request < size) & ~ended
        if not live.any() and taken == size:
            yield found
            return
        if taken == size and live.sum() <= few:
            rows = np.argsort(~live, kind="stable")[: max(few, -(-FEWEST_SLOTS // shards) * shards)]
            state, slots = engine.chosen(network, state, rows), len(rows)
            start, live, ended = start[rows], live[rows], ended[rows]
        if first == width:
            seen = int(min(start[live], default=width))
            if seen * 4 >= width:
                state, first = engine.shifted(network, state, seen), width - seen
            else:
                width = _next_width(width, columns, taken == size, int(max(start[live], default=0)))
                state = engine.widened(network, state, width=width)


def _next_width(width: int, columns: int, last: bool, start: int) -> int:
    """The next width, or less where nobody can need as many columns any more: few widths mean few programs."""
    wider = 4 * width if width == FIRST_WIDTH else 2 * width
    return min(wider, -(-(start + columns) // 64) * 64) if last else wider


def _beginning(work: Work, columns: int) -> tuple[Any, np.ndarray, Found]:
    """What the network says of all contexts but for their last tokens, the lengths without these, and nothing found yet."""
    size, contexts = len(work.of_context), work.contexts
    width, shards = work.width or bucket(max(map(len, contexts)), SMALLEST_BUCKET), current_row_shards()
    rows = -(-bucket(len(contexts)) // shards) * shards
    tokens, lengths = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32)
    for row, context in enumerate(contexts):
        lengths[row] = len(context) - 1
        tokens[row, : lengths[row]] = context[:-1]
    read, experts = _read(work.network, work.params, tokens, lengths)
    found = Found(
        tokens=np.zeros((size, columns), np.int32),
        numbers=np.zeros((4, size, columns), np.float32),
        length=np.zeros(size, np.int32),
        reason=np.full(size, RUNNING, np.int32),
    )
    if not work.record_routes:
        return read, lengths, found
    experts = fetch(experts).astype(np.int16)[: len(contexts)]
    inside = np.arange(width)[:, None, None] < lengths[: len(contexts), None, None, None]
    routes = np.full((size, columns, *experts.shape[2:]), -1, np.int16)
    return read, lengths, found._replace(routes=routes, prompt_routes=np.where(inside, experts, -1))


def evened(contexts: list, of_context: np.ndarray) -> tuple[list, np.ndarray]:
    """The contexts, those of more samples than others several times where there is room, and the number of that of each sample.

    A step has the same number of places for each context. A prompt that was drawn twice would double them for all, and make
    another program.
    """
    counts, places = np.bincount(of_context, minlength=len(contexts)), 1
    while bucket(int((-(-counts // places)).sum())) > bucket(len(contexts)):
        places *= 2
    pieces = -(-counts // places)
    number = (np.cumsum(pieces) - pieces)[of_context] + _places(of_context, counts) // places
    return [context for context, count in zip(contexts, pieces, strict=True) for _ in range(count)], number


def _places(of_context: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many before each request have the same context, int [R]; `counts` are those of all."""
    places = np.empty(len(of_context), np.int64)
    places[np.argsort(of_context, kind="stable")] = np.arange(len(of_context)) - np.repeat(np.cumsum(counts) - counts, counts)
    return places


def _queue(work: Work) -> tuple[engine.Queue, int]:
    """The requests, filled up to a power of two, and the places that a context needs."""
    of_context, contexts = work.of_context, work.contexts
    counts = np.bincount(of_context, minlength=len(contexts))
    places = bucket(int(counts.max()))
    rows = np.minimum(np.arange(bucket(len(of_context))), len(of_context) - 1)
    shared = {"stop_ids": work.sampling.stop_ids, "logit_mask": work.sampling.logit_mask}
    if shared["logit_mask"] is not None and len(shared["logit_mask"]) > 1:
        shared["logit_mask"] = shared["logit_mask"][rows]
    own = jax.tree.map(lambda leaf: leaf[rows], work.sampling.replace(**dict.fromkeys(shared)))
    queue = engine.Queue(
        size=np.int32(len(of_context)),
        cell=(of_context * places + _places(of_context, counts)).astype(np.int32)[rows],
        token=np.array([contexts[number][-1] for number in of_context], np.int32)[rows],
        length=np.array([len(contexts[number]) for number in of_context], np.int32)[rows],
        keys=work.keys[rows],
        sampling=own.replace(**shared),
    )
    return queue, places


def _gather(work: Work, found: Found, log: engine.Log, columns: slice) -> None:
    """Puts what stands in these columns of a log into its places."""
    log = jax.tree.map(lambda leaf: leaf[columns], log)
    column, slot = np.nonzero(log.request < len(found.length))
    request, count = log.request[column, slot], log.count[column, slot]
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
