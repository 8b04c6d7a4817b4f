"""Runs of several processes, each with its own devices: real ones, that talk over the loopback interface."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxrl_llm import distributed
from jaxrl_llm.training.metrics import read_jsonl

TESTS = pathlib.Path(__file__).parents[1]
DEVICES, STEPS = 4, 6
CONFIG = {
    "mesh.data": 2, "mesh.fsdp": 2, "network.hidden_size": 32, "network.intermediate_size": 64, "network.head_dim": 8,
    "task.options.size": 200, "task.test_options.size": 8, "sft.steps": 2, "sft.batch": 8, "sft.row_tokens": 72,
    "rl.steps": STEPS - 2, "rl.prompts": 4, "rl.row_tokens": 72, "rl.max_new_tokens": 12, "method.options.samples": 4,
    "rewards.names": "('distributed.host_rewards:digits',)", "evaluation.reward": "distributed.host_rewards:longest",
    "evaluation.prompts": 4, "evaluation.batch": 4, "evaluation.every": 2, "checkpoint.every": 2, "rewards.workers": 1,
    "log.trackers": (),
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(workdir, processes: int, changes=None, of_last=None) -> list[subprocess.Popen]:
    """The processes of a run, each with its share of the devices and a file of what it says; the last may be told otherwise."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // processes}",
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / f"compiled_{processes}"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    config = CONFIG | (changes or {})
    address = f"127.0.0.1:{free_port()}"
    started = []
    for number in range(processes):
        hosts = [f"--coordinator={address}", f"--processes={processes}", f"--process={number}"]
        told = config | (of_last or {}) if number == processes - 1 else config
        overrides = [f"--config.{name}={value}" for name, value in told.items()]
        command = [sys.executable, "-m", "jaxrl_llm", "train", f"--workdir={workdir}", *overrides, *hosts]
        with open(said(workdir, number), "w") as file:
            started.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
    return started


def said(workdir, number: int) -> pathlib.Path:
    return workdir.parent / f"{workdir.name}_{number}.txt"


def finish(workdir, started) -> list[int]:
    try:
        return [process.wait(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()


def finish_well(workdir, started) -> None:
    codes = finish(workdir, started)
    assert codes == [0] * len(codes), "\n".join(said(workdir, number).read_text() for number in range(len(codes)))


def wait_for_steps(workdir, count: int) -> None:
    path, until = workdir / "metrics.jsonl", time.monotonic() + 300
    while not (path.exists() and path.read_bytes().count(b"\n") >= count):
        assert time.monotonic() < until, said(workdir, 0).read_text()
        time.sleep(0.05)


def final_arrays(workdir):
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        path = manager.directory / str(manager.latest_step()) / "arrays"
    handler = ocp.PyTreeCheckpointHandler()
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(path).tree)
    return handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=on_host))


def assert_equal_up_to_rounding(one, other) -> None:
    first, second = (read_jsonl(workdir / "metrics.jsonl") for workdir in (one, other))
    assert [record["step"] for record in second] == list(range(1, STEPS + 1))
    for mine, theirs in zip(first, second, strict=True):
        assert mine.keys() == theirs.keys() and mine.pop("phase") == theirs.pop("phase")
        for name in mine.keys() - {"logp_gap"}:
            np.testing.assert_allclose(theirs[name], mine[name], rtol=1e-5, atol=1e-6, err_msg=f"{name} of step {mine['step']}")
        learned_since = mine["logp_gap"] if "staleness" in mine else 0
        assert abs(theirs.get("logp_gap", 0) - learned_since) < 1e-4
    assert_same_completions(one, other)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), final_arrays(one)["params"], final_arrays(other)["params"]
    )


def assert_same_completions(one, other) -> None:
    mine, theirs = ({file.name: file.read_bytes() for file in run.glob("completions/*")} for run in (one, other))
    assert mine and mine == theirs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run by one process and by two."""
    folder = tmp_path_factory.mktemp("hosts")
    for processes in (1, 2):
        finish_well(folder / f"by_{processes}", start(folder / f"by_{processes}", processes))
    return folder


@pytest.mark.slow
def test_two_processes_give_the_run_of_one_and_the_first_speaks(runs):
    assert_equal_up_to_rounding(runs / "by_1", runs / "by_2")
    rewards = [record["reward_std"] for record in read_jsonl(runs / "by_2" / "metrics.jsonl")[2:]]
    assert all(value > 0 for value in rewards), "nothing was learned"
    assert "Held-out accuracy" in said(runs / "by_2", 0).read_text()
    assert "Held-out accuracy" not in said(runs / "by_2", 1).read_text()
    assert json.loads((runs / "by_2" / "summary.json").read_text())["steps"] == STEPS


@pytest.mark.slow
def test_stopped_and_killed_processes_go_on_exactly_and_in_other_numbers(runs):
    workdir = runs / "stopped"
    started = start(workdir, 2)
    wait_for_steps(workdir, 3)
    started[1].send_signal(signal.SIGTERM)
    finish_well(workdir, started)
    assert all("stopped by SIGTERM after step" in said(workdir, number).read_text() for number in (0, 1))
    stopped = len(read_jsonl(workdir / "metrics.jsonl"))
    assert stopped < STEPS
    started = start(workdir, 2)
    wait_for_steps(workdir, stopped + 1)
    started[1].kill()
    killed = time.monotonic()
    codes = finish(workdir, started)
    assert codes[1] == -signal.SIGKILL and codes[0] != 0 and time.monotonic() - killed < 60
    assert "unhealthy" in (text := said(workdir, 0).read_text()) and "\n1\n" in text, text
    more, other = runs / "more", runs / "other_mesh"
    shutil.copytree(workdir, more)
    shutil.copytree(workdir, other)
    finish_well(workdir, start(workdir, 2))
    assert (workdir / "metrics.jsonl").read_bytes() == (runs / "by_2" / "metrics.jsonl").read_bytes()
    assert_same_completions(runs / "by_2", workdir)
    jax.tree.map(np.testing.assert_array_equal, final_arrays(runs / "by_2"), final_arrays(workdir))
    finish_well(more, start(more, 4))
    assert_equal_up_to_rounding(runs / "by_2", more)
    finish_well(other, start(other, 1, {"mesh.data": 4, "mesh.fsdp": 1}))
    assert_equal_up_to_rounding(runs / "by_2", other)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"rl.staleness": 2, "rl.in_flight": 4}, {"rl.staleness": 1, "mesh.actors": 2, "mesh.fsdp": 1}], ids=str
)
def test_samples_ahead_of_two_processes_are_those_of_one(tmp_path, changes):
    """Where one has a thread, two sample between the updates of a step and what these say, in one order on both."""
    for processes in (1, 2):
        finish_well(tmp_path / f"by_{processes}", start(tmp_path / f"by_{processes}", processes, changes))
    assert_equal_up_to_rounding(tmp_path / "by_1", tmp_path / "by_2")
    ages = [record["staleness"] for record in read_jsonl(tmp_path / "by_2" / "metrics.jsonl")[2:]]
    assert ages[0] == 0 and changes["rl.staleness"] - 1 < ages[-1] <= changes["rl.staleness"]
    if "mesh.actors" in changes:
        return
    workdir = tmp_path / "stopped"
    started = start(workdir, 2, changes)
    wait_for_steps(workdir, 4)
    started[1].send_signal(signal.SIGTERM)
    finish_well(workdir, started)
    assert "stopped by SIGTERM after step" in said(workdir, 0).read_text()
    finish_well(workdir, start(workdir, 2, changes | {"rl.overlap": False}))
    assert (workdir / "metrics.jsonl").read_bytes() == (tmp_path / "by_2" / "metrics.jsonl").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, final_arrays(tmp_path / "by_2"), final_arrays(workdir))


@pytest.mark.slow
def test_processes_that_were_started_unlike_are_refused(tmp_path):
    workdir = tmp_path / "run"
    codes = finish(workdir, start(workdir, 2, of_last={"rl.prompts": 8}))
    assert codes[0] == 2 and codes[1] != 0
    assert "config.rl.prompts is 4 in process 0 and 8 in process 1; start all" in said(workdir, 0).read_text()
    assert not workdir.exists()


def test_what_describes_several_processes_is_given_whole():
    with pytest.raises(ValueError, match="--processes, --process: missing"):
        distributed.start("localhost:1")
    with pytest.raises(ValueError, match="--process=2 is none of --processes=2"):
        distributed.start("localhost:1", 2, 2)
    distributed.start(processes=1)
    assert distributed.is_first() and distributed.gathered("alone") == ["alone"]


@pytest.mark.slow
def test_episodes_of_two_processes_are_those_of_one(tmp_path):
    """The first process asks the environment; when answers are taken in is the same in all."""
    changes = {
        "environment.name": "training.tiny_environments:twice", "environment.turn_tokens": 4, "rl.slots": 8,
        "rewards.names": "('environment',)", "evaluation.reward": "environment",
    }  # fmt: skip
    for processes in (1, 2):
        finish_well(tmp_path / f"by_{processes}", start(tmp_path / f"by_{processes}", processes, changes))
    assert_equal_up_to_rounding(tmp_path / "by_1", tmp_path / "by_2")
