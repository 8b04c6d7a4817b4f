"""From a configuration to the meshes that train and sample."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxrl_llm import distributed


def build_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh | None:
    """The mesh that the configuration asks for; None for one device. One of its sizes may be -1: all that are left.

    Args:
      config: the configuration.
      devices: those to plan for, always a mesh; by default those of this process.

    Raises ValueError: the sizes do not fit the devices.
    """
    sizes = config.mesh.to_dict()
    sizes.pop("sampling_tensor")
    planned, devices = devices is not None, jax.devices() if devices is None else devices
    count = len(devices) - sizes.pop("actors")
    if count < 1:
        raise ValueError(f"config.mesh.actors is {config.mesh.actors} of {len(devices)} devices; leave some that learn")
    wrong = [name for name, size in sizes.items() if size < 1 and size != -1]
    if wrong:
        raise ValueError(f"config.mesh.{wrong[0]} is {sizes[wrong[0]]}; it must be at least 1, or -1 for all devices left")
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ValueError(f"config.mesh has -1 for {open_axes}; only one size can be left open")
    if open_axes:
        sizes[open_axes[0]] = count // -math.prod(sizes.values())
    if not planned and math.prod(sizes.values()) == 1:
        return None
    return distributed.make_mesh(**sizes, devices=devices[:count])


def build_sampling_mesh(
    config: ConfigDict, mesh: jax.sharding.Mesh | None, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh | None:
    """The last `config.mesh.actors` of all devices, or those of the mesh; None for one that does all. See `build_mesh`.

    Raises ValueError: `config.mesh.sampling_tensor` does not divide them.
    """
    tensor, actors = config.mesh.sampling_tensor, config.mesh.actors
    if mesh is None and not actors:
        return None
    try:
        own = np.array((devices or jax.devices())[-actors:]) if actors else mesh.devices
        return distributed.sampling_mesh(own, tensor or (1 if actors else mesh.shape["tensor"]), config.mesh.expert)
    except ValueError as error:
        raise ValueError(f"config.mesh.sampling_tensor: {error}") from error
