"""Parameters from the layout of training to that of sampling."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.sharding import Mesh

from jaxrl_llm.distributed.mesh import AXES
from jaxrl_llm.distributed.sharding import parameter_shardings
from jaxrl_llm.networks import Network, as_computed


def sampling_mesh(mesh: Mesh, tensor: int = 0) -> Mesh:
    """The devices of a mesh, in their order, for sampling: nothing is split over fsdp, since a step would gather it all anew.

    Args:
      mesh: of training.
      tensor: devices that share out a copy of the parameters, and see the same rows; 0 for as many as in training.

    Raises:
      ValueError: `tensor` does not divide the devices.
    """
    tensor = tensor or mesh.shape["tensor"]
    if tensor < 1 or mesh.size % tensor:
        raise ValueError(f"{tensor} devices that share out a copy do not divide the {mesh.size} of the mesh; choose a divisor")
    return Mesh(mesh.devices.reshape(-1, 1, tensor), AXES, axis_types=mesh.axis_types)


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
    return copy_program(network, mesh)(params)


@functools.lru_cache(maxsize=8)
def copy_program(network: Network, mesh: Mesh | None):
    """The compiled function of parameters that `for_sampling` copies by."""
    shardings = None if mesh is None else parameter_shardings(network, mesh)
    return jax.jit(functools.partial(as_computed, network), out_shardings=shardings)
