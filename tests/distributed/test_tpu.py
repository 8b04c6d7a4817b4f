"""What a TPU slice would run compiles for it and fits, found out without one. Wants libtpu, which needs no TPU for this."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

import jaxrl_llm

SKIP = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
MEMORY = {"v5e:4x4": 16.0, "v5p:2x2x4": 95.0}  # GB of a chip


def compiled(*arguments) -> dict:
    """What the program `compile_for_tpu.py` found."""
    program = pathlib.Path(__file__).with_name("compile_for_tpu.py")
    package = str(pathlib.Path(jaxrl_llm.__file__).parents[1])
    of_tests = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {name: value for name, value in os.environ.items() if name not in of_tests}
    # Without the last one, libtpu looks for the metadata server of Google Cloud.
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": package, "TPU_SKIP_MDS_QUERY": "1"}
    # Workers of a test run compile at once; no chip is held, so the lock of libtpu guards nothing here.
    environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"
    done = subprocess.run([sys.executable, program, *arguments], env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(figures, indent=1))
    return figures


def total(program: dict) -> float:
    """GB of a chip, with what lies beside the program."""
    assert not program["fault"], program["fault"]
    return sum(program["memory"].values()) / 1e9


@SKIP
@pytest.mark.slow
@pytest.mark.parametrize("network", ["dense", "local and global", "experts"])
def test_update_and_sampler_compile_for_a_slice_and_fit(network):
    topology = "v5e:4x4"
    figures = compiled(topology, network)
    update, sampler = figures["update"], figures["sampler"]
    assert total(update) < MEMORY[topology] and total(sampler) < MEMORY[topology]
    # Parameters and both moments of Adam are split over all axes but data, and given up to their successors.
    share = 3 * figures["bytes"] * figures["parameters"] / figures["shards"]
    assert share < update["memory"]["parameters"] + update["memory"]["optimizer"] < 1.05 * share
    assert update["memory"]["outputs"] < 0.01 * share
    # The head is never whole on a chip, and sampling moves activations alone.
    assert update["gathered"] < figures["head"] / 4
    # Of experts those of the tokens of contexts, which all devices that share out experts see: half of 8 x 512 x 2048.
    assert sampler["gathered"] < (5e6 if network == "experts" else 2e6)
    assert not any("data" in name for name, sent in sampler["sent"].items() if sent > 1e5)


@SKIP
@pytest.mark.slow
@pytest.mark.parametrize(("topology", "network", "tokens", "rows"), [
    ("v5e:4x4", "dense", 8192, 32), ("v5p:2x2x4", "dense", 32_768, 8), ("v5e:4x4", "split columns", 8192, 16),
])  # fmt: skip
def test_the_kernel_compiles_inside_updates_of_long_rows(topology, network, tokens, rows):
    assert total(compiled(topology, network, str(tokens), str(rows))["update"]) < MEMORY[topology]
