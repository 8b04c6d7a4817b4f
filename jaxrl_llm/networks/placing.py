"""Parameters filled a block of rows at a time, each row on the devices that keep it and on no other."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl_llm.networks.stored_names import Path

BLOCK_BYTES = 16 * 2**20  # of a tensor that are read at a time, on each host
Read = Callable[[int, int], np.ndarray]


class Piece(NamedTuple):
    """Rows of a tensor and the place of a parameter that they fill."""

    path: Path  # of the parameter
    index: tuple[int, ...]  # leading indices into it: the layer within its stack, the expert; or none
    start: int  # first of the rows
    shape: tuple[int, ...]  # of the rows
    # as in `Stored`: None, or the number of axes of the place that are the columns of the rows, which come first
    inputs: int | None


class _Layout(NamedTuple):
    """How a piece lies in its parameter, and what splits it."""

    leading: int  # number of axes that the piece has one index into
    row_axis: int  # of the parameter; the rows of the piece are this axis and those that belong to it, the last ones
    names: tuple[tuple[str, ...], ...]  # mesh axes that split each axis of the parameter
    parts: int  # number of parts that the rows are split into
    rows: int  # of the tensor in each part
    unit: int  # rows of the tensor for each index of `row_axis`


def blocks(parameter: jax.Array, piece: Piece, read: Read) -> Iterator[tuple[jax.Array, np.ndarray]]:
    """The piece in blocks for `written`, each with where it belongs: its index on every axis, within a part that of rows.

    Where rows are split over devices, a block has the same rows of every part, so that all devices are written to at once
    and nothing moves between them. `read(first, last)` gives rows of the tensor; it is asked for those of this host only.
    """
    layout = _layout(parameter, piece)
    units = layout.rows // layout.unit
    bytes_of_unit = layout.parts * layout.unit * math.prod(piece.shape[1:]) * parameter.dtype.itemsize
    step = math.ceil(units / math.ceil(units * bytes_of_unit / BLOCK_BYTES))
    for start in range(0, units, step):
        first = min(start, units - step)  # All blocks are of one shape, so that one program writes them.
        at = np.zeros(parameter.ndim, np.int32)
        at[: layout.leading], at[layout.row_axis] = piece.index, first
        yield _block(parameter, piece, layout, read, first * layout.unit, step * layout.unit), at


def _block(parameter: jax.Array, piece: Piece, layout: _Layout, read: Read, first: int, count: int) -> jax.Array:
    """`count` rows of each part, from its row `first` on."""

    @functools.cache
    def of_part(part: int) -> np.ndarray:
        begin = piece.start + part * layout.rows + first
        return read(begin, begin + count)

    if not isinstance(parameter.sharding, NamedSharding):
        return jax.device_put(_turned(of_part(0), piece), parameter.sharding if parameter.committed else None)

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        rows, *columns = index[::-1] if piece.inputs else index
        return _turned(of_part((rows.start or 0) // count)[:, *columns], piece)

    shape = (count * layout.parts, *piece.shape[1:])
    sharding = NamedSharding(parameter.sharding.mesh, _block_spec(piece, layout))
    return jax.make_array_from_callback(shape[::-1] if piece.inputs else shape, sharding, shard)


def _turned(rows: np.ndarray, piece: Piece) -> np.ndarray:
    return rows.T if piece.inputs else rows


def written(parameter: jax.Array, piece: Piece, block: jax.Array, at: np.ndarray) -> jax.Array:
    """`parameter` with a block of the piece, both from `blocks`; the given parameter's memory is used again."""
    sharding = parameter.sharding if isinstance(parameter.sharding, NamedSharding) else None
    layout = _layout(parameter, piece)
    return _written(parameter, block, at, layout, sharding, _block_spec(piece, layout))


@functools.partial(jax.jit, static_argnums=(3, 4, 5), donate_argnums=0)
def _written(parameter, block, at, layout, sharding, block_spec):
    write = functools.partial(_write, layout=layout)
    if sharding is not None:
        specs = (sharding.spec, block_spec, PartitionSpec())
        write = jax.shard_map(write, mesh=sharding.mesh, in_specs=specs, out_specs=sharding.spec, check_vma=False)
    return write(parameter, block, at)


def _write(shard: jax.Array, block: jax.Array, at: jax.Array, layout: _Layout) -> jax.Array:
    """What one device does: its part of the block into its part of the parameter."""
    # As unsigned integers: XLA's CPU backend would convert all of a bfloat16 array to float32 and back for each block. And
    # in the shape of the parameter: it would copy what has to be reshaped.
    bits = jnp.dtype(f"uint{8 * shard.dtype.itemsize}")
    shape = [1 if axis < layout.leading else size for axis, size in enumerate(shard.shape)]
    shape[layout.row_axis] = -1
    block = jax.lax.bitcast_convert_type(block.astype(shard.dtype), bits).reshape(shape)
    view = jax.lax.bitcast_convert_type(shard, bits)
    place, here = list(at), jnp.asarray(True)
    split = [axis for axis in range(layout.leading) if layout.names[axis]]
    for axis in split:
        place[axis] -= jax.lax.axis_index(layout.names[axis]) * shard.shape[axis]
        here &= (place[axis] >= 0) & (place[axis] < shard.shape[axis])
    if split:
        block = jnp.where(here, block, jax.lax.dynamic_slice(view, place, block.shape))
    return jax.lax.bitcast_convert_type(jax.lax.dynamic_update_slice(view, block, place), shard.dtype)


def _layout(parameter: jax.Array, piece: Piece) -> _Layout:
    leading = len(piece.index)
    row_axis = leading + (piece.inputs or 0)
    column_axis = leading if piece.inputs else leading + 1
    spec = parameter.sharding.spec if isinstance(parameter.sharding, NamedSharding) else ()
    names = tuple((axes,) if isinstance(axes, str) else tuple(axes or ()) for axes in spec)
    names += ((),) * (parameter.ndim - len(names))
    for axis, split in enumerate(names):
        if split and axis >= leading and axis not in (row_axis, column_axis):
            raise ValueError(f"params[{'.'.join(piece.path)}] cannot be read with its axis {axis} split, as {spec} has it")
    parts = math.prod(parameter.sharding.mesh.shape[name] for name in names[row_axis])
    unit = math.prod(parameter.shape[row_axis + 1 :]) if piece.inputs is not None else 1
    return _Layout(leading, row_axis, names, parts, piece.shape[0] // parts, unit)


def _block_spec(piece: Piece, layout: _Layout) -> PartitionSpec:
    column_axis = layout.leading if piece.inputs else layout.leading + 1
    spec = [layout.names[axis] or None for axis in (layout.row_axis, column_axis)[: len(piece.shape)]]
    return PartitionSpec(*(spec[::-1] if piece.inputs else spec))
