"""The pool: whatever a reward does, the run goes on and only its own rows are missing."""

import math
import os
import signal
import subprocess
import sys
import threading
import time

import hostile_rewards as hostile
import numpy as np
import pytest

from jaxrl_llm import rewards

ROWS = ["a", "bad", "ccc"]


@pytest.fixture(scope="module")
def pool():
    with rewards.RewardPool(2, row_seconds=1.0) as pool:
        yield pool


def score(pool, reward, completions=ROWS, columns=None, deadline=3.0):
    values, failures = pool.score({"reward": reward}, ["p"] * len(completions), completions, columns, deadline)
    assert values.dtype == np.float64 and values.shape == (len(completions), 1)
    return values[:, 0].tolist(), failures


def ends_soon(process_id):
    for _ in range(100):
        shown = subprocess.run(["ps", "-o", "stat=", "-p", str(process_id)], capture_output=True, text=True).stdout.strip()
        if not shown or shown.startswith("Z"):
            return True
        time.sleep(0.1)
    return False


def assert_only_bad_is_missing(values, failures, reason):
    """Missing, or wrong where it took too long."""
    late = "no result within" in reason
    np.testing.assert_array_equal(values, [1.0, 0.0 if late else np.nan, 3.0])
    assert [(failure.name, failure.row, failure.timed_out) for failure in failures] == [("reward", 1, late)]
    assert reason in failures[0].reason


@pytest.mark.parametrize("reward", [hostile.lengths, hostile.lengths_async, hostile.noisy])
def test_plain_and_async_rewards(pool, reward):
    assert score(pool, reward) == ([1.0, 3.0, 3.0], [])


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (hostile.hang_on_bad, "no result within"),
        (hostile.hang_on_bad_by_row, "no result within"),
        (hostile.raise_on_bad, "RuntimeError: cannot read this"),
        (hostile.exit_on_bad, "SystemExit: 3"),
        (hostile.die_on_bad, "worker process died"),
    ],
)
def test_one_bad_row_does_not_lose_the_others(pool, reward, reason):
    assert_only_bad_is_missing(*score(pool, reward), reason)
    assert score(pool, hostile.lengths) == ([1.0, 3.0, 3.0], [])


def test_closures_run_in_threads_with_the_same_deadline(pool, caplog):
    release = threading.Event()

    def hang_on_bad(prompts, completions, **columns):
        if "bad" in completions:
            release.wait()
        return [len(completion) for completion in completions]

    assert_only_bad_is_missing(*score(pool, hang_on_bad), "no result within")
    release.set()
    assert "'reward' runs in a thread" in caplog.text
    assert score(pool, lambda prompts, completions, **columns: [0.5] * 3) == ([0.5] * 3, [])


def test_columns_that_cannot_be_pickled_run_in_threads(pool):
    values, failures = score(pool, hostile.process_id, columns={"lock": [threading.Lock()] * 3})
    assert values == [float(os.getpid())] * 3 and not failures
    assert score(pool, hostile.process_id, columns={"lock": [1, 2, 3]})[0] != values


def test_functions_of_the_main_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from jaxrl_llm.rewards import RewardPool\n"
        "def mine(prompts, completions, **columns):\n    return [7] * len(completions)\n"
        "with RewardPool(1) as pool:\n    print(pool.score({'mine': mine}, ['p'], ['c'])[0].tolist())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.strip() == "[[7.0]]", done.stderr


BIG = 10**6
ODD_VALUES = [True, 2, 0.25, np.float32(0.5), np.int64(3), np.bool_(False), BIG, None]


def test_numbers_become_floats_and_none_is_missing_without_failure(pool):
    values, failures = score(pool, lambda prompts, completions, **columns: ODD_VALUES, list("abcdefgh"))
    assert values[:7] == [1.0, 2.0, 0.25, 0.5, 3.0, 0.0, 1e6] and math.isnan(values[7])
    assert failures == []
    assert score(pool, lambda prompts, completions, **columns: np.array([0.5, 1.5, 2.5])) == ([0.5, 1.5, 2.5], [])


@pytest.mark.parametrize("value", ["1", float("nan"), float("inf"), 10**400, 1j, [1.0], np.zeros(2)])
def test_values_that_are_no_finite_number_are_logged(pool, value):
    values, failures = score(pool, lambda prompts, completions, **columns: [1.0, value, 3.0])
    assert_only_bad_is_missing(values, failures, "give a finite float, or None if missing")


@pytest.mark.parametrize("answer", [[1.0], [1.0] * 4, None, 1.0, "abc", {"a": 1}, np.float64(1.0)])
def test_answers_of_the_wrong_form_lose_every_row(pool, answer):
    values, failures = score(pool, lambda prompts, completions, **columns: answer)
    assert np.isnan(values).all()
    assert [failure.row for failure in failures] == [0, 1, 2]
    assert all("return" in failure.reason for failure in failures)


def test_several_rewards_keep_their_columns_and_order(pool):
    named = {"slow": hostile.hang_on_bad, "raising": hostile.raise_on_bad, "fine": hostile.lengths}
    values, failures = pool.score(named, ["p"] * 3, ROWS, None, 3.0)
    np.testing.assert_array_equal(values, [[1, 1, 1], [0, np.nan, 3], [3, 3, 3]])
    assert [(failure.name, failure.row) for failure in failures] == [("slow", 1), ("raising", 1)]


def test_columns_arrive_by_name_and_row(pool):
    def total(prompts, completions, answer, weight):
        return [len(p) + len(c) + a * w for p, c, a, w in zip(prompts, completions, answer, weight, strict=True)]

    values, failures = pool.score({"total": total}, ["", "p"], ["c", "cc"], {"answer": [1, 2], "weight": [10, 20]}, 5)
    assert values.tolist() == [[11.0], [43.0]] and not failures
    with pytest.raises(ValueError, match="column 'answer' has 1 values for 2 completions"):
        pool.score({"total": total}, ["", "p"], ["c", "cc"], {"answer": [1]}, 5)


def test_nothing_to_score(pool):
    assert pool.score({"reward": hostile.lengths}, [], [])[0].shape == (0, 1)
    assert pool.score({}, ["p"], ["c"])[0].shape == (1, 0)


def test_the_total_time_is_bounded(pool):
    start = time.monotonic()
    values, failures = score(pool, hostile.hang_on_bad, ["bad"] * 12, deadline=2.0)
    # Those that had half a second or more were given a chance; what came too late for one is missing.
    assert len(failures) == 12
    assert all((value == 0) == failure.timed_out for value, failure in zip(values, failures, strict=True))
    assert time.monotonic() - start < 2 * 2.0 + 8  # the batch, then the rows; the rest is for starting workers again


def test_a_kill_takes_the_children_of_a_reward_along(pool, tmp_path):
    file = tmp_path / "pid"
    values, failures = score(pool, hostile.hang_with_child, ["a"], {"path": [str(file)]})
    assert values == [0.0] and failures[0].timed_out
    assert ends_soon(int(file.read_text()))


def test_workers_import_no_jax_and_end_with_the_pool():
    with rewards.RewardPool(1) as pool:
        values, _ = pool.score({"modules": hostile.modules}, ["p"] * 2, ["jax", "hostile_rewards"])
        assert values[:, 0].tolist() == [0.0, 1.0]
        (worker,) = pool.score({"pid": hostile.process_id}, ["p"], ["c"])[0][0]
        os.kill(int(worker), 0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(worker), 0)


@pytest.mark.parametrize("reward", ["process_id", "hang_after_note"])
def test_idle_and_hanging_workers_end_when_the_program_is_killed(tmp_path, reward):
    note = tmp_path / "pid"
    code = (
        "import hostile_rewards as h, jaxrl_llm.rewards as r, sys, time\n"
        f"pool, columns = r.RewardPool(1), {{'path': [{str(note)!r}]}}\n"
        f"values, _ = pool.score({{'r': h.{reward}}}, ['p'], ['c'], columns, 2.0)\n"
        f"open({str(note)!r}, 'w').write(str(int(values[0, 0])))\ntime.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    program = subprocess.Popen([sys.executable, "-c", code], env=environment)
    while not note.exists() or not note.read_text():
        time.sleep(0.05)
    program.kill()
    program.wait()
    assert ends_soon(int(note.read_text()))


def test_a_worker_that_died_between_two_calls_is_replaced(pool):
    (worker,) = set(score(pool, hostile.process_id)[0])
    os.kill(int(worker), signal.SIGKILL)
    assert ends_soon(int(worker))
    assert score(pool, hostile.lengths) == ([1.0, 3.0, 3.0], [])


def test_importing_rewards_imports_neither_jax_nor_optional_packages():
    heavy = ["jax", "math_verify", "sympy", "reasoning_gym", "transformers"]
    code = f"import sys, jaxrl_llm.rewards; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_impossible_pools_are_refused():
    for options in ({"workers": 0}, {"workers": 1, "row_seconds": 0}):
        with pytest.raises(ValueError, match="both must be positive"):
            rewards.RewardPool(**options)


def test_a_reward_may_say_how_long_its_rows_take(pool):
    assert score(pool, hostile.slow_row, ["a", "b"], deadline=20.0) == ([1.0, 1.0], [])
