"""Chips, names of slices, and the least time of a program."""

import math

import pytest

from jaxrl_llm.distributed import make_mesh
from jaxrl_llm.distributed.chips import CHIPS, link_speed, parse_topology, seconds


class Device:
    """A place on a torus."""

    def __init__(self, *coords, slice_index=0):
        self.coords, self.slice_index = coords, slice_index


class Mesh:
    """Two axes of devices, those of the second along a side."""

    def __init__(self, sides, slices=1):
        import numpy as np

        first, second = sides
        self.axis_names, self.shape = ("fsdp", "tensor"), {"fsdp": first, "tensor": second}
        places = [[Device(x, y, 0, slice_index=x * slices // first) for y in range(second)] for x in range(first)]
        self.devices = np.array(places, object)


def test_names_of_slices():
    assert parse_topology("v5p:4x4x8").sides == (4, 4, 8)
    assert parse_topology("v5e:4x4", slices=2).devices == 32
    assert parse_topology("tpu7x:2x2x2").devices == 16


@pytest.mark.parametrize(("name", "slices", "message"), [
    ("v9:4x4", 1, "no chip 'v9'.*v5e:4x4"), ("v5e", 1, "2 sides"), ("v5e:4x4x4", 1, "2 sides"), ("v5p:4x4", 1, "3 sides"),
    ("v5e:4xfour", 1, "2 sides"), ("v5e:0x4", 1, "2 sides"), ("v5e:4x4", 0, "at least 1"),
])  # fmt: skip
def test_other_names_are_refused(name, slices, message):
    with pytest.raises(ValueError, match=message):
        parse_topology(name, slices)


def test_links_close_to_rings_where_the_torus_does():
    half, whole = parse_topology("v5e:8x8"), parse_topology("v5e:16x16")
    link = CHIPS["v5e"].link
    assert link_speed(half, Mesh((8, 8)), ("tensor",)) == link
    assert link_speed(whole, Mesh((16, 16)), ("tensor",)) == 2 * link
    assert link_speed(whole, Mesh((16, 16)), ("fsdp", "tensor")) == 4 * link
    assert link_speed(parse_topology("v5e:4x8", 2), Mesh((8, 8), slices=2), ("fsdp",)) == CHIPS["v5e"].network


def test_the_least_time_of_a_program():
    wanted = parse_topology("v5e:16x16")
    found = seconds(wanted, Mesh((16, 16)), 197e12, 819e9 / 2, {"tensor": 50e9, "fsdp": 25e9})
    assert found == pytest.approx({"compute": 1.0, "memory": 0.5, "links": 0.75})


def test_axes_may_share_a_side_of_the_torus():
    assert math.prod(make_mesh(fsdp=4, tensor=2).devices.shape) == 8
