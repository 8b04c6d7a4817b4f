"""From a configuration to the meshes that train and sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from jaxrl_llm import distributed


def build_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh | None:
    """The mesh that the configuration asks for; None for one device. One of its sizes may be -1: all that are left.

    Args:
      config: the configuration.
      devices: those to plan for, always a mesh; by default those of this process.

    Raises:
      ValueError: the sizes do not fit the devices.
    """
    sizes = config.mesh.to_dict()
    sizes.pop("sampling_tensor")
    wrong = [name for name, size in sizes.items() if size < 1 and size != -1]
    if wrong:
        raise ValueError(f"config.mesh.{wrong[0]} is {sizes[wrong[0]]}; it must be at least 1, or -1 for all devices left")
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ValueError(f"config.mesh has -1 for {open_axes}; only one size can be left open")
    if open_axes:
        sizes[open_axes[0]] = (jax.device_count() if devices is None else len(devices)) // -math.prod(sizes.values())
    one = devices is None and math.prod(sizes.values()) == 1
    return None if one else distributed.make_mesh(**sizes, devices=devices)


def build_sampling_mesh(config: ConfigDict, mesh: jax.sharding.Mesh | None) -> jax.sharding.Mesh | None:
    """The devices of the mesh for sampling; None for one device.

    Raises:
      ValueError: `config.mesh.sampling_tensor` does not divide them.
    """
    if mesh is None:
        return None
    try:
        return distributed.sampling_mesh(mesh, config.mesh.sampling_tensor)
    except ValueError as error:
        raise ValueError(f"config.mesh.sampling_tensor: {error}") from error
