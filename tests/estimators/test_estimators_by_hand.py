"""Hand-computed values, combinators, and what estimators refuse."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import estimators
from jaxrl_llm.estimators import (
    chain,
    drop_uniform_groups,
    gae,
    group_advantage,
    leave_one_out_baseline,
    reward_to_go,
    std_scale,
    token_mean,
    whiten,
)
from jaxrl_llm.types import Rollouts

KEY = jax.random.key(0)


def rollouts_of(rewards, mask=None, **fields) -> Rollouts:
    rewards = np.asarray(rewards, np.float32)
    rewards = rewards[:, None] if rewards.ndim == 1 else rewards
    mask = np.ones((len(rewards), 2), np.float32) if mask is None else np.asarray(mask, np.float32)
    length = np.full(len(rewards), mask.shape[1], np.int32)
    return Rollouts(tokens=np.zeros(mask.shape, np.int32), length=length, mask=mask, rewards=rewards, **fields)


def update(estimator, rollouts):
    return estimator.update(rollouts, estimator.init(), KEY)[0]


def test_groups_of_different_sizes():
    rollouts = rollouts_of([1, 3, 2, 4, 6], group=np.array([0, 0, 1, 1, 1], np.int32))
    by_mean = update(group_advantage(scale=None), rollouts).advantage[:, 0]
    by_others = update(group_advantage(baseline=leave_one_out_baseline(), scale=None), rollouts).advantage[:, 0]
    np.testing.assert_allclose(by_mean, [-1, 1, -2, 0, 2])
    np.testing.assert_allclose(by_others, [-2, 2, -3, 0, 3])


@pytest.mark.parametrize(("degrees_of_freedom", "expected"), [(0, np.sqrt(1.5)), (1, 1.0)])
def test_standard_deviations_have_names(degrees_of_freedom, expected):
    rollouts = rollouts_of([1, 2, 3], group=np.zeros(3, np.int32))
    found = update(group_advantage(scale=std_scale(degrees_of_freedom=degrees_of_freedom, epsilon=0.0)), rollouts)
    np.testing.assert_allclose(found.advantage[:, 0], [-expected, 0, expected], rtol=1e-6)


def test_rewards_may_be_integers_of_the_user():
    rollouts = rollouts_of([0, 1], group=np.zeros(2, np.int32)).replace(rewards=np.array([[0], [1]]))
    found = update(group_advantage(scale=None), rollouts)
    np.testing.assert_allclose(found.advantage[:, 0], [-0.5, 0.5])


def test_gae_by_hand_skips_what_is_no_action():
    mask = [[1, 0, 1]]
    rollouts = rollouts_of([1.0], mask, extras={"behavior_value": np.array([[0.5, 9.0, 0.25]], np.float32)})
    found = update(gae(discount=0.5, trace_decay=0.5), rollouts)
    last = 1.0 - 0.25
    first = 0.5 * 0.25 - 0.5 + 0.25 * last
    np.testing.assert_allclose(found.advantage, [[first, 0, last]])
    np.testing.assert_allclose(found.extras["returns"], [[first + 0.5, 0, 1.0]])


def test_discount_counts_actions():
    found = update(reward_to_go(discount=0.5), rollouts_of([8.0], [[1, 0, 1, 0, 0, 1]]))
    np.testing.assert_allclose(found.advantage, [[2, 0, 4, 0, 0, 8]])


def test_nothing_left_gives_no_weight():
    rollouts = rollouts_of([1, 1, 0, 0], group=np.array([0, 0, 1, 1], np.int32))
    found = update(chain(drop_uniform_groups(), group_advantage(), token_mean()), rollouts)
    assert not np.any(found.weight) and not np.any(found.valid) and not np.any(found.advantage)


def test_all_rewards_missing_leaves_nothing():
    rollouts = rollouts_of(np.full((4, 3), np.nan), group=np.array([0, 0, 1, 1], np.int32))
    for estimator in (group_advantage(), reward_to_go(), drop_uniform_groups()):
        found = update(chain(estimator, whiten(), token_mean()), rollouts)
        assert not np.any(found.weight) and not np.any(found.advantage)


def test_missing_rewards_leave_their_group():
    rollouts = rollouts_of([1, np.nan, 3], group=np.zeros(3, np.int32))
    found = update(group_advantage(scale=None), rollouts)
    np.testing.assert_allclose(found.advantage[:, 0], [-1, 0, 1])
    np.testing.assert_allclose(found.valid, [1, 0, 1])


def test_chain_is_equal_to_its_steps_one_by_one():
    rollouts = rollouts_of([1, 3, 2, 4], group=np.array([0, 0, 1, 1], np.int32))
    joined = update(chain(group_advantage(), token_mean()), rollouts)
    stepwise = update(token_mean(), update(group_advantage(), rollouts))
    chex.assert_trees_all_equal(joined, stepwise)


def test_chains_carry_state_and_fold_the_key():
    """A stateful estimator in the sense of the contract: it counts its calls and draws noise."""

    def noisy_update(rollouts, count, key):
        return rollouts.replace(advantage=rollouts.advantage + jax.random.normal(key, rollouts.advantage.shape)), count + 1

    noisy = estimators.Estimator(init=lambda: jnp.int32(0), update=noisy_update, parts=("noisy()",))
    both = chain(noisy, noisy)
    found, state = jax.jit(both.update)(rollouts_of([1, 2]), both.init(), KEY)
    assert [int(count) for count in state] == [1, 1]
    once, _ = noisy.update(rollouts_of([1, 2]), jnp.int32(0), jax.random.fold_in(KEY, 0))
    twice, _ = noisy.update(once, jnp.int32(0), jax.random.fold_in(KEY, 1))
    np.testing.assert_allclose(found.advantage, twice.advantage, rtol=1e-6)


def test_equal_compositions_are_equal():
    assert group_advantage() == group_advantage(scale=std_scale())
    assert hash(group_advantage()) == hash(group_advantage(scale=std_scale()))
    assert group_advantage() != group_advantage(scale=None)
    assert chain(group_advantage(), token_mean()) == chain(group_advantage(), token_mean())


def test_estimators_print_as_code():
    assert repr(chain(group_advantage(scale=None), token_mean())) == "chain(group_advantage(scale=None), token_mean())"


def test_annotations_are_declared():
    assert chain(gae(), whiten()).annotations == {"behavior_value"}
    assert estimators.kl_in_reward().annotations == {"behavior_logp", "reference_logp"}
    assert group_advantage().annotations == frozenset()


@pytest.mark.parametrize(("estimator", "message"), [
    (lambda: group_advantage(baseline="median"), "baseline.*median"),
    (lambda: group_advantage(scale="iqr"), "scale.*iqr"),
    (lambda: group_advantage(reward_weights=(1.0, 2.0, 3.0)), "reward_weights has 3"),
    (lambda: estimators.overlong_penalty(max_length=4, buffer=5), "buffer is 5"),
    (lambda: estimators.overlong_penalty(max_length=4, buffer=0), "buffer is 0"),
    (lambda: estimators.constant(length=0), "length is 0"),
    (lambda: estimators.kl_in_reward(kind="k4"), "'k4'"),
    (lambda: estimators.kl_in_reward(kind="k3+"), "a reward has no gradient"),
])  # fmt: skip
def test_refusals_name_the_value(estimator, message):
    rollouts = rollouts_of([1, 2], behavior_logp=np.zeros((2, 2), np.float32), extras={"reference_logp": np.zeros((2, 2))})
    with pytest.raises(ValueError, match=message):
        update(estimator(), rollouts)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="group_advantage: unknown option 'baselin'; it takes.*baseline"):
        group_advantage(baselin="mean")


def test_inputs_are_not_edited():
    rollouts = rollouts_of([1, 2, 3], group=np.zeros(3, np.int32))
    before = jax.tree.map(np.copy, rollouts)
    update(chain(group_advantage(), token_mean()), rollouts)
    chex.assert_trees_all_equal(rollouts, before)


@pytest.mark.parametrize("jitted", [False, True])
def test_sums_that_differ_by_rounding_alone_are_uniform(jitted):
    """0.1 + 0.2 + 0.6, in another order, is another float32 number; 0.9 + 1e-4 is another score."""
    parts = np.array([[0.1, 0.2, 0.6], [0.6, 0.2, 0.1], [0.2, 0.6, 0.1], [0.9, 0.0, 0.0]], np.float32)
    assert len({float(np.float32(np.float32(a + b) + c)) for a, b, c in parts}) > 1
    rollouts = rollouts_of(np.concatenate([parts, parts[:1], parts[3:] + 1e-4 * np.eye(3, dtype=np.float32)[:1]]))
    rollouts = rollouts.replace(group=np.array([0, 0, 0, 0, 1, 1], np.int32))
    run = jax.jit(estimators.row_scores, static_argnums=1) if jitted else estimators.row_scores
    score, _ = run(rollouts, (1.0, 1.0, 1.0))
    assert len(np.unique(score[:4])) == 1 and len(np.unique(score[4:])) == 2
    np.testing.assert_allclose(score, np.sum(rollouts.rewards, axis=1), rtol=1e-6)
    kept = drop_uniform_groups().update(rollouts, (), KEY)[0].valid
    np.testing.assert_array_equal(kept, [0, 0, 0, 0, 1, 1])
