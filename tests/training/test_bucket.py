"""Runs whose folder is in a bucket: what lies where, and that they resume exactly. An emulator stands in for the bucket, or a
folder under the paths that buckets have (`etils.epath`)."""

import importlib.util
import json
import pathlib
import signal
import socket
import subprocess
import sys

import pytest
from etils import epath
from training import crash_runner
from training.test_resume import HERE, assert_same_run, cache, finish, start, uninterrupted  # noqa: F401

from jaxrl_llm.training import bucket, checkpoint, loop


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder that is taken for one in a bucket."""
    place = tmp_path / "bucket"
    monkeypatch.setattr(bucket, "SCHEME", str(place))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    return epath.Path(place) / "run"


@pytest.mark.slow
def test_a_run_that_ends_early_goes_on_from_the_bucket(store, tmp_path):
    """A machine that is lost takes its folder along, and what was written after the last checkpoint."""

    alive = []

    def lost(step, *_):
        if step == 9 and not alive:
            alive.append(step)
            raise RuntimeError("the machine is gone")

    config = crash_runner.tiny_config()
    whole = loop.train(config, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="the machine is gone"):
        loop.train(config, str(store), callbacks=[lost])
    assert {path.name for path in store.iterdir()} >= {"checkpoints", "reference", "metrics.jsonl", "run.lock", "config.json"}
    summary = loop.train(config, str(store), callbacks=[lost])
    assert summary["workdir"] == str(store) and summary["accuracy_after"] == whole["accuracy_after"]
    assert_same_run(pathlib.Path(store), tmp_path / "whole")
    assert (store / "run.lock").read_text() == ""


def test_lines_are_in_the_bucket_before_the_checkpoint_that_they_lead_to(store, monkeypatch):
    seen, save = [], checkpoint.save

    def looked(manager, step, *arguments):
        path = store / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        seen.append((step, json.loads(lines[-1])["step"] if lines else 0))
        save(manager, step, *arguments)

    monkeypatch.setattr(checkpoint, "save", looked)
    config = crash_runner.tiny_config()
    config.sft.steps, config.rl.steps = 0, 3
    loop.train(config, str(store))
    assert [step for step, _ in seen] == [0, 2, 3] and all(step == line for step, line in seen)


def test_a_broken_checkpoint_in_a_bucket_is_found_and_set_aside(store):
    config = crash_runner.tiny_config()
    config.sft.steps, config.rl.steps = 3, 0
    loop.train(config, str(store))
    first, *_, last = sorted((store / "checkpoints").iterdir(), key=lambda path: int(path.name))
    path = next(path for path in bucket.files_below(last) if path.name == "digests.json")
    path.write_text(path.read_text().replace("a", "b"))
    checkpoint.open_manager(store / "checkpoints", keep=2).close()
    assert (store / "checkpoints" / f"{last.name}.broken").exists() and not last.exists() and first.exists()


def test_a_bucket_without_its_package_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="gs://bucket/run lies in a bucket, which takes the package gcsfs: pip install gcsfs"):
        loop.train(crash_runner.tiny_config(), "gs://bucket/run")


@pytest.fixture
def emulator(monkeypatch):
    """A bucket called `bucket` that ends with the test."""
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://localhost:{port}"
    for name, value in {
        "STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "FSSPEC_GS": json.dumps({"endpoint_url": address, "token": "anon"}),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    command = [sys.executable, str(HERE / "bucket_emulator.py"), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == b"ready\n"
    yield address
    process.kill()
    process.wait()


COPY = """
import pathlib, sys
from etils import epath
from jaxrl_llm.training.bucket import files_below
for path in files_below(epath.Path(sys.argv[1])):
    place = pathlib.Path(sys.argv[2]) / path.relative_to(epath.Path(sys.argv[1]))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(path.read_bytes())
"""


@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_killed_equals_the_uninterrupted_one(emulator, tmp_path, cache, uninterrupted):  # noqa: F811
    for kill in (("save", 1, 0.01), ("update", 5, 0.002), ("save", 2, 0.02)):
        code, output = finish(start("gs://bucket/run", cache, *kill))
        assert code == -signal.SIGKILL, f"{kill} was not reached: {output}"
    code, output = finish(start("gs://bucket/run", cache))
    assert code == 0, output
    subprocess.run([sys.executable, "-c", COPY, "gs://bucket/run", str(tmp_path)], check=True, timeout=120)
    assert_same_run(tmp_path, uninterrupted)
