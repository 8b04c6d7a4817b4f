"""Eight virtual CPU devices for every test, and no accelerator."""

import itertools
import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAXRL_LLM_COMPILATION_CACHE", "off")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_TESTS = itertools.count()
# Each compiled program maps some memory, and Linux allows a process 65530 maps: at the limit the compiler crashes.
MOST_MAPS = 20_000


def pytest_runtest_teardown():
    """Forgets compiled programs before a worker that has run many tests holds too many of them."""
    maps = pathlib.Path("/proc/self/maps")
    if next(_TESTS) % 25 == 24 and maps.exists() and len(maps.read_bytes().splitlines()) > MOST_MAPS:
        import jax

        jax.clear_caches()
