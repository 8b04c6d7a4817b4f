"""G1: a run that is killed at any moment and resumed equals the uninterrupted run bit for bit."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from training import crash_runner

from jaxrl_llm.training import loop

HERE = pathlib.Path(__file__).parent
# The moment of each kill: what has begun, for which time in its process, and seconds after it began.
KILLS = (("save", 1, 0.001), ("sample", 2, 0.01), ("update", 5, 0.002), ("save", 2, 0.02), ("sample", 3, 0.2))


def start(workdir, cache, *arguments, runner="crash_runner.py"):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "",
    }
    command = [sys.executable, str(HERE / runner), str(workdir), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def final_arrays(workdir):
    handlers = {"arrays": ocp.PyTreeCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(workdir / "checkpoints", item_handlers=handlers) as manager:
        step = manager.latest_step()
        arguments = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(), progress=ocp.args.JsonRestore())
        restored = manager.restore(step, args=arguments)
    return step, jax.tree.map(np.asarray, restored["arrays"]), restored["progress"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    code, output = finish(start(workdir, cache))
    assert code == 0, output
    return workdir


def assert_same_run(one, other):
    step, arrays, progress = final_arrays(one)
    other_step, other_arrays, other_progress = final_arrays(other)
    assert step == other_step and progress == other_progress
    assert jax.tree.structure(arrays) == jax.tree.structure(other_arrays)
    for (path, mine), theirs in zip(jax.tree.leaves_with_path(arrays), jax.tree.leaves(other_arrays), strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=jax.tree_util.keystr(path))
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    mine, theirs = ({file.name: file.read_bytes() for file in run.glob("completions/*")} for run in (one, other))
    assert mine == theirs


@pytest.mark.slow
def test_killed_five_times_equals_uninterrupted(tmp_path, cache, uninterrupted):
    for kill in KILLS:
        code, output = finish(start(tmp_path, cache, *kill))
        assert code == -signal.SIGKILL, f"{kill} was not reached: {output}"
    code, output = finish(start(tmp_path, cache))
    assert code == 0, output
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "field", "total"),
    [("repo", "count", 112), ("partial_rollouts", "length", None), ("uncertain_prompts", "visits", 112)],
)
def test_the_state_of_a_strategy_survives_kills(method, field, total, tmp_path, cache):
    runner = "strategy_crash_runner.py"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, output = finish(start(whole, cache, method, runner=runner))
    assert code == 0, output
    for kill in (("sample", 4, 0.01), ("update", 3, 0.002)):
        code, output = finish(start(killed, cache, method, *kill, runner=runner))
        assert code == -signal.SIGKILL, f"{kill} was not reached: {output}"
    code, output = finish(start(killed, cache, method, runner=runner))
    assert code == 0, output
    assert_same_run(killed, whole)
    known = final_arrays(whole)[1]["method_state"]["strategy"][field]
    assert known.any() and total in (None, known.sum())


@pytest.mark.slow
def test_episodes_survive_kills(tmp_path, cache):
    runner = "strategy_crash_runner.py"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, output = finish(start(whole, cache, "gigpo", runner=runner))
    assert code == 0, output
    for kill in (("turn", 14, 0.01), ("turn", 9, 0.001), ("update", 3, 0.002)):
        code, output = finish(start(killed, cache, "gigpo", *kill, runner=runner))
        assert code == -signal.SIGKILL, f"{kill} was not reached: {output}"
    code, output = finish(start(killed, cache, "gigpo", runner=runner))
    assert code == 0, output
    assert_same_run(killed, whole)
    assert '"ended": "done"' in next((whole / "completions").iterdir()).read_text()


@pytest.mark.slow
def test_learning_happened(uninterrupted):
    """The comparison above would say nothing if parameters stood still."""
    _, arrays, progress = final_arrays(uninterrupted)
    assert progress["phase"] == "rl" and progress["phase_step"] == 7 and arrays["skipped"] == 0
    reference = ocp.StandardCheckpointer().restore(uninterrupted / "reference")
    moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(arrays["params"]), jax.tree.leaves(reference), strict=True)]
    assert min(moved) > 0


@pytest.mark.slow
def test_signals_save_and_resume_exactly(tmp_path, cache, uninterrupted):
    metrics = tmp_path / "metrics.jsonl"
    for number, lines in ((signal.SIGINT, 3), (signal.SIGTERM, 6)):
        process = start(tmp_path, cache)
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= lines):
            time.sleep(0.01)
        if number == signal.SIGTERM:  # meanwhile the workdir is that of the process
            with pytest.raises(ValueError, match=f"process {process.pid} on host .* is training in"):
                loop.train(crash_runner.tiny_config(), tmp_path)
        process.send_signal(number)
        _, output = finish(process)
        assert f"stopped by {number.name} after step" in output and "the same command resumes the run" in output
        assert metrics.read_text().count("\n") < 12
    code, output = finish(start(tmp_path, cache))
    assert code == 0, output
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.slow
def test_finished_run_changes_nothing(uninterrupted, cache):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    code, output = finish(start(uninterrupted, cache))
    assert code == 0, output
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_resume_with_another_configuration_is_refused(tmp_path):
    from ml_collections import ConfigDict

    from jaxrl_llm.training.run import _check_same_run

    config = ConfigDict({"seed": 0, "rl": {"steps": 3, "prompts": 2, "optimizer": {"decay": "constant"}}})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    config.rl.steps = 5
    _check_same_run(config, tmp_path, tmp_path)
    config.rl.prompts = 4
    with pytest.raises(ValueError, match=r"config\.rl\.prompts is 4.*made with 2.*another --workdir"):
        _check_same_run(config, tmp_path, tmp_path)


def test_more_steps_are_refused_where_the_learning_rate_depends_on_them(tmp_path):
    from ml_collections import ConfigDict

    from jaxrl_llm.training.run import _check_same_run

    config = ConfigDict({"rl": {"steps": 3, "optimizer": {"decay": "linear"}}})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    config.rl.steps = 5
    with pytest.raises(ValueError, match=r"config\.rl\.steps is 5.*made with 3"):
        _check_same_run(config, tmp_path, tmp_path)


def test_a_start_that_failed_does_not_pin_its_configuration(tmp_path):
    from crash_runner import tiny_config

    from jaxrl_llm.training.run import open_run

    config = tiny_config()
    config.task.options.digits = (9, 1)
    with pytest.raises(ValueError, match="digits"), open_run(config, tmp_path):
        pass
    config.task.options.digits = (1, 1)
    with open_run(config, tmp_path):
        assert (tmp_path / "config.json").exists()
