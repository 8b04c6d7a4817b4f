"""From a configuration to the meshes that train and sample."""

import itertools
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
    learners, _ = _split(devices, sizes.pop("actors"))
    wrong = [name for name, size in sizes.items() if size < 1 and size != -1]
    if wrong:
        raise ValueError(f"config.mesh.{wrong[0]} is {sizes[wrong[0]]}; it must be at least 1, or -1 for all devices left")
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ValueError(f"config.mesh has -1 for {open_axes}; only one size can be left open")
    if open_axes:
        sizes[open_axes[0]] = len(learners) // -math.prod(sizes.values())
    if not planned and math.prod(sizes.values()) == 1:
        return None
    return distributed.make_mesh(**sizes, devices=learners)


def _split(devices: Sequence[jax.Device], actors: int) -> tuple[list[jax.Device], list[jax.Device]]:
    """The devices that learn, and those that do not: the last of each host, since each has a part in every program."""
    if not actors:
        return list(devices), []
    hosts: dict[int, list[jax.Device]] = {}
    for device in devices:
        hosts.setdefault(device.process_index, []).append(device)
    each, left = divmod(actors, len(hosts))
    if left or each >= min(map(len, hosts.values())):
        of_hosts = f" of {len(hosts)} hosts, each of which has as many of both" if len(hosts) > 1 else ""
        raise ValueError(f"config.mesh.actors is {actors} of {len(devices)} devices{of_hosts}; leave some that learn")
    if len(hosts) > 1 and devices[0].platform == "tpu":
        raise ValueError(
            f"config.mesh.actors is {actors} on {len(hosts)} hosts with TPUs, whose programs take all chips of a host or none; "
            "set it to 0: all chips sample and learn"
        )
    apart = [(own[: len(own) - each], own[len(own) - each :]) for own in hosts.values()]
    learners, others = (list(itertools.chain(*side)) for side in zip(*apart, strict=True))
    return learners, others


def build_sampling_mesh(
    config: ConfigDict, mesh: jax.sharding.Mesh | None, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh | None:
    """The `config.mesh.actors` that do not learn, or the devices of the mesh; None for one that does all. See `build_mesh`.

    Raises ValueError: `config.mesh.sampling_tensor` does not divide them.
    """
    tensor, actors = config.mesh.sampling_tensor, config.mesh.actors
    if mesh is None and not actors:
        return None
    try:
        own = np.array(_split(devices or jax.devices(), actors)[1]) if actors else mesh.devices
        found = distributed.sampling_mesh(own, tensor or (1 if actors else mesh.shape["tensor"]), config.mesh.expert)
    except ValueError as error:
        raise ValueError(f"config.mesh.sampling_tensor: {error}") from error
    if actors and any(len({device.process_index for device in copy.flat}) > 1 for copy in found.devices):
        raise ValueError(
            f"config.mesh.sampling_tensor: {found.devices[0].size} actors share out a copy of the parameters, and are those of "
            f"several hosts; choose a divisor of what each has of config.mesh.actors={actors}"
        )
    return found
