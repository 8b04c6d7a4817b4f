"""Parameters from the layout of training to that of sampling."""

import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxrl_llm.distributed.mesh import NO_MESH
from jaxrl_llm.distributed.sharding import parameter_shardings
from jaxrl_llm.networks import Network, as_computed


def sampling_mesh(devices: np.ndarray, tensor: int = 1, expert: int = 1) -> Mesh:
    """A mesh for sampling, with the axes data, expert and tensor.

    Nothing is split as by fsdp, since a step would gather it all anew. Experts stay shared out, as far as `tensor` leaves
    devices for it: each then has a part of the experts' width. Those that share out columns in training have rows of their own.

    Args:
      devices: of any shape, such as those of the mesh of training; they keep their order.
      tensor: devices that share out a copy of the parameters, and see the same rows.
      expert: devices that share out experts in training.

    Raises:
      ValueError: `tensor` does not divide the devices.
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
        return jax.device_put(rounded, parameter_shardings(network, mesh))
    if mesh is None and jax.eval_shape(functools.partial(as_computed, network), params) == jax.eval_shape(lambda x: x, params):
        return params
    return copy_program(network, mesh)(params)


@functools.lru_cache(maxsize=8)
def copy_program(network: Network, mesh: Mesh | None):
    """The compiled function of parameters that `for_sampling` copies by."""
    shardings = None if mesh is None else parameter_shardings(network, mesh)
    return jax.jit(functools.partial(as_computed, network), out_shardings=shardings)
