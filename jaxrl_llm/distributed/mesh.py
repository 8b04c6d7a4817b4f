"""The mesh of devices."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

# From the outermost to the innermost, whose devices are neighbours: those that speak most often, and wait for each other.
AXES = ("data", "fsdp", "expert", "context", "tensor")
NO_MESH = Mesh(np.empty((), object), ())  # for what runs on one device while another mesh is set


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, expert: int = 1, context: int = 1, *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:  # fmt: skip
    """Mesh of all devices with the axes `AXES`.

    Args:
      data: groups of devices that hold copies of the parameters and see different rows.
      fsdp: devices that share out parameters, optimizer state and rows (https://arxiv.org/abs/2304.11277).
      tensor: devices that share out heads, the MLP's width and the vocabulary (https://arxiv.org/abs/1909.08053).
      expert: devices that share out experts, whole ones (https://arxiv.org/abs/2006.16668); all else they do as those of fsdp.
      context: devices that share out the columns of each row, and all else as those of fsdp.
      devices: in place of `jax.devices()`; those of a topology, for instance, to compile ahead of time.

    Raises ValueError: the product of the sizes is not the number of devices, or slices do not divide `data`.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor, "expert": expert, "context": context}
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
        asked = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(
            f"{asked} make a mesh of {math.prod(sizes.values())} devices, but there are {len(devices)}; choose positive sizes "
            f"whose product is {len(devices)}"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if data % slices:
        raise ValueError(f"data={data} is no multiple of the {slices} slices, which only data may connect, over their network")
    shape = tuple(sizes[axis] for axis in AXES)
    # Axes may share out a side of the torus, such as 16 x 4 on a slice of 8 x 8, which `jax.make_mesh` refuses.
    split = {"devices": devices, "allow_split_physical_axes": True}
    if slices > 1:
        between = tuple(slices if axis == "data" else 1 for axis in AXES)
        within = tuple(size // other for size, other in zip(shape, between, strict=True))
        places = mesh_utils.create_hybrid_device_mesh(within, between, **split)
    else:
        places = mesh_utils.create_device_mesh(shape, **split)
    return Mesh(places, AXES, axis_types=(AxisType.Auto,) * len(AXES))
