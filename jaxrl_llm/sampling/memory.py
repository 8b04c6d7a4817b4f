"""How many slots memory has room for."""

from __future__ import annotations

import os

import jax

SHARE = 0.5  # of the free memory, for the tails of slots
UNKNOWN = 2**32  # bytes that are taken for free where nobody tells


def most_slots(network, columns: int) -> int:
    """Slots whose tails of `columns` columns fit into half of the memory that is free, at least 1.

    Args:
      network: with `init_tails(slots, width)`.
      columns: longest tail.
    """
    tails = jax.eval_shape(lambda: network.init_tails(1, columns))
    # Tails grow by doubling, and while they do, the old ones are still there.
    each = 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tails))
    return max(int(SHARE * free_memory() / max(each, 1)), 1)


def free_memory() -> int:
    """Bytes that are free on a device: as the device says, or on a CPU as the system does."""
    device = jax.local_devices()[0]
    told = device.memory_stats() or {}
    if "bytes_limit" in told:
        return told["bytes_limit"] - told.get("bytes_in_use", 0)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return UNKNOWN
