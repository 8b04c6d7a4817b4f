"""Rewards that are missing: what stops a run, what is warned of, and what is counted."""

import json
import math
import time

import numpy as np
import pytest

from jaxrl_llm.rewards import LARGEST_REWARD, RewardFailure, RewardPool
from jaxrl_llm.rollouts.records import make_rollouts
from jaxrl_llm.sampling import Samples
from jaxrl_llm.training import evaluation, scores

NAN = float("nan")
NAMES = ("answer", "form")


class Pool:
    """Gives out what it was told to."""

    def __init__(self, *found):
        self.found = list(found)

    def score(self, rewards, prompts, completions, columns, deadline, groups=()):
        return self.found.pop(0)


def table(*columns):
    return np.array(columns, np.float64).T


def score_all(found, told=None, **options):
    pool, failures = Pool(*found), []
    told = set() if told is None else told
    score, _ = scores.make_score(pool, dict.fromkeys(NAMES), 1.0, told=told, failures=failures, **options)
    for values, _ in found:
        texts = [""] * len(values)
        score(texts, texts, {})
    return failures


def failed(name, rows, reason="needs the column 'answer', there are ['anwser']", timed_out=False):
    return [RewardFailure(name, row, reason, timed_out) for row in rows]


def test_all_missing_at_the_first_scoring_stops_the_run(tmp_path):
    nothing = table([NAN] * 3, [NAN] * 3)
    failures = failed("answer", range(3)) + failed("form", range(3), "x")
    with pytest.raises(ValueError, match=r"'answer', 'form'.* missing for all 3 rows .*needs the column 'answer', there are"):
        score_all([(nothing, failures)], log=tmp_path / "failures.jsonl", step=7)
    lines = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and lines[0]["step"] == 7 and lines[0]["name"] == "answer"
    with pytest.raises(ValueError, match="the first reason: it returned None"):
        score_all([(nothing, [])])


def test_later_or_in_part_it_is_one_warning_for_each_reward(caplog):
    some, nothing = table([1, NAN, 1], [0, 1, 0]), table([NAN] * 3, [NAN] * 3)
    told = set()
    score_all([(some, failed("answer", [1])), (nothing, []), (nothing, [])], told)
    score_all([(nothing, [])], told)
    assert [record.message for record in caplog.records] == [
        "the reward 'answer' failed on 33% of 3 rows; the first reason: needs the column 'answer', there are ['anwser']",
        "the reward 'form' failed on 100% of 3 rows; the first reason: it returned None",
    ]


def test_few_are_not_worth_a_warning_and_time_outs_are_counted(caplog):
    few = table([NAN] + [1] * 10, [0] * 11)
    assert scores.timeouts(score_all([(few, failed("answer", [0]))])) == 0 and not caplog.records
    late = failed("form", range(11), "no result within 1 s", timed_out=True)
    assert scores.timeouts(score_all([(table([1] * 11, [0] * 11), late)])) == 11
    assert "'form' failed on 100% of 11 rows" in caplog.text
    assert score_all([(np.zeros((0, 2)), [])]) == []


def long_enough(prompts, completions, answer):
    """Whether a completion is at least as long as its prompt; fails where the answer says so."""
    if "fail" in answer:
        raise ZeroDivisionError(f"of {completions[0]}")
    return [float(len(text) >= len(prompt)) for prompt, text in zip(prompts, completions, strict=True)]


long_enough.rowwise = True


def test_rewards_ahead_are_those_of_all_rows_at_once(tmp_path):
    prompts, completions = ["aa", "b", "cc", "d", "ee"], ["aaa", "", "c", "dd", "e"]
    columns = {"answer": ["", "fail", "", "fail", ""]}
    with RewardPool(workers=1) as pool:
        found = []
        for number in range(2):
            failures, log = [], tmp_path / f"{number}.jsonl"
            settings = {"told": set(), "failures": failures, "log": log, "step": 3}
            score, ahead = scores.make_score(pool, {"long": long_enough}, 20.0, **settings)
            if number == 0:
                found.append((score(prompts, completions, columns), failures, log.read_text()))
                continue
            with ahead() as (submit, rest):
                for rows in ([3, 0], [1]):  # and the others are left to the end
                    submit(rows, *([column[row] for row in rows] for column in (prompts, completions)),
                           {"answer": [columns["answer"][row] for row in rows]})  # fmt: skip
                found.append((rest(prompts, completions, columns), failures, log.read_text()))
    (values, failures, told), ahead_of_time = found
    np.testing.assert_array_equal(values[:, 0], [1, NAN, 0, NAN, 0])
    np.testing.assert_array_equal(ahead_of_time[0], values)
    assert ahead_of_time[1:] == (failures, told) and [failure.row for failure in failures] == [1, 3]


def test_sampling_that_fails_leaves_no_reward_behind():
    calls = []

    class Slow:
        def score(self, rewards, prompts, *_):
            calls.append(prompts)
            time.sleep(0.05)
            return np.zeros((len(prompts), 1)), []

    _, ahead = scores.make_score(Slow(), {"long": long_enough}, 1.0, told=set(), failures=[])
    with pytest.raises(ZeroDivisionError), ahead() as (submit, _):
        for row in range(50):
            submit([row], [str(row)], [""], {})
        raise ZeroDivisionError
    count = len(calls)
    assert count < 50
    time.sleep(0.1)
    assert len(calls) == count


def test_what_has_not_begun_when_all_is_sampled_shares_one_deadline():
    deadlines = []

    class Slow:
        def score(self, rewards, prompts, completions, columns, deadline, groups=()):
            deadlines.append(deadline)
            time.sleep(0.05)
            return np.zeros((len(prompts), 1)), []

    _, ahead = scores.make_score(Slow(), {"long": long_enough}, 0.2, told=set(), failures=[])
    rows = [str(row) for row in range(20)]
    with ahead() as (submit, rest):
        submit([0], ["0"], [""], {})
        while not deadlines:
            time.sleep(0.01)
        for row in range(1, 20):
            submit([row], [str(row)], [""], {})
        rest(rows, rows, {})
    assert len(deadlines) == 20 and deadlines[0] == 0.2 and deadlines[-1] == 0.0
    assert deadlines == sorted(deadlines, reverse=True) and len(set(deadlines)) > 2


def test_rewards_that_look_at_all_rows_wait_for_them():
    def whole(completions):
        return [0.0] * len(completions)

    for rewards in ({"whole": whole}, {"long": long_enough, "whole": whole}):
        assert scores.make_score(None, rewards, 1.0, told=set(), failures=[])[1] is None
    assert scores.make_score(None, {"long": long_enough}, 1.0, told=set(), failures=[])[1] is not None


def test_a_measurement_without_rewards_is_missing():
    measured = evaluation.summarise(np.full(4, NAN), np.ones(4), 2, answers=[1, 2, 3, 4])
    unknown = {name for name, value in measured.items() if math.isnan(value)}
    assert measured.keys() - unknown == {"evaluation/length", "evaluation/missing"}
    assert measured["evaluation/missing"] == 1 and "evaluation/accuracy" in unknown
    assert evaluation.summarise(np.array([NAN, 1.0]), np.ones(2), 1)["evaluation/accuracy"] == 0.5


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e39, -1.5e6])
def test_rewards_beyond_the_range_are_refused_at_the_door(value):
    samples = Samples(
        tokens=np.ones((2, 1), np.int32), length=np.ones(2, np.int32), finish_reason=np.zeros(2, np.int32),
        **dict.fromkeys(("logp", "tempered_logp", "sampling_logp", "entropy"), np.zeros((2, 1), np.float32)),
    )  # fmt: skip
    made = make_rollouts([[1]], samples, np.array([[LARGEST_REWARD], [NAN]]), [0], width=2)
    assert made.rewards[0, 0] == 1e6 and np.isnan(made.rewards[1, 0])
    with pytest.raises(ValueError, match=r"reward 0 of row 1 is .*within \+-1e\+06: scale it"):
        make_rollouts([[1]], samples, np.array([[0.0], [value]]), [0], width=2)
