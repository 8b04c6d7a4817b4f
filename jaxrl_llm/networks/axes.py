"""From the names of an array's axes to the axes of a mesh.

Names are given to parameters where they are made and to activations by `constrain`; rules (`flax.linen.logical_axis_rules`)
say which mesh axes split which names. Without a mesh (`jax.set_mesh`) or without rules, names change nothing.
"""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec


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
    wanted = nn.logical_to_mesh_axes(names, rules)
    return PartitionSpec(*(_dividing(axes, size, mesh.shape) for axes, size in zip(wanted, shape, strict=True)))


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
    return _current_shards("batch")


def current_column_shards() -> int:
    """Devices that share out the columns of each row, likewise."""
    return _current_shards("length")


def _current_shards(name: str) -> int:
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    if not rules or mesh.empty:
        return 1
    axes = nn.logical_to_mesh_axes((name,), rules)[0] or ()
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))


def check_rows(rows: int, what: str) -> None:
    """Refuses rows that would be copied: what does not go evenly over devices is computed by all of them.

    Raises:
      ValueError: the message begins with `what` they are.
    """
    shards = current_row_shards()
    if rows % shards:
        raise ValueError(f"{what}: {rows} rows do not go evenly over {shards} devices; pad them to a multiple of {shards}")


def check_columns(width: int, what: str) -> None:
    """Refuses widths of rows that would be copied, as `check_rows` does.

    Raises:
      ValueError: the message begins with `what` is so wide.
    """
    shards = current_column_shards()
    if width % shards:
        raise ValueError(f"{what}: {width} columns do not go evenly over {shards} devices; fill up to a multiple of {shards}")


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Splits an activation as the rules say for the names of its axes."""
    spec = current_spec(names, x.shape)
    return x if spec is None else jax.lax.with_sharding_constraint(x, spec)
