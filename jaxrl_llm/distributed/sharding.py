"""Which mesh axes split what: rules for training and rules for sampling, what follows from them, and the copy between both."""

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrl_llm.distributed.hosts import put
from jaxrl_llm.distributed.mesh import NO_MESH
from jaxrl_llm.networks import Network, as_computed, logical_axes
from jaxrl_llm.networks.axes import partition_spec

# Name of an axis -> mesh axes that split it; other names are never split. Earlier rules come first: where a mesh axis splits
# one axis of an array, it splits no other, and a later rule of that name may stand in. "embed" is the width of the residual
# stream in parameters; in activations it is "activation_embed", since there the same mesh axes split the rows. "draws" are
# rows of whole logits.
_OF_WIDTHS = (("vocab", "tensor"), ("heads", "tensor"), ("kv_heads", "tensor"), ("mlp", "tensor"), ("expert", "expert"))
RULES = (
    ("batch", ("data", "fsdp", "expert")),
    ("length", "context"),
    ("draws", ("data", "fsdp", "expert", "context", "tensor")),
    *_OF_WIDTHS,
    ("embed", ("fsdp", "expert", "context")),
    ("embed", ("fsdp", "context")),
)
SAMPLING_RULES = (("batch", ("data", "expert")), ("draws", ("data", "expert", "tensor")), *_OF_WIDTHS)


def rules_of(mesh: Mesh) -> tuple:
    """`RULES`, or `SAMPLING_RULES` for a mesh of `sampling_mesh`, which has no axis fsdp."""
    return RULES if "fsdp" in mesh.axis_names else SAMPLING_RULES


def parameter_shardings(network: Network, mesh: Mesh, rules=None) -> Any:
    """Sharding of each parameter by `rules`, those of the mesh by default: a tree like `params`, `NamedSharding`s as leaves.

    An axis that its mesh axis does not divide is not split: two key heads on `tensor=4` are on all four devices.

    Raises ValueError: nothing is known of the network's parameters, see `networks.logical_axes`.
    """
    names, rules = logical_axes(network), rules_of(mesh) if rules is None else rules
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0)))  # The key too: the mesh may be another machine's.
    return jax.tree.map(lambda leaf, axes: NamedSharding(mesh, partition_spec(axes, leaf.shape, mesh, rules)), shapes, names)


def abstract_params(network: Network, mesh: Mesh | None = None, rules=None) -> Any:
    """Shapes and dtypes of the parameters, on a mesh with their shardings; what is restored like them never lies elsewhere."""
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0)))
    if mesh is None:
        return shapes
    placed = functools.partial(jax.tree.map, lambda leaf, own: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own))
    return placed(shapes, parameter_shardings(network, mesh, rules))


def init_params(network: Network, key: jax.Array, mesh: Mesh | None = None, rules=None) -> Any:
    """New parameters, on a mesh made where they lie: no device ever holds all of them."""
    if mesh is None:
        return network.init(key)
    return jax.jit(network.init, out_shardings=parameter_shardings(network, mesh, rules))(key)


def shard_params(params: Any, network: Network, mesh: Mesh, rules=None) -> Any:
    """Parameters laid out on the mesh by `parameter_shardings`; with several hosts, all must give the same ones."""
    return jax.tree.map(put, params, parameter_shardings(network, mesh, rules))


def row_shards(mesh: Mesh | None) -> int:
    """Devices that share out rows."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in _row_axes(mesh))


def _row_axes(mesh: Mesh) -> tuple[str, ...]:
    return dict(rules_of(mesh))["batch"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose first axis counts rows: split over the axes that share out rows."""
    return NamedSharding(mesh, PartitionSpec(_row_axes(mesh)))


def shard_rows(batch: Any, mesh: Mesh | None) -> Any:
    """A record or another tree of arrays with its rows split over the mesh; scalars, and what is said of micro-batches, stand
    on every device. None, for one device, leaves it as it is.

    With several hosts, all must give the same rows; each keeps those of its devices.

    Raises ValueError: the devices that share out rows do not divide them.
    """
    if mesh is None:
        return batch
    parts = row_shards(mesh)

    def placed(path, leaf):
        shape = () if path[-1:] == (jax.tree_util.GetAttrKey("parts"),) else jnp.shape(leaf)
        if shape and shape[0] % parts:
            sizes = " times ".join(f"{axis}={mesh.shape[axis]}" for axis in _row_axes(mesh))
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has {shape[0]} rows, which {sizes} do not divide; pad the rows to a "
                f"multiple of {parts}"
            )
        return put(leaf, batch_sharding(mesh) if shape else NamedSharding(mesh, PartitionSpec()))

    return jax.tree_util.tree_map_with_path(placed, batch)


@contextlib.contextmanager
def sharded(mesh: Mesh | None, rules=None) -> Iterator[Mesh | None]:
    """Within it, what is traced splits its activations over the mesh: sampling, scoring and updates alike.

    None, for one device, changes nothing.
    """
    if mesh is None:
        yield None
        return
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules_of(mesh) if rules is None else rules):
        yield mesh


def sampling_mesh(devices: np.ndarray, tensor: int = 1, expert: int = 1) -> Mesh:
    """A mesh for sampling, with the axes data, expert and tensor.

    Nothing is split as by fsdp, since a step would gather it all anew. Experts stay shared out, as far as `tensor` leaves
    devices for it: each then has a part of the experts' width. Those that share out columns in training have rows of their own.

    Args:
      devices: of any shape, such as those of the mesh of training; they keep their order.
      tensor: devices that share out a copy of the parameters, and see the same rows.
      expert: devices that share out experts in training.

    Raises ValueError: `tensor` does not divide the devices.
    """
    if tensor < 1 or devices.size % tensor:
        raise ValueError(
            f"{tensor} devices that share out a copy do not divide the {devices.size} of the mesh; choose a divisor"
        )
    expert = math.gcd(expert, devices.size // tensor)
    return Mesh(devices.reshape(-1, expert, tensor), ("data", "expert", "tensor"), axis_types=(AxisType.Auto,) * 3)


def for_sampling(network: Network, params: Any, mesh: Mesh | None = None) -> Any:
    """A copy of the parameters to sample with, in the dtype of the computation; they themselves where nothing would change.

    It goes from device to device, by one program, and says what the parameters say: a network rounds matrices to that dtype
    wherever it multiplies by them. To a mesh of other devices it goes once it is rounded.

    Args:
      network: whose parameters they are, without any.
      params: laid out in any way.
      mesh: of sampling, see `sampling_mesh`; None for one device.
    """
    own = jax.tree.leaves(params)[0].sharding
    if mesh is not None and not own.device_set <= set(mesh.devices.flat):
        with jax.set_mesh(own.mesh if isinstance(own, NamedSharding) else NO_MESH):
            rounded = copy_program(network, None)(params)
        if own.is_fully_addressable:
            return jax.device_put(rounded, parameter_shardings(network, mesh))
        with jax.set_mesh(NO_MESH):
            return jax.tree.map(_to_others, _on_each_host(network, rounded, own.mesh), parameter_shardings(network, mesh))
    if mesh is None and jax.eval_shape(functools.partial(as_computed, network), params) == jax.eval_shape(lambda x: x, params):
        return params
    return copy_program(network, mesh)(params)


def _on_each_host(network: Network, params: Any, mesh: Mesh) -> Any:
    """The parameters on the same devices, all of them on those of each host, which share them out."""
    devices = np.array(sorted(mesh.devices.flat, key=lambda device: device.process_index))
    hosts = len({device.process_index for device in devices})
    return jax.device_put(params, parameter_shardings(network, sampling_mesh(devices, len(devices) // hosts)))


def _to_others(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    """An array of which each host has all on other devices, where it shall have all too: none asks another."""

    def own(array: NamedSharding) -> NamedSharding:
        here = [row for row in array.mesh.devices if all(device.process_index == jax.process_index() for device in row.flat)]
        return NamedSharding(Mesh(np.array(here), array.mesh.axis_names), array.spec)

    def assembled(sharding: NamedSharding, parts: jax.Array) -> jax.Array:
        arrays = [shard.data for shard in parts.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)

    return assembled(sharding, jax.device_put(assembled(own(leaf.sharding), leaf), own(sharding)))


@functools.lru_cache(maxsize=8)
def copy_program(network: Network, mesh: Mesh | None):
    """The compiled function of parameters that `for_sampling` copies by."""
    shardings = None if mesh is None else parameter_shardings(network, mesh)
    return jax.jit(functools.partial(as_computed, network), out_shardings=shardings)
