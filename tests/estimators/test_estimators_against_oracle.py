"""Every estimator against its oracle, on random, ragged and degenerate rollouts."""

import jax
import numpy as np
import oracles
import pytest
from hypothesis import given
from oracles import advantages as oracle
from oracles import shaping
from oracles.cases import modest, rollout_cases
from running import assert_close, assert_close_at_actions, build, check_outside, compiled, run

from jaxrl_llm import estimators
from jaxrl_llm.types import Rollouts

WEIGHTS = (None, (0.5, -2.0))


def scores_of(case, reward_weights=None):
    return oracle.row_scores(case.rewards, case.valid, case.mask, case.token_rewards, reward_weights)


def compiled_on(estimator):
    return lambda rollouts: compiled(estimator.update)(rollouts, (), jax.random.key(0))[0]


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


@pytest.mark.parametrize("options", [{"size": 1}, {"size": 2, "penalty": 0.5}, {}])
@modest
@given(case=rollout_cases())
def test_repetition_penalty(options, case):
    """Tokens of two kinds, so that runs repeat."""
    tokens = (np.arange(case.mask.size).reshape(case.mask.shape) ** 2 % 5 % 2).astype(np.int32)
    found = compiled_on(estimators.repetition_penalty(**options))(build(case).replace(tokens=tokens))
    expected = shaping.repetition_penalty(case.token_rewards, tokens, case.mask, **options)
    assert_close_at_actions(found.token_rewards, expected, case)


def test_repetition_penalty_by_hand():
    """5 5 5 5 5 has four pairs of one kind, 1 2 3 4 three of three."""
    tokens = np.array([[1, 2, 3, 4, 0], [5, 5, 5, 5, 5]], np.int32)
    mask = (tokens > 0).astype(np.float32)
    rollouts = Rollouts(tokens=tokens, length=np.array([4, 5]), mask=mask, rewards=np.zeros((2, 1), np.float32))
    found = estimators.repetition_penalty(size=2).update(rollouts, (), jax.random.key(0))[0]
    np.testing.assert_allclose(found.token_rewards.sum(axis=1), [0.0, -0.75])
    assert estimators.repetition_penalty(size=9).update(rollouts, (), jax.random.key(0))[0].token_rewards is None
    with pytest.raises(ValueError, match="size is 0"):
        estimators.repetition_penalty(size=0).update(rollouts, (), jax.random.key(0))


@pytest.mark.parametrize("emphasis", [0.0, 0.5])
@modest
@given(case=rollout_cases())
def test_teacher_advantage(emphasis, case):
    rollouts = build(case)
    rollouts = rollouts.replace(extras=rollouts.extras | {"teacher_logp": case.reference_logp})
    found = compiled_on(estimators.teacher_advantage(emphasis=emphasis))(rollouts)
    arrays = case.reference_logp, case.behavior_logp, case.mask, case.valid
    expected = shaping.teacher_advantage(*arrays, emphasis=emphasis)
    np.testing.assert_allclose(found.advantage, expected, rtol=1e-4, atol=1e-4)


def test_teacher_advantage_by_hand():
    """Gaps 1, -2 and 1: weights 1.5, 1.5 - 0.5 / 4 and 1.5 - 0.5 * 3 / 4."""
    rollouts = Rollouts(
        tokens=np.zeros((1, 3), np.int32), length=np.array([3]), mask=np.ones((1, 3), np.float32),
        rewards=np.zeros((1, 1), np.float32), behavior_logp=np.full((1, 3), -3, np.float32),
        extras={"teacher_logp": np.array([[-2, -5, -2]], np.float32)},
    )  # fmt: skip
    found = estimators.teacher_advantage(emphasis=0.5).update(rollouts, (), jax.random.key(0))[0]
    np.testing.assert_allclose(found.advantage, [[1.5, -2 * 1.375, 1.125]], rtol=1e-6)
    with pytest.raises(ValueError, match="emphasis is -1"):
        estimators.teacher_advantage(emphasis=-1.0).update(rollouts, (), jax.random.key(0))


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
    # What is named is another estimator's, which has an oracle of its own.
    structure = {"Estimator", "chain", "named_weighting", "stateful", "stateless"}
    assert set(estimators.__all__) - structure <= oracles.names()
