"""From the names of an array's axes to the axes of a mesh.

Names are given to parameters where they are made and to activations by `constrain`; rules (`flax.linen.logical_axis_rules`)
say which mesh axes split which names. Without a mesh (`jax.set_mesh`) or without rules, names change nothing.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
from jax.sharding import AxisType, PartitionSpec


def partition_spec(names: tuple[str | None, ...], shape: tuple[int, ...], mesh, rules=None) -> PartitionSpec:
    """How the rules split an array of this shape, whose axes have these names, over a mesh.

    An axis that its mesh axes do not divide is split by the first ones that do, and otherwise copied: two key heads on
    four devices are on all four.

    Args:
      names: name of each axis; None is never split.
      shape: as long as `names`.
      mesh: a `Mesh` or an `AbstractMesh`.
      rules: pairs of a name and the mesh axis or axes that split it; those of `nn.logical_axis_rules` by default.
    """
    wanted, sizes = nn.logical_to_mesh_axes(names, rules), _free(mesh)
    return PartitionSpec(*(_dividing(axes, size, sizes) for axes, size in zip(wanted, shape, strict=True)))


def _free(mesh) -> dict[str, int]:
    """Sizes of the mesh axes; 1 where a `shard_map` around this has split arrays already."""
    kinds = zip(mesh.shape.items(), mesh.axis_types, strict=True)
    return {axis: 1 if kind == AxisType.Manual else size for (axis, size), kind in kinds}


def manual_axes() -> tuple[str, ...]:
    """Axes of the mesh that a `shard_map` around this has split arrays by."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def manual_axes_of(name: str, size: int = 0) -> tuple[str, ...]:
    """Those of them that the rules give to a name, where they divide its size; none where they have one device."""
    mesh, axes = jax.sharding.get_abstract_mesh(), tuple(axis for axis in _axes_of(name) if axis in manual_axes())
    return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()


def _dividing(axes, size: int, mesh_sizes: Mapping[str, int]):
    axes = (axes,) if isinstance(axes, str) else axes or ()
    kept, parts = [], 1
    for axis in (axis for axis in axes if mesh_sizes[axis] > 1):
        parts *= mesh_sizes[axis]
        if size % parts:
            break
        kept.append(axis)
    return tuple(kept) if len(kept) > 1 else next(iter(kept), None)


def current_spec(names: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec | None:
    """`partition_spec` under the mesh and the rules that are set; None where one of them is not."""
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    return partition_spec(names, shape, mesh, rules) if rules and not mesh.empty else None


def current_row_shards() -> int:
    """Devices that share out rows under the mesh and the rules that are set; 1 where one of them is not."""
    return math.prod(size for _, size in _current_axes("batch"))


def current_queue_axes() -> tuple[str, ...]:
    """Axes whose devices each have a queue of samples: those that split rows, unless they may split all parameters too."""
    free = "embed" not in dict(nn.get_logical_axis_rules())
    return tuple(axis for axis, size in _current_axes("batch") if free and size > 1)


def current_queues() -> int:
    """How many queues these are; 1 where nothing splits rows."""
    return math.prod(size for axis, size in _current_axes("batch") if axis in current_queue_axes())


def current_column_shards() -> int:
    """Devices that share out the columns of each row, likewise."""
    return math.prod(size for _, size in _current_axes("length"))


def _current_axes(name: str) -> list[tuple[str, int]]:
    mesh = jax.sharding.get_abstract_mesh()
    return [] if mesh.empty else [(axis, _free(mesh)[axis]) for axis in _axes_of(name)]


def _axes_of(name: str) -> tuple[str, ...]:
    """Mesh axes that the rules which are set give to a name."""
    axes = nn.logical_to_mesh_axes((name,))[0] if nn.get_logical_axis_rules() else None
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def check_rows(rows: int, what: str) -> None:
    """Refuses rows that would be copied: what does not go evenly over devices is computed by all of them.

    Raises ValueError: the message begins with `what` they are.
    """
    shards = current_row_shards()
    if rows % shards:
        raise ValueError(f"{what}: {rows} rows do not go evenly over {shards} devices; pad them to a multiple of {shards}")


def check_columns(width: int, what: str) -> None:
    """Refuses widths of rows that would be copied, as `check_rows` does.

    Raises ValueError: the message begins with `what` is so wide.
    """
    shards = current_column_shards()
    if width % shards:
        raise ValueError(f"{what}: {width} columns do not go evenly over {shards} devices; fill up to a multiple of {shards}")


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Splits an activation as the rules say for the names of its axes."""
    spec = current_spec(names, x.shape)
    return x if spec is None else jax.lax.with_sharding_constraint(x, spec)


class Split(NamedTuple):
    """Mesh axes that split tokens and a matrix with a row for each entry of the vocabulary; none without a mesh."""

    rows: tuple[str, ...] = ()  # of tokens [B, T]
    columns: tuple[str, ...] = ()  # of tokens
    vocabulary: tuple[str, ...] = ()  # of the matrix [V, D]
    width: tuple[str, ...] = ()  # of the matrix; of hidden states nothing does

    @property
    def specs(self) -> tuple[PartitionSpec, PartitionSpec]:
        """Of tokens, and of the matrix."""
        return PartitionSpec(self.rows, self.columns), PartitionSpec(self.vocabulary, self.width)


def split_of(tokens: tuple[int, int], matrix: tuple[int, int]) -> Split:
    """What the rules say of these shapes."""
    specs = current_spec(("batch", "length"), tokens), current_spec(("vocab", "embed"), matrix)
    if specs[0] is None:
        return Split()
    return Split(*((axes,) if isinstance(axes, str) else tuple(axes or ()) for spec in specs for axes in spec))


def parts(axes: tuple[str, ...]) -> int:
    """Devices along these mesh axes, within a `shard_map`."""
    return jax.lax.axis_size(axes) if axes else 1


def first_of(axes: tuple[str, ...], size: int):
    """Number of the first of a device's `size` rows, which these mesh axes split."""
    return jax.lax.axis_index(axes) * size if axes else 0
