"""Eight virtual CPU devices for every test, no accelerator, and a compiler that is quick rather than good."""

import importlib.util
import itertools
import mmap
import os
import pathlib

# Programs of tests run a few times, and to compile them is most of the work, which these cut to a third. With
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 the compiler is that of users: so `.ci/run` runs the tests marked `optimised` once more.
QUICK = {"xla_cpu_use_fusion_emitters": "false", "xla_cpu_parallel_codegen_split_count": "1"}


def known_flags() -> list[str]:
    """Those of `QUICK` that this jaxlib has: an unknown one would end the process."""
    folder = pathlib.Path(importlib.util.find_spec("jaxlib").origin).parent
    known = set()
    for path in folder.glob("libjax_common.*"):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
            known |= {name for name in QUICK if library.find(name.encode()) >= 0}
    return [f"--{name}={QUICK[name]}" for name in sorted(known)]


os.environ["JAX_PLATFORMS"] = "cpu"
# The workers of a test run inherit what the first process has set.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    quick = known_flags() if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" else []
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", *quick])
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
