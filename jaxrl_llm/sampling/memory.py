"""How many slots memory has room for."""

import os

import jax

SHARE = 0.25  # of a device's memory, for the tails of slots
UNKNOWN = 2**34  # bytes that a device is taken to have where nobody tells


def most_slots(network, columns: int, memory: int = 0) -> int:
    """Slots whose tails of `columns` columns fit into a quarter of a device's memory, at least 1.

    What is free at the moment plays no part: another number of slots rounds otherwise, and a run that is resumed must not.

    Args:
      network: with `init_tails(slots, width)`.
      columns: longest tail.
      memory: bytes of the device; 0 for those of this process's.
    """
    tails = jax.eval_shape(lambda: network.init_tails(1, columns))
    # Tails grow by doubling, and while they do, the old ones are still there.
    each = 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tails))
    return max(int(SHARE * (memory or device_memory()) / max(each, 1)), 1)


def device_memory() -> int:
    """Bytes that a device has: as it says itself, or, of a CPU's devices, its share of what the system has."""
    told = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in told:
        return told["bytes_limit"]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    except (ValueError, OSError, AttributeError):
        return UNKNOWN
