"""Parameters from the layout of training to that of sampling."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from jaxrl_llm.distributed.sharding import parameter_shardings
from jaxrl_llm.networks import Network, as_computed


def sampling_mesh(mesh: Mesh, tensor: int = 0) -> Mesh:
    """The devices of a mesh, in their order, for sampling, with the axes data, expert and tensor.

    Nothing is split as by fsdp, since a step would gather it all anew. Experts stay shared out, as far as `tensor` leaves
    devices for it: each then has a part of the experts' width. Those that share out columns in training have rows of their own.

    Args:
      mesh: of training.
      tensor: devices that share out a copy of the parameters, and see the same rows; 0 for as many as in training.

    Raises:
      ValueError: `tensor` does not divide the devices.
    """
    tensor = tensor or mesh.shape["tensor"]
    if tensor < 1 or mesh.size % tensor:
        raise ValueError(f"{tensor} devices that share out a copy do not divide the {mesh.size} of the mesh; choose a divisor")
    expert = math.gcd(mesh.shape["expert"], mesh.size // tensor)
    return Mesh(mesh.devices.reshape(-1, expert, tensor), ("data", "expert", "tensor"), axis_types=(AxisType.Auto,) * 3)


def for_sampling(network: Network, params: Any, mesh: Mesh | None = None) -> Any:
    """A copy of the parameters to sample with, in the dtype of the computation; they themselves where nothing would change.

    It goes from device to device, by one program, and says what the parameters say: a network rounds matrices to that dtype
    wherever it multiplies by them.

    Args:
      network: whose parameters they are, without any.
      params: laid out in any way over the devices of the mesh.
      mesh: of sampling, see `sampling_mesh`; None for one device.
    """
    if mesh is None and jax.eval_shape(functools.partial(as_computed, network), params) == jax.eval_shape(lambda x: x, params):
        return params
    return _copy(network, mesh)(params)


@functools.lru_cache(maxsize=8)
def _copy(network: Network, mesh: Mesh | None):
    shardings = None if mesh is None else parameter_shardings(network, mesh)
    return jax.jit(functools.partial(as_computed, network), out_shardings=shardings)
