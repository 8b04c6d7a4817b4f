"""Attention under `reach` as a kernel for TPU (Pallas), forward and backward.

A step of the grid takes one block of queries and one of keys. Which pairs those are stands in lists that are read before the
grid begins; pairs beyond a list's end repeat its last block, so that nothing is moved, and are not computed. Logits are kept
with keys down and queries across: what belongs to a query, such as the sum of its exponentials, is then a row, and what
belongs to a key, such as its reach, a column, as the registers have them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrl_llm.networks.blocks import ALL, Queries, Visible, beside_sinks, listed, softcapped, visible_pairs

Array = jax.Array
LANES = 128  # of a vector register; rows are padded to a multiple
_LOWEST = -0.7 * float(jnp.finfo(jnp.float32).max)
_COLUMNS = (((0,), (0,)), ((), ()))  # contracts the first axes of two matrices
_ROWS = (((1,), (1,)), ((), ()))  # contracts the last ones


class Options(NamedTuple):
    """What is fixed when a kernel is made."""

    scale: float
    softcap: float | None
    block: int
    interpret: bool


class Seen(NamedTuple):
    """Who sees whom in B rows of T tokens."""

    window: Array  # int32 [2], and the column of the first query
    by_query: Visible  # for each block of queries the blocks of keys that it sees
    by_key: Visible  # for each block of keys those of queries that see it
    reach: Array  # int32 [B, T, 1]
    positions: tuple[Array, Array]  # of queries int32 [B, 1, T], and of keys [B, T, 1]


def block_of(*lengths: int) -> int:
    """Tokens of a block, for rows of these lengths, filled up to a multiple of 128."""
    padded = [length + -length % LANES for length in lengths]
    return next(size for size in (512, 256, LANES) if not any(length % size for length in padded))


def kernel_blocks(reach: Array, positions: Array, window: Array | int, queries: Queries = ALL) -> tuple[Visible, Visible]:
    """What each block of queries sees, and what sees each block of keys, for rows [B, T]; see `kernel_attention`."""
    block = block_of(reach.shape[1], queries.count or reach.shape[1])
    pairs = visible_pairs(reach, positions, window, block, queries)
    return listed(pairs), listed(jnp.swapaxes(pairs, 1, 2))


def kernel_attention(
    query: Array, key: Array, value: Array, reach: Array, positions: Array, visible: tuple[Visible, Visible],
    window: Array | int, asking: Queries = ALL, *, scale: float | None = None, softcap: float | None = None,
    sinks: Array | None = None, interpret: bool = False,
) -> Array:  # fmt: skip
    """Attention [B, T, N, H] under `reach`, `positions` and a window, see `attention`; queries that see nothing give 0.

    Args:
      query: [B, T, N, H], of the columns `asking`.
      key: [B, T, K, H], of all columns.
      value: [B, T, K, H].
      reach, positions: int32 [B, T].
      visible: see `kernel_blocks`.
      window: tokens that are seen.
      asking: columns of the queries.
      scale: of the logits, 1 / sqrt(H) by default.
      softcap: of the logits.
      sinks: [N], see `attention`.
      interpret: whether the kernel is run without a TPU, by the interpreter of Pallas.
    """
    length, at = query.shape[1], _padded(asking.of(positions))
    query, key, value, reach, positions = (_padded(x) for x in (query, key, value, reach, positions))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    options = Options(scale, softcap, block_of(query.shape[1], key.shape[1]), interpret)
    window = jnp.stack([jnp.asarray(x, jnp.int32) for x in (window, asking.first)])
    seen = Seen(window, *visible, reach[..., None], (at[:, None], positions[..., None]))
    by_head = [jnp.swapaxes(x, 1, 2) for x in (query, key, value)]
    mixed, normaliser = _attention(options, *by_head, seen)
    if sinks is not None:
        mixed = beside_sinks(mixed, normaliser[:, :, 0], sinks[:, None])
    return jnp.swapaxes(mixed, 1, 2)[:, :length]


def _padded(x: Array) -> Array:
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % LANES)] + [(0, 0)] * (x.ndim - 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options: Options, query, key, value, seen: Seen) -> tuple[Array, Array]:
    """Queries [B, N, T, H], keys and values [B, K, T, H]: as of `_forward`."""
    return _forward_rule(options, query, key, value, seen)[0]


def _forward_rule(options, query, key, value, seen):
    mixed, normaliser = _forward(options, query, key, value, seen)
    return (mixed, normaliser), (query, key, value, seen, mixed, normaliser)


def _backward_rule(options, residuals, cotangent):
    query, key, value, seen, mixed, normaliser = residuals
    cotangent, of_normaliser = cotangent
    inner = (cotangent.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(-1)[:, :, None] - of_normaliser
    inputs = (query, key, value, cotangent, normaliser, inner, seen)
    return _query_gradient(options, *inputs), *_key_gradients(options, *inputs), jax.tree.map(lambda _: None, seen)


_attention.defvjp(_forward_rule, _backward_rule)


class Places(NamedTuple):
    """Blocks of the arrays that a step of the grid reads; of each, its number in row, head, and along the tokens.

    The grid counts rows, heads, the blocks that are gone through, and those that each of them meets.
    """

    block: int
    width: int

    def tokens(self, place) -> pl.BlockSpec:
        """Of [B, heads, T, H]."""
        return pl.BlockSpec((None, None, self.block, self.width), lambda *at: (*place(*at), 0))

    def rows(self, place) -> pl.BlockSpec:
        """Of [B, heads, 1, T]."""
        return pl.BlockSpec((None, None, 1, self.block), lambda *at: (*place(*at)[:2], 0, place(*at)[2]))

    def positions(self, place) -> pl.BlockSpec:
        """Of [B, 1, T]."""
        return pl.BlockSpec((None, 1, self.block), lambda *at: (at[0], 0, place(*at)[2]))

    def columns(self, place) -> pl.BlockSpec:
        """Of [B, T, 1]."""
        return pl.BlockSpec((None, self.block, 1), lambda *at: (at[0], place(*at)[2], 0))


def _met(order, count, row, block, step):
    """The block that `block` meets in a step; beyond the end of its list the last one."""
    return order[row, block, jnp.minimum(step, jnp.maximum(count[row, block] - 1, 0))]


def _call(options, kernel, grid, visible, seen, inputs, specs, out_specs, out_shape, scratch):
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=3, grid=grid, in_specs=specs, out_specs=out_specs, scratch_shapes=scratch
    )
    return pl.pallas_call(
        functools.partial(kernel, options),
        grid_spec=spec,
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=options.interpret,
    )(visible.order, visible.count, seen.window, *inputs)


def _by_query(options, query, key):
    """Grid over the blocks of queries, and the places of query, key and tokens alone."""
    rows, heads, length, width = query.shape
    shared, blocks = heads // key.shape[1], (length // options.block, key.shape[2] // options.block)

    def of_query(row, head, block, step, order, count, window):
        return row, head, block

    def of_key(row, head, block, step, order, count, window):
        return row, jax.lax.div(head, shared), _met(order, count, row, block, step)

    return (rows, heads, *blocks), Places(options.block, width), of_query, of_key


def _forward(options: Options, query, key, value, seen: Seen):
    """Mixed values [B, N, T, H], and the log of the sum of exponentials [B, N, 1, T]."""
    grid, at, of_query, of_key = _by_query(options, query, key)
    specs = [at.tokens(of_query), at.tokens(of_key), at.tokens(of_key)]
    specs += [at.columns(of_key), at.positions(of_query), at.columns(of_key)]
    rows, heads, length, width = query.shape
    out_shape = [jax.ShapeDtypeStruct(query.shape, query.dtype), jax.ShapeDtypeStruct((rows, heads, 1, length), jnp.float32)]
    row = pltpu.VMEM((1, options.block), jnp.float32)
    scratch = [pltpu.VMEM((width, options.block), jnp.float32), row, row]
    inputs = (query, key, value, seen.reach, *seen.positions)
    out_specs = [at.tokens(of_query), at.rows(of_query)]
    return _call(options, _forward_kernel, grid, seen.by_query, seen, inputs, specs, out_specs, out_shape, scratch)


def _logits(options: Options, query, key, query_block, key_block, reach, positions, window):
    """Logits [keys, queries] of a pair of blocks, and which of them are seen."""
    raw = jax.lax.dot_general(key[...], query[...], _ROWS, preferred_element_type=jnp.float32)
    logits = softcapped(options.scale * raw, options.softcap)
    shape = (options.block, options.block)
    keys = key_block * options.block + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    queries = window[1] + query_block * options.block + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    of_query, of_key = positions
    return logits, (keys <= queries) & (queries < reach[...]) & (of_query[...] - of_key[...] < window[0])


def _forward_kernel(
    options, order, count, window, query, key, value, reach, of_query, of_key, out, normaliser, mixed, total, largest
):
    row, block, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(step == 0)
    def _():
        mixed[...] = jnp.zeros_like(mixed)
        total[...] = jnp.zeros_like(total)
        largest[...] = jnp.full_like(largest, _LOWEST)

    @pl.when(step < count[row, block])
    def _():
        logits, seen = _logits(options, query, key, block, order[row, block, step], reach, (of_query, of_key), window)
        logits = jnp.where(seen, logits, _LOWEST)
        peak = jnp.maximum(largest[...], logits.max(axis=0, keepdims=True))
        weights = jnp.where(seen, jnp.exp(logits - peak), 0.0)
        kept = jnp.exp(largest[...] - peak)
        more = jax.lax.dot_general(value[...], weights.astype(value.dtype), _COLUMNS, preferred_element_type=jnp.float32)
        mixed[...] = mixed[...] * kept + more
        total[...] = total[...] * kept + weights.sum(axis=0, keepdims=True)
        largest[...] = peak

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        some = jnp.where(total[...] > 0, total[...], 1.0)
        out[...] = (mixed[...] / some).T.astype(out.dtype)
        normaliser[...] = jnp.where(total[...] > 0, largest[...] + jnp.log(some), 0.0)


def _slopes(options, refs, query_block, key_block, window):
    """Weights and the gradients of the products of a pair of blocks, [keys, queries]."""
    query, key, value, cotangent, normaliser, inner, reach, *positions = refs
    logits, seen = _logits(options, query, key, query_block, key_block, reach, positions, window)
    weights = jnp.where(seen, jnp.exp(jnp.where(seen, logits, _LOWEST) - normaliser[...]), 0.0)
    back = jax.lax.dot_general(value[...], cotangent[...], _ROWS, preferred_element_type=jnp.float32)
    slope = weights * (back - inner[...])
    if options.softcap is not None:
        slope *= 1.0 - jnp.square(logits / options.softcap)
    return weights, options.scale * slope


def _query_gradient(options: Options, query, key, value, cotangent, normaliser, inner, seen: Seen):
    grid, at, of_query, of_key = _by_query(options, query, key)
    specs = [at.tokens(of_query), at.tokens(of_key), at.tokens(of_key), at.tokens(of_query), at.rows(of_query)]
    specs += [at.rows(of_query), at.columns(of_key), at.positions(of_query), at.columns(of_key)]
    inputs = (query, key, value, cotangent, normaliser, inner, seen.reach, *seen.positions)
    out_shape = jax.ShapeDtypeStruct(query.shape, query.dtype)
    scratch = [pltpu.VMEM((query.shape[-1], options.block), jnp.float32)]
    out_spec = at.tokens(of_query)
    return _call(options, _query_kernel, grid, seen.by_query, seen, inputs, specs, out_spec, out_shape, scratch)


def _query_kernel(options, order, count, window, *refs):
    *inputs, out, gradient = refs
    row, block, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(step == 0)
    def _():
        gradient[...] = jnp.zeros_like(gradient)

    @pl.when(step < count[row, block])
    def _():
        _, slope = _slopes(options, inputs, block, order[row, block, step], window)
        key = inputs[1]
        gradient[...] += jax.lax.dot_general(key[...], slope.astype(key.dtype), _COLUMNS, preferred_element_type=jnp.float32)

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        out[...] = gradient[...].T.astype(out.dtype)


def _key_gradients(options: Options, query, key, value, cotangent, normaliser, inner, seen: Seen):
    """Gradients of keys and values; a block of keys meets its queries in one head that shares it after the other."""
    rows, heads, length, width = query.shape
    kv_heads, blocks, at = key.shape[1], length // options.block, Places(options.block, width)
    shared = heads // kv_heads

    def of_key(row, head, block, step, order, count, window):
        return row, head, block

    def of_query(row, head, block, step, order, count, window):
        head = head * shared + jax.lax.div(step, blocks)
        return row, head, _met(order, count, row, block, jax.lax.rem(step, blocks))

    specs = [at.tokens(of_query), at.tokens(of_key), at.tokens(of_key), at.tokens(of_query), at.rows(of_query)]
    specs += [at.rows(of_query), at.columns(of_key), at.positions(of_query), at.columns(of_key)]
    inputs = (query, key, value, cotangent, normaliser, inner, seen.reach, *seen.positions)
    out_shape = [jax.ShapeDtypeStruct(key.shape, key.dtype), jax.ShapeDtypeStruct(value.shape, value.dtype)]
    scratch = [pltpu.VMEM((options.block, width), jnp.float32)] * 2
    grid, out_specs = (rows, kv_heads, key.shape[2] // options.block, shared * blocks), [at.tokens(of_key), at.tokens(of_key)]
    return _call(options, _key_kernel, grid, seen.by_key, seen, inputs, specs, out_specs, out_shape, scratch)


def _key_kernel(options, order, count, window, *refs):
    *inputs, out_key, out_value, of_key, of_value = refs
    row, block, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    number = jax.lax.rem(step, order.shape[2])

    @pl.when(step == 0)
    def _():
        of_key[...] = jnp.zeros_like(of_key)
        of_value[...] = jnp.zeros_like(of_value)

    @pl.when(number < count[row, block])
    def _():
        query, cotangent = inputs[0], inputs[3]
        weights, slope = _slopes(options, inputs, order[row, block, number], block, window)
        of_key[...] += jnp.dot(slope.astype(query.dtype), query[...], preferred_element_type=jnp.float32)
        of_value[...] += jnp.dot(weights.astype(cotangent.dtype), cotangent[...], preferred_element_type=jnp.float32)

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        out_key[...] = of_key[...].astype(out_key.dtype)
        out_value[...] = of_value[...].astype(out_value.dtype)
