"""Risk, constraints, targets, feasibility and support: against their oracles, and by hand."""

import numpy as np
import pytest
from hypothesis import given
from oracles import advantages
from oracles import constraints as oracle
from oracles.cases import brief
from running import Rollouts, assert_close, assert_close_at_actions, check_outside, rich_cases, run, step

from jaxrl_llm import estimators


def scores_of(case, reward_weights=None):
    return advantages.row_scores(case.rewards, case.valid, case.mask, case.token_rewards, reward_weights)


def component(case, number):
    """Values of a reward component, 0 where it is missing, and whether it is there in a valid row."""
    given = case.rewards[:, number].astype(float)
    known = ~np.isnan(given)
    return list(np.where(known, given, 0.0)), list((known & (case.valid > 0)).astype(float))


def spread(values, case):
    return np.where(case.mask > 0, np.asarray(values)[:, None], 0)


@pytest.mark.parametrize("options", [{}, {"share": 1.0, "level": 0.5}, {"share": 0.3, "level": 0.4}, {"share": 0.0}])
@brief
@given(case=rich_cases())
def test_cvar_advantage(options, case):
    found = run(estimators.cvar_advantage(**options), case)
    score, present = scores_of(case)
    assert_close(found.advantage, spread(oracle.cvar_advantage(score, present, case.group, **options), case), atol=1e-5)
    assert_close(found.valid, case.valid * present)
    check_outside(found, case)


@pytest.mark.parametrize("options", [{}, {"base": 1.3}])
@brief
@given(case=rich_cases())
def test_long_wrong_penalty(options, case):
    case.extras["correct"] = (case.rewards[:, 0] > 0).astype(np.float32)
    found = run(estimators.long_wrong_penalty(**options), case)
    arrays = (case.extras["correct"], case.valid, case.mask, case.group)
    assert_close(found.advantage, oracle.long_wrong_penalty(case.advantage, *arrays, **options))
    check_outside(found, case)


@brief
@given(case=rich_cases())
def test_drop_infeasible(case):
    case.extras["feasible"] = (case.extras["answer"] > 0).astype(np.float32)
    assert_close(run(estimators.drop_infeasible(), case).valid, oracle.drop_infeasible(case.valid, case.extras["feasible"]))


@pytest.mark.parametrize("options", [{}, {"decay": 0.5}, {"decay": 0.0}])
@brief
@given(case=rich_cases())
def test_moving_average_advantage(options, case):
    estimator, state, history = estimators.moving_average_advantage(**options), None, []
    for _ in range(3):
        score, present = scores_of(case)
        expected, history = oracle.moving_average_advantage(history, score, present, **options)
        found, state = step(estimator, case, state)
        assert_close(found.advantage, spread(expected, case), atol=1e-5)
        case.rewards = case.rewards + np.float32(0.5)
    check_outside(found, case)


@pytest.mark.parametrize("options", [{}, {"kind": "shortfall", "floor": 0.3}, {"coefficient": 0.5, "floor": 0.2}])
@brief
@given(case=rich_cases())
def test_support_reward(options, case):
    infinite = np.where(case.reference_logp < -4, -np.inf, case.reference_logp)
    case.extras["reference_logp"] = infinite.astype(np.float32)
    found = run(estimators.support_reward(**options), case)
    expected = oracle.support_reward(case.token_rewards, infinite, case.mask, **options)
    assert_close_at_actions(found.token_rewards, expected, case)


LAGRANGIAN = [{"limit": 0.1}, {"limit": -1.0, "initial": 2.0, "rate": 0.5, "penalty": 1.0, "confidence": 2.0}, {"limit": 9.0}]


@pytest.mark.parametrize("options", LAGRANGIAN)
@brief
@given(case=rich_cases())
def test_lagrangian_advantage(options, case):
    estimator, state = estimators.lagrangian_advantage(**options), None
    plain = {name: value for name, value in options.items() if name != "initial"}
    multiplier = options.get("initial", 0.0)
    cost, known = component(case, 1)
    others = np.where([False, True], np.nan, case.rewards)
    score, present = advantages.row_scores(others, case.valid, case.mask, case.token_rewards, None)
    for _ in range(2):
        expected, multiplier = oracle.lagrangian_advantage(multiplier, score, present, cost, known, case.group, **plain)
        found, state = step(estimator, case, state)
        assert_close(found.advantage, spread(expected, case), atol=1e-5)
        assert_close(state, multiplier, atol=1e-5)
        assert_close(found.valid, case.valid * present)
    check_outside(found, case)


@pytest.mark.parametrize("options", [{"bounds": (0.03,)}, {"bounds": (-2.0,), "objective": 1, "sharpness": 3.0, "margin": 0.5}])
@brief
@given(case=rich_cases())
def test_log_barrier_advantage(options, case):
    found = run(estimators.log_barrier_advantage(**options), case)
    values, known = zip(*(component(case, number) for number in range(2)), strict=True)
    _, present = scores_of(case)
    expected = oracle.log_barrier_advantage(values, known, present, case.group, **options)
    assert_close(found.advantage, spread(expected, case), rtol=2e-4, atol=2e-4)
    assert_close(found.valid, case.valid * present)
    check_outside(found, case)


@brief
@given(case=rich_cases())
def test_target_return(case):
    found = run(estimators.target_return(target=0.2), case)
    assert_close(found.advantage, oracle.target_return(case.advantage, *scores_of(case), case.mask, target=0.2), atol=1e-5)
    check_outside(found, case)


# By hand


def rows(rewards, **fields):
    """One group of rows with one action each."""
    rewards = np.asarray(rewards, np.float32).reshape(len(rewards), -1)
    shape, group = (len(rewards), 1), np.zeros(len(rewards), np.int32)
    plain = {"tokens": np.zeros(shape, np.int32), "length": np.ones(shape[0], np.int32), "mask": np.ones(shape, np.float32)}
    return Rollouts(**(plain | {"rewards": rewards, "group": group} | fields))


def advantage_of(estimator, rollouts, state=None):
    found, state = estimator.update(rollouts, estimator.init() if state is None else state, None)
    return np.asarray(found.advantage)[:, 0], state


def test_the_worst_half_of_four_counts_double():
    """Level 1/2 of 0, 1, 2, 3: q = 1, CVaR = 1/2. Utilities q - 2 (q - r)_+ are -1, 1, 1, 1, of mean 1/2."""
    found, _ = advantage_of(estimators.cvar_advantage(share=1.0, level=0.5), rows([0.0, 1.0, 2.0, 3.0]))
    np.testing.assert_allclose(found, [-1.5, 0.5, 0.5, 0.5], rtol=1e-6)


def test_a_multiplier_by_hand():
    """Costs 0 and 1, limit 1/4, one standard error of 0.5 / sqrt 2: excess 0.6036; l = 1 + 2 * 0.6036, A_c = -+1/2."""
    estimator = estimators.lagrangian_advantage(limit=0.25, initial=1.0, rate=0.1, penalty=2.0, confidence=1.0)
    found, state = advantage_of(estimator, rows([[1.0, 0.0], [1.0, 1.0]]))
    excess = 0.25 + 0.5 / np.sqrt(2)
    np.testing.assert_allclose(found, [(1 + 2 * excess) / 2, -(1 + 2 * excess) / 2], rtol=1e-5)
    np.testing.assert_allclose(state, 1 + 0.1 * excess, rtol=1e-6)


def test_a_cost_far_below_its_limit_has_no_weight():
    found, state = advantage_of(estimators.lagrangian_advantage(limit=5.0, initial=0.01), rows([[1.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_allclose(found, [0.5, -0.5], rtol=1e-6)
    assert state == 0


def test_a_barrier_by_hand():
    """J = 1/2 over a bound of 0.4: weight 1 / (10 * 0.1) = 1. A bound of 0.7 is violated: weight 1 / (10 * 0.02) = 5."""
    rollouts = rows([[0.0, 1.0], [0.0, 0.0]])
    for bound, weight in ((0.4, 1.0), (0.7, 5.0)):
        found, _ = advantage_of(estimators.log_barrier_advantage(bounds=(bound,), sharpness=10.0, margin=0.02), rollouts)
        np.testing.assert_allclose(found, [weight / 2, -weight / 2], rtol=1e-5)


@pytest.mark.parametrize(("rewards", "factor"), [([0.0, 0.0], 1.0), ([1.0, 0.0], 0.0), ([1.0, 1.0], -1.0)])
def test_the_advantage_turns_round_at_the_target(rewards, factor):
    found, _ = advantage_of(estimators.target_return(target=0.5), rows(rewards, advantage=np.array([[2.0], [-2.0]])))
    np.testing.assert_allclose(found, [2.0 * factor, -2.0 * factor], atol=1e-6)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: estimators.cvar_advantage(level=0.0), "level=0.0: the share must be from 0 to 1"),
    (lambda: estimators.long_wrong_penalty(base=1.0), "base is 1.0; it must be above 1"),
    (lambda: estimators.moving_average_advantage(decay=1.0), "decay is 1.0; it must be from 0 up to 1"),
    (lambda: estimators.support_reward(kind="ratio"), "kind is 'ratio'; it must be one of"),
    (lambda: estimators.support_reward(floor=0.0), "floor is 0.0; it must be above 0"),
    (lambda: estimators.lagrangian_advantage(limit=0.1, cost=2), "component is 2; the rollouts have 2"),
    (lambda: estimators.log_barrier_advantage(bounds=(1.0, 2.0)), "bounds has 2 entries; beside component 0"),
    (lambda: estimators.log_barrier_advantage(bounds=(1.0,), objective=2), "bounds has 1 entries; beside component 2"),
    (lambda: estimators.log_barrier_advantage(bounds=(1.0,), margin=0.0), "margin=0.0: both must be above 0"),
])  # fmt: skip
def test_impossible_options_are_refused(make, message):
    extras = {"correct": np.ones(2, np.float32), "reference_logp": np.zeros((2, 1), np.float32)}
    with pytest.raises(ValueError, match=message):
        advantage_of(make(), rows([[0.0, 1.0], [1.0, 0.0]], extras=extras))
