"""Attention in blocks, of which only those are computed that have something to see.

Rows of T tokens are cut into blocks, small ones on a CPU, whose cost is arithmetic, and larger ones elsewhere. For each block
of queries, the blocks of keys that hold a token that one of them sees are listed before; how many there are is a number of the
run, not of the program, so that one program serves all packings. Weights exist for one pair of blocks at a time: forward a
softmax is summed as it goes along, backward its weights are built again (FlashAttention, https://arxiv.org/abs/2205.14135).
"""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array
CPU_BLOCK, BLOCK = 64, 512  # tokens of a block
_UNSEEN = -1e30  # added to logits of what is not seen


@flax.struct.dataclass
class Visible:
    """Blocks of keys that each block of queries sees."""

    order: Array  # int [B, blocks, blocks], for each block of queries those of keys, the ones to look at first
    count: Array  # int [B, blocks], how many these are


class Options(NamedTuple):
    """How logits come of products."""

    scale: float
    softcap: float | None


def softcapped(logits: Array, cap: float | None) -> Array:
    """`cap * tanh(logits / cap)`, or the logits themselves where there is no cap (Gemma 2, https://arxiv.org/abs/2408.00118)."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def block_size() -> int:
    """Tokens of a block on this platform."""
    return CPU_BLOCK if jax.default_backend() == "cpu" else BLOCK


class Queries(NamedTuple):
    """Which columns of rows ask: `count` of them from `first` on; None for all of them, as without a split of the columns."""

    first: Array | int = 0
    count: int | None = None

    def of(self, x: Array) -> Array:
        """What `x` [B, T, ...] has for them."""
        return x if self.count is None else jax.lax.dynamic_slice_in_dim(x, self.first, self.count, axis=1)


ALL = Queries()


def visible_pairs(reach: Array, positions: Array, window: Array | int, block: int, queries: Queries = ALL) -> Array:
    """Which blocks of queries see a key of which others, bool [B, blocks, blocks], for rows [B, T]; see `attention`."""
    at = _in_blocks(queries.of(positions), block)
    reach, positions = (_in_blocks(x, block) for x in (reach, positions))
    first = queries.first + jnp.arange(at.shape[1])[:, None] * block
    keys = jnp.arange(reach.shape[1]) * block
    seen = (first + block > keys) & (reach.max(-1)[:, None, :] > first)
    # The nearest pair of two blocks is at least so far apart.
    return seen & (at.min(-1)[:, :, None] - positions.max(-1)[:, None, :] < window)


def listed(pairs: Array) -> Visible:
    """The lists of what the blocks of the second axis see on the third."""
    order = jnp.argsort(~pairs, axis=-1, stable=True).astype(jnp.int32)
    return Visible(order, pairs.sum(-1, dtype=jnp.int32))


def visible_blocks(reach: Array, positions: Array, window: Array | int, queries: Queries = ALL) -> Visible:
    """The lists for `blocked_attention`."""
    return listed(visible_pairs(reach, positions, window, block_size(), queries))


def blocked_attention(
    query: Array, key: Array, value: Array, reach: Array, positions: Array, visible: Visible, window: Array | int,
    asking: Queries = ALL, *, scale: float | None = None, softcap: float | None = None, sinks: Array | None = None,
) -> Array:  # fmt: skip
    """Attention [B, T, N, H] under `reach`, as of `attention.reference_attention`, over the visible blocks alone."""
    rows, length, heads, width = query.shape
    kv_heads, options = key.shape[2], Options(width**-0.5 if scale is None else scale, softcap)
    block = block_size()
    queries = _in_blocks(query, block).reshape(rows, -1, block, kv_heads, heads // kv_heads, width)
    queries = queries.transpose(1, 0, 3, 4, 2, 5)  # [blocks, B, K, G, block, H]
    keys, values = (_in_blocks(x, block).transpose(0, 1, 3, 2, 4) for x in (key, value))  # [B, blocks, K, block, H]
    at = (_in_blocks(x, block) for x in (reach, positions, asking.of(positions)))
    seen = Seen(*at, jnp.asarray(asking.first), jnp.asarray(window), visible)
    mixed, normaliser = _attention(options, queries, keys, values, seen)
    if sinks is not None:
        mixed = beside_sinks(mixed, normaliser, sinks.reshape(kv_heads, -1, 1))
    return mixed.transpose(1, 0, 4, 2, 3, 5).reshape(rows, -1, heads, value.shape[-1])[:, :length]


def beside_sinks(mixed: Array, normaliser: Array, sinks: Array) -> Array:
    """`mixed` [..., H], of which `normaliser` [...] is the log of the sum of exponentials, with a sink in that sum too."""
    return (mixed * jax.nn.sigmoid(normaliser - sinks.astype(jnp.float32))[..., None]).astype(mixed.dtype)


class Seen(NamedTuple):
    """Reach and positions of keys in blocks [B, blocks, block], positions of queries, the column of the first of them, the
    window, and the visible blocks."""

    reach: Array
    positions: Array
    asking: Array
    first: Array
    window: Array
    visible: Visible

    def pair(self, number, step) -> tuple[Array, Array]:
        """The block of keys [B] that block `number` of queries meets in a step, and what their logits get [B, block, block]."""
        block, size = self.visible.order[:, number, step], self.reach.shape[2]
        inside = jnp.arange(size)
        query, key = self.first + number * size + inside[:, None], block[:, None, None] * size + inside
        mask = (key <= query) & (query < _taken(self.reach, block)[:, None, :])
        distance = self.asking[:, number, :, None] - _taken(self.positions, block)[:, None, :]
        mask &= (distance < self.window) & (step < self.visible.count[:, number])[:, None, None]
        # Made once: compilers would compare anew for each head.
        return block, jax.lax.optimization_barrier(jnp.where(mask, 0.0, _UNSEEN))


def _in_blocks(x: Array, block: int) -> Array:
    """[B, T, ...] padded with zeros and cut to [B, blocks, block, ...]."""
    padded = jnp.pad(x, [(0, 0), (0, -x.shape[1] % block)] + [(0, 0)] * (x.ndim - 2))
    return padded.reshape(x.shape[0], -1, block, *x.shape[2:])


def _taken(x: Array, block: Array) -> Array:
    """Of each row of `x` [B, blocks, ...] the block with that number [B]."""
    return jax.vmap(lambda row, number: jax.lax.dynamic_index_in_dim(row, number, keepdims=False))(x, block)


def _added(x: Array, block: Array, more: Array) -> Array:
    """`x` [B, blocks, ...] with `more` [B, ...] added to the blocks of these numbers [B]."""

    def row(x, number, more):
        earlier = jax.lax.dynamic_index_in_dim(x, number, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(x, earlier + more, number, 0)

    return jax.vmap(row)(x, block, more)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options: Options, queries, keys, values, seen: Seen) -> tuple[Array, Array]:
    """Queries [blocks, B, K, G, block, H], keys and values [B, blocks, K, block, H]: the mixed values, like queries, and the
    logs of the sums of exponentials."""
    return _forward_rule(options, queries, keys, values, seen)[0]


def _forward_rule(options, queries, keys, values, seen):
    mixed, normaliser = jax.lax.map(lambda number: _forward(options, queries, keys, values, seen, number), _numbers(queries))
    return (mixed, normaliser), (queries, keys, values, seen, mixed, normaliser)


def _numbers(queries):
    return jnp.arange(queries.shape[0], dtype=jnp.int32)


def _forward(options, queries, keys, values, seen, number):
    """Mixed values of a block of queries, and the log of the sum of exponentials of their logits, 0 where there are none."""
    query = queries[number]

    def add(step, carry):
        mixed, total, largest = carry
        block, unseen = seen.pair(number, step)
        logits = _logits(options, query, _taken(keys, block)) + unseen[:, None, None]
        peak = jnp.maximum(largest, logits.max(-1))
        weights = jnp.exp(logits - peak[..., None])
        more = _product("bkgts,bksh->bkgth", weights.astype(values.dtype), _taken(values, block))
        kept = jnp.exp(largest - peak)
        return mixed * kept[..., None] + more, total * kept + weights.sum(-1), peak

    zeros = jnp.zeros(query.shape[:-1], jnp.float32)
    start = (jnp.zeros((*query.shape[:-1], values.shape[-1]), jnp.float32), zeros, jnp.full_like(zeros, _UNSEEN))
    mixed, total, largest = jax.lax.fori_loop(0, seen.visible.count[:, number].max(), add, start)
    some = jnp.where(total > 0, total, 1.0)
    return (mixed / some[..., None]).astype(query.dtype), jnp.where(total > 0, largest + jnp.log(some), 0.0)


def _product(form: str, one, other):
    return jnp.einsum(form, one, other, preferred_element_type=jnp.float32)


def _logits(options: Options, query, key):
    """Logits [B, K, G, block, block] of all pairs, seen or not."""
    return softcapped(options.scale * _product("bkgth,bksh->bkgts", query, key), options.softcap)


def _backward_rule(options, residuals, cotangent):
    queries, keys, values, seen, mixed, normaliser = residuals
    cotangent, of_normaliser = cotangent
    # sum_j p_j dp_j of each query, which is also the product of what it gave with what comes back.
    inner = (cotangent.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(-1) - of_normaliser

    def of_block(carry, number):
        query_side = (queries[number], cotangent[number], normaliser[number], inner[number])
        gradient, *carry = _backward(options, query_side, keys, values, seen, number, *carry)
        return tuple(carry), gradient

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (keys, values))
    (of_keys, of_values), of_queries = jax.lax.scan(of_block, start, _numbers(queries))
    gradients = (of_queries.astype(queries.dtype), of_keys.astype(keys.dtype), of_values.astype(values.dtype))
    return *gradients, jax.tree.map(lambda _: None, seen)


def _backward(options, query_side, keys, values, seen, number, of_keys, of_values):
    """Gradients of a block of queries, and those of all keys and values with its part in them, float32."""
    query, cotangent, normaliser, inner = query_side

    def add(step, carry):
        of_query, of_keys, of_values = carry
        block, unseen = seen.pair(number, step)
        key, value = _taken(keys, block), _taken(values, block)
        logits = _logits(options, query, key)
        weights = jnp.exp(logits + unseen[:, None, None] - normaliser[..., None])
        slope = weights * (_product("bkgth,bksh->bkgts", cotangent, value) - inner[..., None])
        if options.softcap is not None:
            slope *= 1.0 - jnp.square(logits / options.softcap)
        slope = (options.scale * slope).astype(query.dtype)
        of_query += _product("bkgts,bksh->bkgth", slope, key)
        of_keys = _added(of_keys, block, _product("bkgts,bkgth->bksh", slope, query))
        of_values = _added(of_values, block, _product("bkgts,bkgth->bksh", weights.astype(query.dtype), cotangent))
        return of_query, of_keys, of_values

    start = (jnp.zeros(query.shape, jnp.float32), of_keys, of_values)
    return jax.lax.fori_loop(0, seen.visible.count[:, number].max(), add, start)


_attention.defvjp(_forward_rule, _backward_rule)
