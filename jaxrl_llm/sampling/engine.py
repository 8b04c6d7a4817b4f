"""The slot engine: one compiled program takes a queue of requests to finished samples on a fixed number of slots.

A slot whose sample ends takes the next request of the queue on the device. Each context, a prompt with what stands behind it,
is read once for all samples that go on from it, but for its last token, with which each sample begins; so that beginning and
going on are one step. All slots write to the same column of their tails, the one of this step.

On a mesh each of Q shards of rows has a queue, contexts and slots of its own, and no step asks what another shard does: all
take as many steps, and every `STRIDE` of them they agree on whether there is work for more. Arrays hold the shards' parts one
behind the other, as if they were one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxrl_llm.networks.axes import constrain, current_queue_axes, manual_axes
from jaxrl_llm.networks.mixture import parts_of_experts
from jaxrl_llm.networks.past import Sight
from jaxrl_llm.sampling.draw import draw_with_entropy
from jaxrl_llm.sampling.records import LENGTH, RUNNING, STOP, Sampling
from jaxrl_llm.types import Array, Record

STRIDE = 8  # steps of shards between two looks whether any of them goes on


class Queue(Record):
    """Requests in the order in which slots take them: of each shard's R / Q the first `size`, behind which stands filling."""

    size: Array  # int32 [Q]
    cell: Array  # int32 [R], context * P + place within the shard, different for all of them
    token: Array  # int32 [R], last token of the request's context
    length: Array  # int32 [R], tokens of its context
    keys: Array  # PRNG keys [R], see `row_keys`
    sampling: Sampling  # of R rows


class Log(Record):
    """What was drawn in each of W columns by each of S slots."""

    token: Array  # int32 [W, S]
    request: Array  # int32 [W, S], place in the shard's queue; `Queue.size` or more where the slot was idle
    count: Array  # int32 [W, S], number of the token within its sample
    reason: Array  # int32 [W, S], `RUNNING`, or why the sample ended with this token
    numbers: Array  # float32 [W, 4, S], log-probabilities as of `draw`, and the entropy
    routes: Array | None = None  # int16 [W, S, layers, k] or None, experts of the token that was read, the one before


class Slots(Record):
    """S slots at work."""

    tails: Any  # keys and values of each slot's own tokens, W columns
    request: Array  # int32 [S], place in the shard's queue; `Queue.size` for an idle slot
    token: Array  # int32 [S], to be read next
    count: Array  # int32 [S], tokens drawn so far
    start: Array  # int32 [S], first column of the tail
    column: Array  # int32 [], the next one
    next: Array  # int32 [Q], first request that nobody has taken
    log: Log  # since it was last taken off


def by_shard(function, shared: tuple, *own, rows: bool = False):
    """`function(*shared, *own)` of each shard with its parts of its `own`, all at once where there are no shards.

    It gives `Slots`, or arrays of `rows`, whose first axis the shards share out.
    """
    axes = current_queue_axes()
    if not axes:
        return function(*shared, *own)
    specs = *parts_of_experts(shared), *(_parts(one, axes) for one in own)
    parts = PartitionSpec(axes) if rows else _of_slots(axes)
    split = jax.shard_map(function, in_specs=specs, out_specs=parts, axis_names=set(axes), check_vma=False)
    return split(*shared, *own)


def _parts(argument, axes: tuple[str, ...]):
    """Where the shards' parts of an argument lie: one behind the other in the axis of requests, slots or contexts."""
    rows = PartitionSpec(axes)
    if isinstance(argument, Slots):
        return _of_slots(axes)
    if not isinstance(argument, Queue):
        return jax.tree.map(lambda leaf: rows if jnp.ndim(leaf) else PartitionSpec(), argument)
    mask = argument.sampling.logit_mask
    alike = PartitionSpec() if mask is None or mask.shape[0] == 1 else rows
    own = jax.tree.map(lambda _: rows, argument.sampling).replace(stop_ids=PartitionSpec(), logit_mask=alike)
    return jax.tree.map(lambda _: rows, argument).replace(sampling=own)


def _of_slots(axes: tuple[str, ...]) -> Slots:
    rows, columns = PartitionSpec(axes), PartitionSpec(None, axes)
    log = dict.fromkeys(("token", "request", "count", "reason", "routes"), columns)
    own = dict.fromkeys(("tails", "request", "token", "count", "start", "next"), rows)
    return Slots(**own, column=PartitionSpec(), log=Log(**log, numbers=PartitionSpec(None, None, axes)))


@functools.partial(jax.jit, static_argnames=("network", "slots", "width", "routes"))
def begin(network, queue: Queue, *, slots: int, width: int, routes: tuple[int, ...] | None = None) -> Slots:
    """Idle slots with tails of `width` columns, which have taken the first requests of the queue.

    Args:
      network: with `init_tails(slots, width)`.
      queue: the requests.
      slots: S.
      width: W.
      routes: layers with experts and experts of a token, where they are recorded.
    """
    return by_shard(functools.partial(_begun, network, slots // queue.size.size, width, routes), (), queue)


def _begun(network, slots: int, width: int, routes, queue: Queue) -> Slots:
    zeros = jnp.zeros(slots, jnp.int32)
    log = {name: jnp.zeros((width, slots), jnp.int32) for name in ("token", "count", "reason")}
    empty = Slots(
        tails=network.init_tails(slots, width),
        request=jnp.full(slots, queue.size, jnp.int32),
        token=zeros,
        count=zeros,
        start=zeros,
        column=jnp.zeros((), jnp.int32),
        next=jnp.zeros(1, jnp.int32),
        log=Log(
            **log,
            request=jnp.full((width, slots), queue.size, jnp.int32),
            numbers=jnp.zeros((width, 4, slots), jnp.float32),
            routes=None if routes is None else jnp.full((width, slots, *routes), -1, jnp.int16),
        ),
    )
    return _refilled(empty, queue, jnp.ones(slots, bool))


@functools.partial(jax.jit, static_argnames=("network", "places"), donate_argnames=("slots",))
def run(network, params, layers, contexts, lengths, queue: Queue, slots: Slots, ended, until, few, *, places: int) -> Slots:
    """Draws tokens until column `until`, or until at most `few` slots are at work and nobody is in the queue.

    Args:
      network: hashable, with `step(params, layers, token, contexts, tails, sight) -> (hidden, tails, routes)` and `unembed`.
      params: its parameters.
      layers: those of its layers, as `network.each_layer(params)` lays them out.
      contexts: what `network.read` says of C contexts.
      lengths: int32 [C], tokens of each context that were read: all but the last.
      queue: R requests.
      slots: S slots; their buffers are given up.
      ended: bool [S], slots whose samples were ended from outside.
      until: int, at most W.
      few: int, at least 0; of each shard.
      places: P, sequences that read a context at a time.
    """
    own = contexts, lengths, queue, slots, ended, until, few
    return by_shard(functools.partial(_run, network, places), (params, layers), *own)


def _run(network, places: int, params, layers, contexts, lengths, queue: Queue, slots: Slots, ended, until, few) -> Slots:
    idle, shards = lengths.shape[0] * places, manual_axes()

    def busy(slots: Slots):
        at_work = (slots.request < queue.size).sum()
        going = (at_work > jnp.where(slots.next < queue.size, 0, few))[0]
        return (slots.column < until) & (lax.pmax(going, shards) if shards else going)

    def body(slots: Slots) -> Slots:
        own = _of_requests(queue, slots.request)
        sight = Sight(
            position=own.length - 1 + slots.count, cell=jnp.where(slots.request < queue.size, own.cell, idle), lengths=lengths,
            start=slots.start, column=slots.column, origin=own.length - 1, places=places,
        )  # fmt: skip
        hidden, tails, routes = network.step(params, layers, slots.token, contexts, slots.tails, sight)
        return _drawn(slots.replace(tails=tails), queue, own, network.unembed(params, hidden), routes)

    def stride(slots: Slots) -> Slots:
        end = jnp.minimum(until, slots.column + STRIDE)
        return lax.while_loop(lambda slots: slots.column < end, body, slots)

    return lax.while_loop(busy, stride if shards else body, _refilled(slots, queue, ended))


def _of_requests(queue: Queue, request: Array) -> Queue:
    """The entries of the queue that the slots work at; of idle slots, any."""
    number = jnp.minimum(request, queue.cell.shape[0] - 1)
    stop_ids, mask = queue.sampling.stop_ids, queue.sampling.logit_mask
    # What is one for all rows stays as it is.
    shared = queue.sampling.replace(stop_ids=None, logit_mask=None if mask is None or mask.shape[0] == 1 else mask)
    own = jax.tree.map(lambda leaf: leaf[number], queue.replace(size=None, sampling=shared))
    mask = mask if mask is None or mask.shape[0] == 1 else own.sampling.logit_mask
    return own.replace(sampling=own.sampling.replace(stop_ids=stop_ids, logit_mask=mask))


def _drawn(slots: Slots, queue: Queue, own: Queue, logits, routes) -> Slots:
    """Draws a token a slot from `logits` [S, V], writes it into the log, and lets the next requests in where one ended."""
    # Each device draws for whole rows: over parts of the vocabulary every turn of a search would be a collective of its own.
    logits = constrain(logits, "draws", "vocabulary")
    keys = jax.vmap(jax.random.fold_in)(own.keys, own.length + slots.count)
    uniforms = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
    forced = own.sampling.forced
    if forced is not None:
        forced = jnp.take_along_axis(forced, slots.count[:, None], axis=1, mode="fill", fill_value=-1)[:, 0]
    token, logps, entropy = draw_with_entropy(logits, uniforms, own.sampling, forced)
    stopped = (token[:, None] == own.sampling.stop_ids).any(-1)
    full = slots.count + 1 >= own.sampling.limit
    reason = jnp.where(stopped, STOP, jnp.where(full, LENGTH, RUNNING))
    found = {"token": token, "request": slots.request, "count": slots.count, "reason": reason}
    found["numbers"] = jnp.concatenate([logps, entropy[None]])
    if slots.log.routes is not None:
        found["routes"] = routes.astype(jnp.int16)
    put = functools.partial(lax.dynamic_update_index_in_dim, index=slots.column, axis=0)
    log = {name: put(getattr(slots.log, name), value) for name, value in found.items()}
    slots = slots.replace(token=token, count=slots.count + 1, column=slots.column + 1, log=slots.log.replace(**log))
    return _refilled(slots, queue, reason != RUNNING)


def _refilled(slots: Slots, queue: Queue, ended) -> Slots:
    """Slots that have `ended` take the next requests, the lower slot the earlier one, and stay idle where none is left."""
    rank = jnp.cumsum(ended, dtype=jnp.int32) - 1
    request = jnp.where(ended, jnp.minimum(slots.next + rank, queue.size), slots.request)
    return slots.replace(
        request=request,
        token=jnp.where(ended, queue.token[jnp.minimum(request, queue.token.shape[0] - 1)], slots.token),
        count=jnp.where(ended, 0, slots.count),
        start=jnp.where(ended, slots.column, slots.start),
        next=jnp.minimum(slots.next + ended.sum(dtype=jnp.int32), queue.size),
    )


@functools.partial(jax.jit, static_argnames=("network", "width"))
def widened(network, slots: Slots, *, width: int) -> Slots:
    """The slots with tails and a log of `width` columns, at least as many as they have; the log is empty again."""
    count, old = slots.log.token.shape[1], slots.log.token.shape[0]

    def grown(tail, axis):
        return jnp.pad(tail, [(0, width - old) if number == axis else (0, 0) for number in range(tail.ndim)])

    axes = column_axes(network, count)
    log = jax.tree.map(lambda leaf: jnp.zeros((width, *leaf.shape[1:]), leaf.dtype), slots.log)
    return slots.replace(tails=jax.tree.map(grown, slots.tails, axes), log=log)


@functools.partial(jax.jit, static_argnames=("network",), donate_argnames=("slots",))
def shifted(network, slots: Slots, amount) -> Slots:
    """The slots with the first `amount` columns, which nobody sees any more, behind the others."""
    axes = column_axes(network, slots.request.shape[0])
    tails = jax.tree.map(lambda tail, axis: tail if axis < 0 else jnp.roll(tail, -amount, axis), slots.tails, axes)
    return slots.replace(tails=tails, start=jnp.maximum(slots.start - amount, 0), column=slots.column - amount)


@functools.partial(jax.jit, static_argnames=("network",))
def chosen(network, slots: Slots, rows) -> Slots:
    """The given slots alone, int [S'], by their numbers within their shards."""
    return by_shard(functools.partial(_chosen, network), (), slots, rows)


def _chosen(network, slots: Slots, rows) -> Slots:
    count = slots.request.shape[0]
    one, two = (jax.eval_shape(lambda n=n: network.init_tails(n, 8)) for n in (count, count + 1))
    axes = jax.tree.map(_differing, one, two)
    tails = jax.tree.map(lambda tail, axis: jnp.take(tail, rows, axis), slots.tails, axes)
    own = {name: getattr(slots, name)[rows] for name in ("request", "token", "count", "start")}
    log = jax.tree.map(lambda leaf: jnp.take(leaf, rows, 1), slots.log.replace(numbers=None))
    return slots.replace(**own, tails=tails, log=log.replace(numbers=slots.log.numbers[..., rows]))


def column_axes(network, slots: int):
    """The axis of columns of each array of the tails."""
    one, two = (jax.eval_shape(lambda n=n: network.init_tails(slots, n)) for n in (8, 16))
    return jax.tree.map(_differing, one, two)


def _differing(one, two) -> int:
    """The axis in which two shapes differ; -1 where they are equal, as of states that have no columns."""
    return next((axis for axis, sizes in enumerate(zip(one.shape, two.shape, strict=True)) if sizes[0] != sizes[1]), -1)
