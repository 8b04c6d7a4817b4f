"""Attention of decoding over tails as a kernel for TPU (Pallas), which reads of each tail the blocks that its slot sees.

A step of the grid takes one block of columns of one slot's tail. Blocks in front of the first column that the slot sees, and
behind the last, repeat the nearest one that it sees, so that nothing is moved, and are not computed.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrl_llm.networks.blocks import softcapped

Array = jax.Array
LANES = 128
_LOWEST = float(jnp.finfo(jnp.float32).min)
_BLOCK_BYTES = 1 << 20  # of keys, or of values, of one block


class _Options(NamedTuple):
    scale: float
    softcap: float | None
    block: int
    coded: bool  # whether there are scales


def fits_kernel(width: int) -> bool:
    """Whether tails of so many columns are worth a kernel, and in the form that it takes."""
    return width >= 2 * LANES and width % LANES == 0


def tail_attention(
    query: Array, cells, first: Array, last: Array, *, scale: float, softcap: float | None = None, interpret: bool = False
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Sum of exp(logit - m) value [S, K, G, H], of exp(logit - m) [S, K, G], and the largest logit m, all float32.

    Args:
      query: [S, K, G, H].
      cells: `past.Cells` of S tails of W columns, a multiple of 128.
      first: int [S], first column that a slot sees.
      last: int [], last column that all see.
      scale: of the logits.
      softcap: of the logits.
      interpret: whether the kernel is run without a TPU, by the interpreter of Pallas.
    """
    slots, heads, groups, size = query.shape
    width = cells.keys.shape[3]
    coded = cells.key_scale is not None
    most = max(_BLOCK_BYTES // (heads * size * cells.keys.dtype.itemsize), LANES)
    block = max(one for one in (LANES, 2 * LANES, 4 * LANES) if width % one == 0 and (one <= most or one == LANES))
    options = _Options(scale, softcap, block, coded)

    def at(slot, step, first, last):
        return jnp.clip(step, first[slot] // block, last[0] // block)

    whole = pl.BlockSpec((1, heads, groups, size), lambda slot, step, *_: (slot, 0, 0, 0))
    sums = pl.BlockSpec((1, heads, groups), lambda slot, step, *_: (slot, 0, 0))
    keys = pl.BlockSpec((1, heads, size, block), lambda *where: (where[0], 0, 0, at(*where)))
    values = pl.BlockSpec((1, heads, block, size), lambda *where: (where[0], 0, at(*where), 0))
    scales = pl.BlockSpec((1, heads, block), lambda *where: (where[0], 0, at(*where)))
    inputs, specs = [query, cells.keys, cells.values], [whole, keys, values]
    if coded:
        inputs, specs = [*inputs, cells.key_scale, cells.value_scale], [*specs, scales, scales]
    shapes = [(slots, heads, groups, size), (slots, heads, groups), (slots, heads, groups)]
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2, grid=(slots, width // block), in_specs=specs, out_specs=[whole, sums, sums]
    )
    call = pl.pallas_call(
        functools.partial(_kernel, options), grid_spec=grid, interpret=interpret, name="tail_attention",
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
    )  # fmt: skip
    return tuple(call(first.astype(jnp.int32), jnp.reshape(last, 1).astype(jnp.int32), *inputs))


def _kernel(options: _Options, first, last, query, keys, values, *rest):
    scales, (mixed, total, largest) = rest[:-3], rest[-3:]
    slot, step = pl.program_id(0), pl.program_id(1)

    @pl.when(step == 0)
    def begin():
        mixed[...], total[...] = jnp.zeros_like(mixed), jnp.zeros_like(total)
        largest[...] = jnp.full_like(largest, _LOWEST)

    @pl.when((step >= first[slot] // options.block) & (step <= last[0] // options.block))
    def add():
        columns = step * options.block + jax.lax.broadcasted_iota(jnp.int32, (1, options.block), 1)
        seen = (columns >= first[slot]) & (columns <= last[0])
        for head in range(query.shape[1]):
            _add(options, seen, head, query, keys, values, scales, mixed, total, largest)


def _add(options: _Options, seen, head: int, query, keys, values, scales, mixed, total, largest) -> None:
    """Adds a block to what one head of keys has found so far."""
    own = query[0, head]
    logits = jnp.dot(own, keys[0, head].astype(own.dtype), preferred_element_type=jnp.float32) * options.scale
    if options.coded:
        logits = logits * scales[0][0, head][None]
    logits = jnp.where(seen, softcapped(logits, options.softcap), _LOWEST)
    before = largest[0, head]
    now = jnp.maximum(before, logits.max(axis=1))
    weights = jnp.where(seen, jnp.exp(logits - now[:, None]), 0.0)
    kept = jnp.exp(before - now)
    shares = weights * scales[1][0, head][None] if options.coded else weights
    added = jnp.dot(shares.astype(own.dtype), values[0, head].astype(own.dtype), preferred_element_type=jnp.float32)
    mixed[0, head] = mixed[0, head] * kept[:, None] + added
    total[0, head] = total[0, head] * kept + weights.sum(axis=1)
    largest[0, head] = now
