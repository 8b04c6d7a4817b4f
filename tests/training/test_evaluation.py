"""avg@k, pass@k and maj@k against brute force, and how held-out prompts are collected."""

import itertools
import math

import numpy as np
import pytest

from jaxrl_llm.rollouts import Collection
from jaxrl_llm.training import metrics
from jaxrl_llm.training.evaluation import average_at_k, evaluate, majority_at_k, mean_and_error, pass_at_k, summarise


def random_correct(prompts, samples, seed=0):
    return np.random.default_rng(seed).random((prompts, samples)) < 0.4


@pytest.mark.parametrize("samples", [1, 2, 5, 6])
def test_pass_at_k_is_the_mean_over_all_subsets(samples):
    correct = random_correct(9, samples, seed=samples)
    for k in range(1, samples + 1):
        of_prompts = [np.mean([any(subset) for subset in itertools.combinations(row, k)]) for row in correct]
        value, error = pass_at_k(correct, k)
        assert value == pytest.approx(np.mean(of_prompts))
        assert error == pytest.approx(1.96 * np.std(of_prompts, ddof=1) / 3)


def test_pass_at_k_with_many_samples_is_exact():
    correct = np.zeros((1, 1000), bool)
    correct[0, :3] = True
    assert pass_at_k(correct, 10)[0] == pytest.approx(1 - math.comb(997, 10) / math.comb(1000, 10), rel=1e-12)


def test_pass_at_k_at_its_ends():
    correct = random_correct(20, 4)
    assert pass_at_k(correct, 1) == pytest.approx(average_at_k(correct))
    assert pass_at_k(correct, 4)[0] == pytest.approx(correct.any(axis=1).mean())
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k is {k}; with 4 samples .* from 1 to 4"):
            pass_at_k(correct, k)


def test_average_at_k_counts_prompts_not_samples():
    correct = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    value, error = average_at_k(correct)
    assert value == pytest.approx(0.5)
    assert error == pytest.approx(1.96 * 0.5 / math.sqrt(3))


def test_the_interval_covers_as_often_as_it_says():
    random, covered = np.random.default_rng(0), []
    for _ in range(400):
        rates = random.random(100)
        value, error = average_at_k(random.random((100, 4)) < rates[:, None])
        covered.append(abs(value - 0.5) <= error)
    assert 0.91 <= np.mean(covered) <= 0.98


def test_a_single_value_has_no_spread():
    assert mean_and_error(np.array([0.25])) == (0.25, 0.0)


def majority_by_hand(row, answers):
    voted = [answer for answer in answers if answer is not None]
    if not voted:
        return 0.0
    most = max(voted.count(answer) for answer in voted)
    winner = next(answer for answer in answers if answer is not None and voted.count(answer) == most)
    return float(row[answers.index(winner)])


@pytest.mark.parametrize("seed", range(5))
def test_majority_against_counting(seed):
    random = np.random.default_rng(seed)
    answers = [[[None, "a", "b", "c"][i] for i in random.integers(0, 4, 6)] for _ in range(30)]
    correct = np.array([[answer == "b" for answer in row] for row in answers])
    value, _ = majority_at_k(correct, answers)
    assert value == pytest.approx(np.mean([majority_by_hand(list(row), a) for row, a in zip(correct, answers, strict=True)]))


def test_majority_ties_and_missing_answers():
    right = lambda *flags: np.array([flags], bool)  # noqa: E731
    assert majority_at_k(right(1, 0, 0, 1), [["a", "b", "b", "a"]])[0] == 1.0  # a tie: the first to come
    assert majority_at_k(right(0, 1, 1, 0), [["b", "a", "a", "b"]])[0] == 0.0
    assert majority_at_k(right(0, 0, 1), [[None, None, "a"]])[0] == 1.0  # None has no vote
    assert majority_at_k(right(0, 0, 0), [[None, None, None]])[0] == 0.0


def test_missing_rewards_count_as_wrong():
    rewards = np.array([1.0, np.nan, 0.5, 1.0])
    measured = summarise(rewards, np.array([3, 5, 4, 4]), samples=2)
    assert measured["evaluation/accuracy"] == 0.5 and measured["evaluation/pass@2"] == 1.0
    assert measured["evaluation/missing"] == 0.25 and measured["evaluation/length"] == 4.0


def test_every_measure_is_defined():
    answers = ["1", "2", None, "1"] * 4
    measured = summarise(np.ones(16), np.ones(16), samples=8, answers=answers)
    assert {"evaluation/pass@2", "evaluation/pass@4", "evaluation/pass@8", "evaluation/maj@8"} <= measured.keys()
    assert "evaluation/pass@1" not in measured
    assert all(metrics.defined(name) for name in measured)
    assert summarise(np.ones(3), np.ones(3), samples=1, answers=["1"] * 3).keys() == {
        "evaluation/accuracy", "evaluation/accuracy_error", "evaluation/reward", "evaluation/length", "evaluation/missing",
    }  # fmt: skip


class Collector:
    """Counts what it is asked for; the sample of a prompt is right when the prompt's number is even."""

    def __init__(self):
        self.calls = []

    def __call__(self, requests):
        self.calls.append([request.samples for request in requests])
        rows = [(request.example, sample) for request in requests for sample in range(request.samples)]
        records = [
            {"rewards": [None if e["number"] == 4 else float(e["number"] % 2 == 0)], "length": s, "completion": "#### 7"}
            for e, s in rows
        ]
        return Collection(None, records, requests, None)


def test_the_last_part_is_filled_and_the_filling_dropped():
    collect, examples = Collector(), [{"prompt": "", "number": number} for number in range(7)]
    measured, records = evaluate(collect, examples, samples=3, batch=3, final_answer=lambda text: text[-1])
    assert collect.calls == [[3, 3, 3]] * 3
    assert len(records) == 21
    # Right: prompts 0, 2, 6; the reward of 4 is missing.
    assert measured["evaluation/accuracy"] == pytest.approx(3 / 7)
    assert measured["evaluation/missing"] == pytest.approx(1 / 7)
    assert measured["evaluation/maj@3"] == pytest.approx(3 / 7)
    assert measured["evaluation/length"] == 1.0


def test_a_set_smaller_than_a_batch():
    collect = Collector()
    measured, records = evaluate(collect, [{"prompt": "", "number": 0}], samples=2, batch=64)
    assert collect.calls == [[2]] and len(records) == 2 and measured["evaluation/accuracy"] == 1.0


def test_the_size_of_parts_changes_nothing():
    examples = [{"prompt": "", "number": number} for number in range(10)]
    results = [evaluate(Collector(), examples, samples=2, batch=batch) for batch in (1, 4, 10)]
    assert results[0] == results[1] == results[2]
