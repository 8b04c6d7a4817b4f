"""Every estimator against its oracle, on random, ragged and degenerate rollouts."""

import jax
import numpy as np
import oracles
import pytest
from hypothesis import given
from oracles import advantages as oracle
from oracles.cases import modest, rollout_cases
from running import assert_close, assert_close_at_actions, build, check_outside, run

from jaxrl_llm import estimators
from jaxrl_llm.types import Rollouts

WEIGHTS = (None, (0.5, -2.0))


def scores_of(case, reward_weights=None):
    return oracle.row_scores(case.rewards, case.valid, case.mask, case.token_rewards, reward_weights)


def token_rewards_of(case, reward_weights=None):
    rewards, present = oracle.rewards_per_token(case.rewards, case.valid, case.mask, case.token_rewards, reward_weights)
    return rewards * present[:, None], present


@pytest.mark.parametrize("reward_weights", WEIGHTS)
@modest
@given(case=rollout_cases())
def test_row_scores(reward_weights, case):
    score, present = estimators.row_scores(build(case), reward_weights)
    expected, expected_present = scores_of(case, reward_weights)
    assert_close(score, expected)
    assert_close(present, expected_present)


@pytest.mark.parametrize("reward_weights", WEIGHTS)
@modest
@given(case=rollout_cases())
def test_rewards_per_token(reward_weights, case):
    rewards, present = estimators.rewards_per_token(build(case), reward_weights)
    expected, expected_present = token_rewards_of(case, reward_weights)
    assert_close(rewards, expected)
    assert_close(present, expected_present)


@pytest.mark.parametrize("reward_weights", WEIGHTS)
@modest
@given(case=rollout_cases())
def test_drop_uniform_groups(reward_weights, case):
    found = run(estimators.drop_uniform_groups(reward_weights=reward_weights), case)
    assert_close(found.valid, oracle.drop_uniform_groups(*scores_of(case, reward_weights), case.valid, case.group))


@pytest.mark.parametrize("options", [{}, {"discount": 0.9}, {"discount": 0.5, "reward_weights": (0.5, -2.0)}])
@modest
@given(case=rollout_cases())
def test_reward_to_go(options, case):
    found = run(estimators.reward_to_go(**options), case)
    rewards, present = token_rewards_of(case, options.get("reward_weights"))
    assert_close(found.advantage, oracle.reward_to_go(rewards, case.mask, discount=options.get("discount", 1.0)))
    assert_close(found.valid, case.valid * present)
    check_outside(found, case)


@pytest.mark.parametrize("options", [{}, {"shift_mean": False}, {"degrees_of_freedom": 0, "epsilon": 1e-4}])
@modest
@given(case=rollout_cases())
def test_whiten(options, case):
    found = run(estimators.whiten(**options), case)
    assert_close(found.advantage, oracle.whiten(case.advantage, case.valid, case.mask, **options), atol=1e-5)
    check_outside(found, case)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_equal_advantages_gives_exactly_zero_or_the_mean(shift_mean):
    mask = np.ones((1, 7), np.float32)
    for advantage in (0.1, 100.1, -3.3):
        rollouts = Rollouts(
            tokens=np.zeros((1, 7), np.int32), length=np.full(1, 7), mask=mask, rewards=np.ones((1, 1), np.float32),
            advantage=mask * np.float32(advantage),
        )  # fmt: skip
        found = estimators.whiten(shift_mean=shift_mean).update(rollouts, (), jax.random.key(0))[0].advantage
        np.testing.assert_allclose(found, 0.0 if shift_mean else advantage, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@modest
@given(case=rollout_cases())
def test_kl_in_reward(kind, case):
    bound = 0.4 if kind == "k1" else None
    found = run(estimators.kl_in_reward(coefficient=0.3, kind=kind, bound=bound), case)
    expected = oracle.kl_in_reward(
        case.token_rewards, case.behavior_logp, case.reference_logp, case.mask, coefficient=0.3, kind=kind, bound=bound
    )
    assert_close_at_actions(found.token_rewards, expected, case, rtol=5e-5)


@pytest.mark.parametrize(("kind", "bound"), [("k1", 0.3), ("k3", None)])
@modest
@given(case=rollout_cases())
def test_kl_in_advantage(kind, bound, case):
    options = {"coefficient": 0.3, "kind": kind, "bound": bound}
    found = run(estimators.chain(estimators.group_advantage(), estimators.kl_in_advantage(**options)), case)
    before = run(estimators.group_advantage(), case)
    expected = oracle.kl_in_advantage(
        before.advantage, before.valid, case.behavior_logp, case.reference_logp, case.mask, **options
    )
    np.testing.assert_allclose(found.advantage, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [
    {"max_length": 8, "buffer": 4}, {"max_length": 4, "buffer": 2, "penalty": 0.5}, {"max_length": 3, "buffer": 3},
    {"max_length": 5, "buffer": 1},
])  # fmt: skip
@modest
@given(case=rollout_cases())
def test_overlong_penalty(options, case):
    found = run(estimators.overlong_penalty(**options), case)
    assert_close_at_actions(found.token_rewards, oracle.overlong_penalty(case.token_rewards, case.mask, **options), case)


@pytest.mark.parametrize(("name", "options"), [
    ("token_mean", {}), ("sequence_mean", {}), ("sequence_mean_token_sum", {}), ("constant", {"length": 10}),
])  # fmt: skip
@modest
@given(case=rollout_cases())
def test_weightings(name, options, case):
    found = run(getattr(estimators, name)(**options), case)
    assert_close(found.weight, getattr(oracle, name)(case.valid, case.mask, **options), atol=1e-8)


def test_every_public_estimator_has_an_oracle():
    structure = {"Estimator", "chain", "stateful", "stateless"}
    assert set(estimators.__all__) - structure <= oracles.names()
