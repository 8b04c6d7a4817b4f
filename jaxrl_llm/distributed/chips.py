"""TPU chips and their links, and the least time that a program can take on them.

The time of a program is the largest of three, as if all overlapped: multiplications at the chip's peak, bytes of its memory at
the memory's speed, and bytes on links at the links' speed. It is a lower bound of a step: no program reaches all its peaks.
"""

import dataclasses
import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrl_llm.compose import near


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, in units a second where it is a speed."""

    flops: float  # of multiplications in bfloat16
    memory: float  # bytes of HBM
    memory_speed: float  # likewise
    link: float  # bytes one way of one link to a neighbour
    dimensions: int  # of the torus
    network: float  # bytes of the chip's share of the network between slices
    devices: int = 1  # of JAX on a chip, as the topologies of libtpu have them


# FLOPs, memory, its speed and links, which are the bandwidth of a chip divided by its ports, one way:
# https://docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e and /tpu7x. Of v4 the link is the 45 GB/s that
# https://jax-ml.github.io/scaling-book/tpus measures. Between slices: of v5e and v6e the pod's bandwidth by its 256 chips (page
# of v6e); of the others, the 6.25 GB/s of a v5p chip in the scaling book.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 45e9, 3, 6.25e9, devices=2),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 50e9, 2, 3.125e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 100e9, 3, 6.25e9),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 100e9, 2, 12.5e9),
    "tpu7x": Chip(2307e12, 192 * 2**30, 7380e9, 100e9, 3, 6.25e9, devices=2),
}
POD_SIDE = 16  # chips of a side of a v5e or v6e pod; only a whole side closes to a ring
CUBE_SIDE = 4  # chips of a side of the cubes of which tori of three dimensions are made; whole cubes close to rings


class Slice(NamedTuple):
    """Chips of one kind, wired as a torus, and perhaps several such."""

    chip: Chip  # its figures
    name: str  # such as "v5e:4x4"
    sides: tuple[int, ...]  # chips along each dimension
    slices: int = 1  # how many

    @property
    def devices(self) -> int:
        """Devices of JAX in all of it."""
        return math.prod(self.sides) * self.slices * self.chip.devices


def parse_topology(name: str, slices: int = 1) -> Slice:
    """The slice that a name such as "v5p:4x4x4" stands for.

    Raises ValueError: an unknown chip, sides that are no numbers or of another number of dimensions.
    """
    kind, _, sides = name.partition(":")
    known = ", ".join(f"{kind}:{'x'.join('4' * chip.dimensions)}" for kind, chip in CHIPS.items())
    if kind not in CHIPS:
        told = f"--topology={name}: there is no chip {kind!r}{near(kind, CHIPS)}"
        raise ValueError(f"{told}; write a chip and the sides of a slice: {known}")
    sizes = sides.split("x")
    if len(sizes) != CHIPS[kind].dimensions or not all(size.isdecimal() and int(size) for size in sizes):
        raise ValueError(f"--topology={name}: a slice of {kind} has {CHIPS[kind].dimensions} sides; write it as in {known}")
    if slices < 1:
        raise ValueError(f"--slices={slices}; it must be at least 1")
    return Slice(CHIPS[kind], name, tuple(map(int, sizes)), slices)


def topology_devices(wanted: Slice) -> Sequence[jax.Device]:
    """Devices that programs can be compiled for, none of which is there.

    Raises ValueError: libtpu is not installed, or has no slice of these sides.
    """
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("libtpu is not installed, which compiles for TPU without one: pip install libtpu, or jaxrl_llm[tpu]")
    # No chip is held, so that others may load libtpu too, and no machine of Google Cloud is asked what it is.
    for name in ("ALLOW_MULTIPLE_LIBTPU_LOAD", "TPU_SKIP_MDS_QUERY"):
        os.environ.setdefault(name, "1")
    options = {"num_slices": wanted.slices} if wanted.slices > 1 else {}
    try:
        found = topologies.get_topology_desc(wanted.name, platform="tpu", **options).devices
    except Exception as error:  # of the compiler, of several kinds
        raise ValueError(f"--topology={wanted.name}: libtpu has no such slice: {str(error).strip().splitlines()[0]}") from error
    if len(found) != wanted.devices:
        raise ValueError(
            f"--topology={wanted.name}: libtpu has {len(found)} devices there, where {wanted.devices} are expected"
        )
    return found


def link_speed(wanted: Slice, mesh: Mesh, axes: Sequence[str]) -> float:
    """Bytes a second that a device can send along these axes of a mesh: over all dimensions of the torus that they go along,
    both ways where they close to a ring; over the network where they leave the slice."""
    at = {name: slice(None) if name in axes else 0 for name in mesh.axis_names}
    group = mesh.devices[tuple(at.values())].reshape(-1)
    if len({getattr(device, "slice_index", 0) for device in group}) > 1:
        return wanted.chip.network / wanted.chip.devices
    spanned = [len(set(places)) for places in np.array([device.coords for device in group]).T]
    rings = all(side % CUBE_SIDE == 0 for side in wanted.sides)
    speed = 0.0
    for side, count in zip(wanted.sides, spanned, strict=False):
        closed = count == side and (rings if wanted.chip.dimensions == 3 else side == POD_SIDE)
        speed += (count > 1) * wanted.chip.link * (2 if closed else 1)
    # The two devices of a chip share its links; between themselves they are no slower.
    return (speed or wanted.chip.link) / wanted.chip.devices


def seconds(wanted: Slice, mesh: Mesh, flops: float, moved: float, sent: Mapping[str, float]) -> dict[str, float]:
    """Least seconds of a program, by what could bound it: "compute", "memory" and "links".

    Args:
      wanted: the slice.
      mesh: over its devices.
      flops: of a device.
      moved: bytes between a device and its memory.
      sent: bytes that a device sends, by axes such as "fsdp" or "data+fsdp"; one after the other, as axes may share links.
    """
    chip, devices = wanted.chip, wanted.chip.devices
    links = sum(count / link_speed(wanted, mesh, axes.split("+")) for axes, count in sent.items())
    return {"compute": flops * devices / chip.flops, "memory": moved * devices / chip.memory_speed, "links": links}
