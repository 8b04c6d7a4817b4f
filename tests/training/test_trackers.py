"""Trackers, offline: each is told curves, completions and the summary, and a resumed run goes on in the same remote one."""

import importlib.util
import json
import os

import pytest
from training.tiny_runs import finish, quick_compilation, tiny_config  # noqa: F401

from jaxrl_llm.training import trackers
from jaxrl_llm.training.config import check_config

OTHERS = [name for name in ("wandb", "mlflow", "trackio") if importlib.util.find_spec(name)]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


def told(folder, step=0):
    return trackers.Told(folder, {"rl.steps": 2, "method.name": "grpo"}, step)


RECORD = {"prompt": "1+1=", "completion": "a|b\n2", "rewards": [1.0], "length": 3, "finish_reason": "stop", "answer": "2"}


@pytest.mark.parametrize("name", ["tensorboard", *OTHERS])
def test_a_tracker_goes_on_where_it_was(name, tmp_path, offline):
    before = ""
    for begin in (0, 1):
        with trackers.open_trackers([name], told(tmp_path, begin)) as (tracker,):
            tracker.log(begin + 1, {"reward": 0.5 + begin, "evaluation/pass@4": 1.0})
            tracker.completions(begin + 1, [RECORD])
            tracker.summary({"accuracy_after": 0.75, "steps": 2, "method": "grpo"})
        known = (tmp_path / "trackers.json").read_text() if name != "tensorboard" else ""
        assert begin == 0 or known == before
        before = known
    assert name == "tensorboard" or set(json.loads(known)) == {name}
    check = {"tensorboard": _check_tensorboard, "mlflow": _check_mlflow}.get(name)
    if check is not None:
        check(tmp_path)


def _check_tensorboard(folder):
    content = b"".join(path.read_bytes() for path in (folder / "tensorboard").iterdir())
    assert b"reward" in content and b"evaluation/pass_4" in content and b"1+1=" in content and b"accuracy_after" in content


def _check_mlflow(folder):
    from mlflow import MlflowClient

    client = MlflowClient()
    run = json.loads((folder / "trackers.json").read_text())["mlflow"]
    history = [(point.step, point.value) for point in client.get_metric_history(run, "reward")]
    assert history == [(1, 0.5), (2, 1.5)] and client.get_run(run).data.params["method.name"] == "grpo"
    assert client.get_run(run).info.status == "FINISHED"
    assert {item.path for item in client.list_artifacts(run)} == {"completions", "summary.json"}


@pytest.mark.parametrize("names, fault", [
    (("tensorbord",), "has 'tensorbord'; did you mean 'tensorboard'?; there are tensorboard, wandb, mlflow, trackio"),
    (("tensorboard", "tensorboard"), "has 'tensorboard' twice"),
])  # fmt: skip
def test_what_is_no_tracker_is_refused(names, fault):
    config = tiny_config("dr_grpo")
    config.log.trackers = names
    with pytest.raises(ValueError, match=fault.replace("?", r"\?")):
        check_config(config)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="which is not installed: pip install mlflow-skinny"):
        trackers.check_trackers(("mlflow",))


@pytest.mark.slow
@pytest.mark.skipif(not OTHERS, reason="no other tracker is installed")
def test_a_run_tells_all_of_them(tmp_path, offline):
    config = tiny_config("dr_grpo")
    config.log.trackers = ("tensorboard", *OTHERS)
    run = finish(config, tmp_path / "run")
    assert run.summary["steps"] == 2 and os.path.isfile(tmp_path / "run" / "trackers.json")
