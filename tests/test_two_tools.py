"""The agent of the benchmarks, its demonstrations, and a run that serves it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.slow
def test_a_policy_is_served_to_an_agent_with_two_tools_and_learns(tmp_path):
    places = os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parent)])
    options = [f"--workdir={tmp_path / 'run'}", "--sft_steps=2", "--rl_steps=1"]
    environment = os.environ | {"PYTHONPATH": places, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "two_tools.py", *options], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "episode/turns" in line]
    assert len(steps) == 1 and steps[0]["episode/failed"] == 0 and steps[0]["logp_gap"] < 1e-4 and summary
