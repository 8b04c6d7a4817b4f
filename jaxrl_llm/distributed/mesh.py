"""The mesh of devices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor")
NO_MESH = Mesh(np.empty((), object), ())  # for what runs on one device while another mesh is set


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh of all devices with the axes `AXES`.

    Args:
      data: groups of devices that hold copies of the parameters and see different rows.
      fsdp: devices that share out parameters, optimizer state and rows (https://arxiv.org/abs/2304.11277).
      tensor: devices that share out heads, the MLP's width and the vocabulary (https://arxiv.org/abs/1909.08053).
      devices: in place of `jax.devices()`; those of a topology, for instance, to compile ahead of time.

    Raises:
      ValueError: the product of the three sizes is not the number of devices, or slices do not divide `data`.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = (data, fsdp, tensor)
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ValueError(
            f"data={data}, fsdp={fsdp} and tensor={tensor} make a mesh of {math.prod(sizes)} devices, but there are "
            f"{len(devices)}; choose positive sizes whose product is {len(devices)}"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if data % slices:
        raise ValueError(f"data={data} is no multiple of the {slices} slices, which only data may connect, over their network")
    # Axes may share out a side of the torus, such as 16 x 4 on a slice of 8 x 8, which `jax.make_mesh` refuses.
    split = {"devices": devices, "allow_split_physical_axes": True}
    if slices > 1:
        places = mesh_utils.create_hybrid_device_mesh((data // slices, fsdp, tensor), (slices, 1, 1), **split)
    else:
        places = mesh_utils.create_device_mesh(sizes, **split)
    return Mesh(places, AXES, axis_types=(AxisType.Auto,) * len(AXES))
