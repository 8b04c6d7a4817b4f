"""Off-policy evaluation: against its oracles, by hand, and where weights overflow."""

import numpy as np
import pytest
from hypothesis import given
from oracles import off_policy_evaluation as oracle
from oracles.cases import brief
from running import assert_close, rich_cases

from jaxrl_llm.estimators import off_policy_evaluation as evaluation


def logged(case):
    """Log-probabilities of both policies, weights of rows and returns; some tokens are impossible for one policy or both."""
    logp, behavior = case.reference_logp.copy(), case.behavior_logp.copy()
    logp[:, ::3] = np.where(logp[:, ::3] < -3, -np.inf, logp[:, ::3])
    behavior[:, 1::3] = np.where(behavior[:, 1::3] < -4, -np.inf, behavior[:, 1::3])
    returns = np.nan_to_num(case.rewards).sum(axis=1).astype(np.float32)
    return logp, behavior, returns


@pytest.mark.filterwarnings("ignore:invalid value")
@brief
@given(case=rich_cases())
def test_rows(case):
    logp, behavior, returns = logged(case)
    weight = np.asarray(evaluation.trajectory_log_weight(logp, behavior, case.mask))
    assert_close(weight, np.array(oracle.trajectory_log_weight(logp, behavior, case.mask), float), rtol=1e-5, atol=1e-4)
    for name in ("importance_sampling_value", "self_normalised_value", "return_variance"):
        expected = float(getattr(oracle, name)(weight, returns))
        assert_close(getattr(evaluation, name)(weight, returns), expected, rtol=1e-4, atol=1e-5 * (1 + abs(expected)))
    found, expected = (np.asarray(room.return_distribution(weight, returns), float) for room in (evaluation, oracle))
    assert_close(found[0], expected[0])
    last = np.append(found[0][1:] != found[0][:-1], True)  # the order of equal returns is nobody's business
    assert_close(found[1][last], expected[1][last], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [0.05, 0.3, 1.0])
@brief
@given(case=rich_cases())
def test_tails(level, case):
    random = np.random.default_rng(int(case.tokens.sum()))
    weight, returns = (random.normal(size=6).astype(np.float32) for _ in range(2))
    for name in ("return_quantile", "conditional_value_at_risk"):
        expected = float(getattr(oracle, name)(weight, returns, level=level))
        assert_close(getattr(evaluation, name)(weight, returns, level=level), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("discount", [1.0, 0.5])
@brief
@given(case=rich_cases())
def test_tokens(discount, case):
    logp, behavior, _ = logged(case)
    random = np.random.default_rng(0)
    rewards, values, action_values = (np.where(case.mask > 0, random.normal(size=case.mask.shape), np.nan) for _ in range(3))
    per_decision = evaluation.per_decision_value(logp, behavior, case.mask, rewards, discount=discount)
    expected = float(oracle.per_decision_value(logp, behavior, case.mask, rewards, discount=discount))
    scale = 1 + np.exp(np.minimum(np.max(np.cumsum(_moved(logp, behavior, case.mask), axis=1), initial=0), 20))
    assert_close(per_decision, expected, rtol=1e-4, atol=1e-5 * scale)
    arrays = (logp, behavior, case.mask, rewards, values, action_values)
    expected = float(oracle.doubly_robust_value(*arrays, discount=discount))
    assert_close(evaluation.doubly_robust_value(*arrays, discount=discount), expected, rtol=1e-4, atol=1e-5 * scale)


def _moved(logp, behavior, mask):
    ratios = [[float(oracle._ratio(logp[place], behavior[place])) if mask[place] > 0 else 0.0 for place in row] for row in
              [[(n, t) for t in range(mask.shape[1])] for n in range(len(mask))]]  # fmt: skip
    return np.array(ratios)


def test_by_hand():
    """Weights 1 and 3 of returns 0 and 1: plain mean 3/2, self-normalised 3/4, worst half (1/4 * 0 + 1/4 * 1) / (1/2)."""
    weight, returns = np.log([1.0, 3.0]), np.array([0.0, 1.0])
    assert_close(evaluation.importance_sampling_value(weight, returns), 1.5)
    assert_close(evaluation.self_normalised_value(weight, returns), 0.75)
    assert_close(evaluation.return_variance(weight, returns), 3 / 16)
    assert_close(evaluation.conditional_value_at_risk(weight, returns, level=0.5), 0.5)
    assert_close(evaluation.return_quantile(weight, returns, level=0.25), 0.0)
    assert_close(evaluation.return_quantile(weight, returns, level=0.3), 1.0)


def test_on_policy_all_are_the_mean_and_the_right_values_need_no_weights():
    random = np.random.default_rng(0)
    mask, logp = np.ones((5, 3)), -random.exponential(size=(5, 3))
    rewards = random.normal(size=(5, 3))
    total = rewards.sum(axis=1)
    weight = evaluation.trajectory_log_weight(logp, logp, mask)
    assert_close(evaluation.importance_sampling_value(weight, total), total.mean())
    assert_close(evaluation.self_normalised_value(weight, total), total.mean())
    assert_close(evaluation.per_decision_value(logp, logp, mask, rewards), total.mean())
    values = np.array([6.0, 5.0, 3.0]) * mask  # rewards of 1, 2 and 3, whatever is done
    right = (np.array([1.0, 2.0, 3.0]) * mask, values, values)
    assert_close(evaluation.doubly_robust_value(logp - 1.0, logp, mask, *right), 6.0, rtol=1e-4)


def test_weights_of_any_size_are_finite():
    weight, returns = np.array([900.0, -900.0, 899.0]), np.array([1.0, 5.0, 0.0])
    assert_close(evaluation.self_normalised_value(weight, returns), 1 / (1 + np.exp(-1)))
    assert np.isfinite(evaluation.importance_sampling_value(weight, returns))
    nothing = np.zeros(0)
    assert float(evaluation.importance_sampling_value(nothing, nothing)) == 0
    assert float(evaluation.self_normalised_value(nothing, nothing)) == 0
    assert float(evaluation.conditional_value_at_risk(nothing, nothing, level=0.5)) == 0
    assert float(evaluation.return_quantile(nothing, nothing, level=0.5)) == 0


def test_sharpe_ratio_at_k():
    estimates, values = np.array([0.1, 0.9, 0.5, 0.7]), np.array([9.0, 1.0, 2.0, 3.0])
    found = evaluation.sharpe_ratio_at_k(estimates, values, baseline=1.0, k=3)
    assert_close(found, oracle.sharpe_ratio_at_k(estimates, values, baseline=1.0, k=3))
    assert_close(found, 2.0)
    assert float(evaluation.sharpe_ratio_at_k(estimates, values, baseline=4.0, k=3)) == 0
    assert float(evaluation.sharpe_ratio_at_k(estimates, np.full(4, 0.1), baseline=0.0, k=2)) == 0


@pytest.mark.parametrize(("call", "message"), [
    (lambda: evaluation.return_quantile(np.zeros(2), np.zeros(2), level=2.0), "level is 2.0"),
    (lambda: evaluation.conditional_value_at_risk(np.zeros(2), np.zeros(2), level=0.0), "level is 0.0; it must be above 0"),
    (lambda: evaluation.sharpe_ratio_at_k(np.zeros(2), np.zeros(2), baseline=0.0, k=3), "k is 3; it must be from 2"),
])  # fmt: skip
def test_impossible_options_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
