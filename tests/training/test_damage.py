"""Damaged workdirs: what is flipped, cut, filled or lost is named, and never taken for what was written."""

import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.training import checkpoint, lock, metrics

ARRAYS = {"params": {"w": jnp.arange(64.0)}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three checkpoints, the middle one the best."""
    directory = tmp_path_factory.mktemp("saved")
    with checkpoint.open_manager(directory, keep=3, best_metric="score") as manager:
        for step, score in {1: 0.1, 2: 0.9, 3: 0.3}.items():
            arrays = {"params": {"w": ARRAYS["params"]["w"] + step}}
            checkpoint.save(manager, step, arrays, {"step": step}, {"score": score})
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def resumed(directory):
    """Step and arrays that training and everybody else would take."""
    params = checkpoint.restore_params(directory, ARRAYS["params"])["w"]
    assert checkpoint.parameter_names(directory) == {"w"}
    with checkpoint.open_manager(directory, keep=3, best_metric="score") as manager:
        step, progress = checkpoint.latest_progress(manager)
        arrays = checkpoint.restore_arrays(manager, step, ARRAYS)["params"]["w"]
        checkpoint.save(manager, step + 1, ARRAYS, {"step": step + 1}, {"score": 0.2})
    assert progress == {"step": step}
    np.testing.assert_array_equal(params, arrays)
    np.testing.assert_array_equal(arrays, ARRAYS["params"]["w"] + step)
    return step


def flip(path, place=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_bit_of_any_file_is_found_and_the_checkpoint_before_taken(saved, tmp_path):
    names = [path.relative_to(saved) for path in files(saved / "3")]
    assert len(names) > 5
    for number, name in enumerate(names):
        copy = tmp_path / str(number)
        shutil.copytree(saved, copy)
        flip(copy / name)
        step, broken = checkpoint.newest_whole(copy)
        # Those of Orbax itself may change a bit of no consequence, such as one of a time, or be no JSON any more.
        of_orbax = name.name in ("_CHECKPOINT_METADATA", "metrics", "commit_success.txt")
        assert (step, broken) == (2, [3]) or (of_orbax and (step, broken) == (3, [])), name


def damages():
    def overwrite(name, content):
        return lambda folder: (folder / name).write_bytes(content)

    yield "flipped", lambda folder: flip(max(files(folder / "3" / "arrays"), key=lambda path: path.stat().st_size))
    yield "no digests", lambda folder: (folder / "3" / "arrays" / "digests.json").unlink()
    yield "empty digests", overwrite("3/arrays/digests.json", b"")
    yield "odd digests", overwrite("3/arrays/digests.json", b"[]")
    yield "cut", lambda folder: os.truncate(files(folder / "3" / "arrays")[-1], 3)
    yield "a file gone", lambda folder: (folder / "3" / "arrays" / "_METADATA").unlink()
    yield "no arrays", lambda folder: shutil.rmtree(folder / "3" / "arrays")
    yield "no progress", lambda folder: shutil.rmtree(folder / "3" / "progress")
    yield "progress of zeros", overwrite("3/progress/metadata", b"\x00" * 20)
    yield "metadata of zeros", overwrite("3/_CHECKPOINT_METADATA", b"\x00" * 20)
    yield "metrics cut", overwrite("3/metrics/metrics", b"{")
    yield "empty", lambda folder: [shutil.rmtree(folder / "3"), (folder / "3").mkdir()]
    yield "a file", lambda folder: [shutil.rmtree(folder / "3"), (folder / "3").write_text("")]


@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage in damages()])
def test_a_broken_newest_checkpoint_is_named_and_the_one_before_taken(damage, directory, caplog):
    damage(directory)
    assert resumed(directory) == 2
    assert "checkpoint 3 is broken" in caplog.text and str(directory / "3") in caplog.text
    # It stands aside, and the run may write another 3.
    assert (directory / "3.broken").exists() and resumed_after(directory) == 3


def resumed_after(directory):
    with checkpoint.open_manager(directory, keep=3) as manager:
        return checkpoint.latest_progress(manager)[0]


def test_folders_that_are_no_checkpoints(directory, caplog):
    for name in ("99", "0", "notes", "4.orbax-checkpoint-tmp-0", "5.broken"):
        (directory / name).mkdir()
    (directory / "3" / "arrays" / "left_by_a_file_manager").write_text("")
    assert resumed(directory) == 3
    assert "checkpoint 99 is broken" in caplog.text


def test_all_broken_is_an_error_and_no_new_beginning(directory):
    for step in "123":
        flip(files(directory / step / "arrays")[-1])
    for look in (
        lambda: checkpoint.open_manager(directory, keep=3),
        lambda: checkpoint.restore_params(directory, ARRAYS["params"]),
        lambda: checkpoint.parameter_names(directory),
    ):
        with pytest.raises(ValueError, match=r"all checkpoints in .*\[3, 2, 1\], are broken; of the newest, the bytes of .*/3"):
            look()
    assert {"1", "2", "3"} <= {path.name for path in directory.iterdir()}


def test_damage_while_a_manager_is_open(directory):
    with checkpoint.open_manager(directory, keep=3) as manager:
        flip(files(directory / "3" / "arrays")[-1])
        for look in (lambda: checkpoint.restore_arrays(manager, 3, ARRAYS), lambda: checkpoint.latest_progress(manager)):
            with pytest.raises(ValueError, match="the checkpoint in .*/3 is broken: the bytes of"):
                look()


def test_parameters_of_a_reference(tmp_path):
    for step in (1.0, 2.0):
        checkpoint.save_params(tmp_path / "reference", {"w": jnp.full(3, step)})
        np.testing.assert_array_equal(checkpoint.load_params(tmp_path / "reference", {"w": jnp.zeros(3)})["w"], [step] * 3)
    flip(max(files(tmp_path / "reference"), key=lambda path: path.stat().st_size))
    with pytest.raises(ValueError, match="the parameters in .*/reference are broken: the bytes of .* are not those"):
        checkpoint.load_params(tmp_path / "reference", {"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"nowhere has no digests\.json"):
        checkpoint.load_params(tmp_path / "nowhere", {"w": jnp.zeros(3)})


# ---- files of lines


@pytest.mark.parametrize(
    "line", [b"", b"\x00" * 8, b"{", b"[1]", b"7", b"\xff\xfe", b'{"step": "1"}', b'{"loss": 1}', b"[" * 10**5]
)
def test_damaged_lines_are_named(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl: .*; remove the line, or restore the file"):
        metrics.keep_until(path, 5)


def test_what_a_kill_leaves_is_no_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "x": 1.0e-3}\n{"step": 2}\n{"st')
    assert metrics.keep_until(path, 1) == [1] and path.read_bytes() == b'{"step": 1, "x": 1.0e-3}\n'
    assert metrics.keep_until(tmp_path / "none", 1) == [] and metrics.read_jsonl(tmp_path / "none") == []


# ---- the lock

HOLDER = "import pathlib, sys, time; from jaxrl_llm.training.lock import locked\n"
HOLDER += "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"


def test_the_second_process_is_refused_and_takes_over_when_the_first_is_killed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
    assert holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(ValueError, match=rf"process {holder.pid} on host .* is training in .*another --workdir"),
        lock.locked(tmp_path),
    ):
        pass
    holder.kill()
    holder.wait()
    with lock.locked(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
        with pytest.raises(ValueError, match=f"process {os.getpid()} on host"), lock.locked(tmp_path):
            pass
    assert (tmp_path / lock.NAME).read_text() == ""
    holder.stdout.close()


def without_locks(*_):
    raise OSError(95, "not supported")


@pytest.mark.parametrize(
    ("owner", "refused", "told"),
    [
        ({}, False, False),
        ({"started": "other"}, False, False),
        ({"pid": 2**22 + 1}, False, False),
        ({"host": "elsewhere"}, False, True),
        (None, False, False),
    ],
)
def test_where_the_file_system_has_no_locks(owner, refused, told, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("fcntl.flock", without_locks)
    with lock.locked(tmp_path):
        ours = (tmp_path / lock.NAME).read_text()
        with pytest.raises(ValueError, match=f"process {os.getpid()}"), lock.locked(tmp_path):
            pass
    (tmp_path / lock.NAME).write_text("half a li" if owner is None else json.dumps(json.loads(ours) | owner))
    with caplog.at_level(logging.WARNING):
        if owner == {}:
            with pytest.raises(ValueError, match=f"process {os.getpid()}"), lock.locked(tmp_path):
                pass
        else:
            with lock.locked(tmp_path):
                pass
    assert ("left the run" in caplog.text) == told


def test_the_first_of_several_hosts_owns_for_all(tmp_path, monkeypatch):
    with lock.locked(tmp_path):
        monkeypatch.setattr("jax.process_index", lambda: 1)
        with lock.locked(tmp_path):
            pass
    assert pathlib.Path(tmp_path / lock.NAME).exists()
