"""The pool against rewards that attack it, on purpose or not: their own rows fail and nothing outlives the program."""

import functools
import os
import signal
import subprocess
import sys
import time

import hostile_rewards as hostile
import numpy as np
import pytest

from jaxrl_llm import rewards
from jaxrl_llm.rewards.worker import REASON_CHARACTERS, Finished, Loaded, Result, Unloadable, decode, encode

ROWS = ["a", "bad", "ccc"]


@pytest.fixture(scope="module")
def pool():
    with rewards.RewardPool(1, row_seconds=1.0) as pool:
        yield pool


def score(pool, reward, completions=ROWS, deadline=4.0, **columns):
    return pool.score({"reward": reward}, ["p"] * len(completions), completions, columns, deadline)


def ended(process_id):
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(process_id)], capture_output=True, text=True).stdout.strip()
    return not shown or shown.startswith("Z")


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (hostile.write_into_every_pipe, "wrote into the pipe of its worker"),
        (hostile.flood, "wrote into the pipe of its worker"),
        (hostile.forge, "wrote into the pipe of its worker"),
        (hostile.close_every_pipe, "the worker process died"),
        (hostile.too_large, "returned 1e+39 for a row; rewards lie within +-1e+06"),
    ],
)
def test_only_the_hostile_row_is_missing(pool, reward, reason):
    values, failures = score(pool, reward)
    np.testing.assert_array_equal(values[:, 0], [1, np.nan, 3])
    assert [(failure.row, failure.timed_out) for failure in failures] == [(1, False)] and reason in failures[0].reason


@pytest.mark.parametrize("reward", [hostile.long_reasons, hostile.unspeakable])
def test_reasons_are_short_and_on_one_line(pool, reward):
    _, failures = score(pool, reward)
    assert len(failures) == 3
    assert all(0 < len(failure.reason) <= REASON_CHARACTERS and "\n" not in failure.reason for failure in failures)


def test_a_worker_killed_from_outside_costs_nothing(pool, tmp_path):
    values, failures = score(pool, hostile.die_once, path=[str(tmp_path / "note")] * 3)
    assert values[:, 0].tolist() == [1, 3, 3] and not failures


def test_a_stuck_idle_worker_costs_no_row_and_a_large_request_no_patience(pool):
    (worker,) = set(score(pool, hostile.process_id)[0][:, 0])
    os.kill(int(worker), signal.SIGSTOP)
    began = time.monotonic()
    values, failures = score(pool, hostile.lengths, ["x" * 1_000_000] * 12)
    assert values[:, 0].tolist() == [1e6] * 12 and not failures
    assert time.monotonic() - began < 40
    assert score(pool, hostile.lengths)[0][:, 0].tolist() == [1, 3, 3]


def test_time_outs_may_be_missing():
    with rewards.RewardPool(1, row_seconds=1.0, timeout_value=None, memory_gb=2.0) as pool:
        values, failures = score(pool, hostile.hang_on_bad_by_row)
        np.testing.assert_array_equal(values[:, 0], [1, np.nan, 3])
        assert failures[0].timed_out
        # The limit of memory is the worker's own.
        values, failures = score(pool, hostile.greedy_for_memory)
        np.testing.assert_array_equal(values[:, 0], [1, np.nan, 3])
        assert "MemoryError" in failures[0].reason
    with pytest.raises(ValueError, match="timeout_value is -10000000.0; rewards lie within"):
        rewards.RewardPool(1, timeout_value=-1e7)


PROGRAM = """
import sys, hostile_rewards, jaxrl_llm.rewards as rewards
if sys.argv[1] == "import":
    import slow_to_import
    reward = slow_to_import.reward
else:
    reward = hostile_rewards.immortal
rewards.RewardPool(1).score({"reward": reward}, ["p"], ["c"], {"path": [sys.argv[2]]}, 600.0)
"""


@pytest.mark.parametrize("kind", ["import", "reward"])
def test_nothing_outlives_a_program_that_is_killed(kind, tmp_path):
    note = tmp_path / "note"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NOTE_OF_IMPORT": ""}
    program = PROGRAM
    if kind == "import":  # in the worker alone, whose environment is set once the program has imported the module
        program = PROGRAM.replace("reward = slow_to_import.reward", f"reward = slow_to_import.reward; import os; "
                                  f"os.environ['NOTE_OF_IMPORT'] = {str(note)!r}")  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", program, kind, str(note)], env=environment)
    while not note.exists() or not note.read_text().endswith("\n"):
        time.sleep(0.05)
    process.kill()
    process.wait()
    processes = note.read_text().split()
    for _ in range(100):
        if all(map(ended, processes)):
            break
        time.sleep(0.05)
    assert processes and [number for number in processes if not ended(number)] == []


# ---- how rewards are called


def in_both_orders(completions, prompts, answer="none"):
    assert prompts == ["p"] * 3
    return [len(answer[0])] * 3


def with_option(prompts, completions, *, answer, **columns):
    return [len(answer[0])] * 3


@pytest.mark.parametrize(
    ("reward", "columns", "expected"),
    [
        (hostile.by_answer, {"answer": ["a", "b", "ccc"], "other": [1, 2, 3]}, [1, 0, 1]),
        (hostile.narrow, {"answer": ["a", "b", "ccc"], "other": [1, 2, 3]}, [1, 0, 1]),
        (hostile.by_place, {"other": [1, 2, 3]}, [1, 3, 3]),
        (rewards.exact_match, {"answer": ["a", "b", "ccc"], "prompts": [1] * 3, "completions": ["x"] * 3}, [1, 0, 1]),
        (rewards.marked_answer("#"), {"answer": ["a", "b", "c"], "marker": ["x"] * 3}, [0, 0, 0]),
        (rewards.format_reward("a|bad"), {"pattern": ["x"] * 3}, [1, 1, 0]),
        (in_both_orders, {"answer": ["four"] * 3}, [4, 4, 4]),
        (in_both_orders, {}, [1, 1, 1]),
        (functools.partial(with_option, answer=["option"]), {"answer": ["column"] * 3, "x": [1] * 3}, [6, 6, 6]),
    ],
)
def test_arguments_go_by_name(pool, reward, columns, expected):
    values, failures = pool.score({"reward": reward}, ["p"] * 3, ROWS, columns, 4.0)
    assert values[:, 0].tolist() == expected and not failures


@pytest.mark.parametrize("reward", [hostile.by_answer, hostile.narrow, rewards.exact_match])
def test_a_missing_column_is_named(pool, reward):
    values, failures = score(pool, reward, anwser=["a", "b", "ccc"])
    assert np.isnan(values).all()
    assert {failure.reason for failure in failures} == {"needs the column 'answer', there are ['anwser']"}


# ---- what crosses the pipe


def test_messages_come_back_as_they_were():
    for message in (Loaded(), Finished(), Unloadable("ImportError: no"), [Result(0.1), Result(-1e6, "late", True)]):
        assert decode(encode(message)) == message
    (missing,) = decode(encode([Result(float("nan"), "died")]))
    assert np.isnan(missing.value) and missing.reason == "died"


@pytest.mark.parametrize(
    "line",
    [b"", b"\x00", b"{}", b"[]", b"1", b'["Loaded", 1]', b'["Unloadable"]', b'["Unloadable", 1]', b'["__class__"]']
    + [b'["results", [NaN, "", false]]', b'["results", [1e7, "", false]]', b'["results", [true, "", false]]', b"\xff\xfe"]
    + [b'["results", [1.0]]', b'["results", [1.0, 1, false]]', b'["results", 1]', b'[["Loaded"]]', b"[" * 10**5],
)  # fmt: skip
def test_other_lines_are_no_messages(line):
    with pytest.raises(ValueError):
        decode(line)
