"""Rewards in time: generalised advantage estimation in its variants, turns as steps, and states that groups share."""

import jax
import numpy as np
import pytest
from hypothesis import given
from oracles import advantages, returns
from oracles.cases import brief
from running import Rollouts, assert_close, assert_close_at_actions, check_outside, compiled, rich_cases, run

from jaxrl_llm import estimators
from jaxrl_llm.estimators import chain, gae, length_adaptive_decay, minus_value, reward_to_go


def token_rewards_of(case, reward_weights=None):
    rewards, present = advantages.rewards_per_token(case.rewards, case.valid, case.mask, case.token_rewards, reward_weights)
    return rewards * present[:, None], present


@pytest.mark.parametrize("options", [
    {}, {"discount": 0.9, "trace_decay": 0.5}, {"trace_decay": 1.0, "value_trace_decay": 0.5}, {"step": "turn"},
    {"step": "turn", "discount": 0.9, "trace_decay": 0.7, "value_trace_decay": 1.0},
])  # fmt: skip
@brief
@given(case=rich_cases())
def test_gae(options, case):
    found = run(gae(**options), case)
    rewards, present = token_rewards_of(case)
    advantage, targets = returns.gae(rewards, case.behavior_value, case.mask, case.fields["turn"], **options)
    assert_close(found.advantage, advantage)
    assert_close_at_actions(found.extras["returns"], targets, case)
    assert_close(found.valid, case.valid * present)
    check_outside(found, case)
    assert np.isfinite(found.extras["returns"]).all()


@pytest.mark.parametrize("scale", [0.05, 0.5])
@brief
@given(case=rich_cases())
def test_length_adaptive_decay(scale, case):
    decay = returns.length_adaptive_decay(case.mask, scale=scale)
    found = run(gae(trace_decay=length_adaptive_decay(scale=scale), value_trace_decay=1.0), case)
    rewards, _ = token_rewards_of(case)
    options = {"trace_decay": decay, "value_trace_decay": 1.0}
    advantage, targets = returns.gae(rewards, case.behavior_value, case.mask, case.fields["turn"], **options)
    assert_close(found.advantage, advantage)
    assert_close_at_actions(found.extras["returns"], targets, case)


@brief
@given(case=rich_cases())
def test_minus_value(case):
    found = run(minus_value(), case)
    advantage, targets = returns.minus_value(case.advantage, case.behavior_value, case.mask)
    assert_close(found.advantage, advantage)
    assert_close(found.extras["returns"], targets)
    check_outside(found, case)


@brief
@given(case=rich_cases())
def test_gae_without_decay_is_the_return_minus_the_value(case):
    long, short = run(gae(trace_decay=1.0, discount=0.9), case), run(chain(reward_to_go(discount=0.9), minus_value()), case)
    assert_close(long.advantage, short.advantage, rtol=1e-4, atol=1e-5)
    assert_close_at_actions(long.extras["returns"], short.extras["returns"], case, rtol=1e-4, atol=1e-5)


# Discounts are such that equal returns are equal in any precision.
@pytest.mark.parametrize("options", [
    {"discount": 0.5}, {"epsilon": None}, {"discount": 1.0, "epsilon": 0.1, "reward_weights": (0.5, -2.0)},
])  # fmt: skip
@brief
@given(case=rich_cases())
def test_state_advantage(options, case):
    found = run(estimators.state_advantage(**options), case)
    options = dict(options)
    rewards, present = token_rewards_of(case, options.pop("reward_weights", None))
    arrays = (case.mask, case.fields["turn"], case.group, case.extras["state"])
    expected = returns.state_advantage(rewards, present, *arrays, **options)
    assert_close(found.advantage, expected, rtol=5e-5, atol=1e-5)
    assert_close(found.valid, case.valid * present)
    check_outside(found, case)


@pytest.mark.parametrize("options", [{}, {"discount": 0.5, "lengths": True}])
@brief
@given(case=rich_cases())
def test_turn_reward_to_go(options, case):
    found = run(estimators.turn_reward_to_go(**options), case)
    rewards, present = token_rewards_of(case)
    assert_close(found.advantage, returns.turn_reward_to_go(rewards, case.mask, case.fields["turn"], **options), rtol=5e-5)
    assert_close(found.valid, case.valid * present)
    check_outside(found, case)


@pytest.mark.parametrize("options", [{}, {"discount": 0.5, "epsilon": None}, {"reward_weights": (0.5, -2.0)}])
@brief
@given(case=rich_cases())
def test_turn_returns(options, case):
    if case.token_rewards is None:
        case.token_rewards = np.zeros(case.mask.shape, np.float32)
    found = run(estimators.turn_returns(**options), case)
    options = dict(options)
    weights = options.pop("reward_weights", None)
    outcome, present = advantages.row_scores(case.rewards, case.valid, case.mask, None, weights)
    expected = returns.turn_returns(outcome, present, case.token_rewards, case.mask, case.fields["turn"], case.group, **options)
    assert_close(found.advantage, expected, rtol=5e-5, atol=1e-5)
    assert_close(found.valid, case.valid * present)
    check_outside(found, case)


@pytest.mark.parametrize("options", [{}, {"discount": 0.5, "epsilon": None}])
@brief
@given(case=rich_cases())
def test_step_returns(options, case):
    found = run(estimators.step_returns(**options), case)
    arrays = (case.valid, case.mask, case.fields["turn"], case.group)
    expected = returns.step_returns(case.extras["step_reward"], *arrays, **options)
    valid = (case.valid > 0)[:, None]
    assert_close(np.where(valid, found.advantage, 0), np.where(valid, expected, 0), rtol=5e-5, atol=1e-5)
    check_outside(found, case)


def test_turns_by_hand():
    """Two turns of two actions with a tool's token between them: one step each."""
    rollouts = Rollouts(
        tokens=np.zeros((1, 5), np.int32), length=np.full(1, 5), mask=np.array([[1, 1, 0, 1, 1]], np.float32),
        rewards=np.ones((1, 1), np.float32), turn=np.array([[0, 0, 0, 1, 1]], np.int32),
        extras={"behavior_value": np.array([[0.5, 9.0, 9.0, 0.25, 9.0]], np.float32)},
    )  # fmt: skip
    found = compiled(gae(step="turn", discount=0.5, trace_decay=0.5).update)(rollouts, (), jax.random.key(0))[0]
    last = 1.0 - 0.25
    first = 0.5 * 0.25 - 0.5 + 0.25 * last
    np.testing.assert_allclose(found.advantage, [[first, first, 0, last, last]])
    np.testing.assert_allclose(found.extras["returns"], [[first + 0.5, first + 0.5, 0, 1.0, 1.0]])


@pytest.mark.reduction("gigpo", "grpo")
def test_one_turn_from_one_state_is_the_group():
    random = np.random.default_rng(0)
    rollouts = Rollouts(
        tokens=np.zeros((6, 3), np.int32), length=np.full(6, 3), mask=np.ones((6, 3), np.float32),
        rewards=random.normal(size=(6, 1)).astype(np.float32), group=np.array([0, 0, 0, 1, 1, 1], np.int32),
        extras={"state": np.zeros((6, 3), np.int32)},
    )  # fmt: skip
    alone = compiled(estimators.state_advantage().update)(rollouts, (), jax.random.key(0))[0]
    plain = estimators.group_advantage(scale=estimators.std_scale(degrees_of_freedom=1)).update(
        rollouts, (), jax.random.key(0)
    )[0]
    np.testing.assert_allclose(alone.advantage, plain.advantage, rtol=1e-5)


def test_unknown_steps_are_refused(request):
    with pytest.raises(ValueError, match="step is 'word'"):
        gae(step="word").parts[0](None)
