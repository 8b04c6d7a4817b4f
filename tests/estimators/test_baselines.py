"""Baselines and scales, one by one and in `group_advantage`, and what is added up over components."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from oracles import advantages, baselines
from oracles.cases import brief
from running import Rollouts, assert_close, build, check_outside, compiled, rich_cases, run

from jaxrl_llm import estimators
from jaxrl_llm.estimators import group_advantage, mean_baseline, std_scale

BASELINES = [
    ("mean_baseline", {}), ("mean_baseline", {"over": "batch"}), ("mean_baseline", {"over": "stratum"}),
    ("mean_baseline", {"virtual": (1.0, 0.25)}), ("median_baseline", {}), ("leave_one_out_baseline", {}),
    ("leave_one_out_baseline", {"over": "batch"}),
    ("leave_one_out_baseline", {"alone": "none"}), ("length_weighted_baseline", {}),
    ("length_weighted_baseline", {"over": "batch"}), ("given_baseline", {}),
    ("given_baseline", {"annotation": "anchor_reward"}),
    ("mean_baseline", {"alone": "none"}), ("median_baseline", {"alone": "none", "over": "stratum"}),
    ("length_weighted_baseline", {"alone": "none"}),
    ("constant_baseline", {"value": 0.3}),
]  # fmt: skip
SCALES = [
    ("std_scale", {}), ("std_scale", {"degrees_of_freedom": 1, "epsilon": 1e-4}), ("std_scale", {"over": "batch"}),
    ("std_scale", {"over": "stratum", "placement": "inside", "epsilon": 0.01}),
    ("std_scale", {"placement": "floor", "epsilon": 0.3}),
    ("std_scale", {"placement": "where_positive", "degrees_of_freedom": 1}),
    ("std_scale", {"virtual": (1.0,), "epsilon": 0.01}),
    ("std_scale", {"others": True, "degrees_of_freedom": 1, "placement": "where_positive", "epsilon": 0.01}),
    ("std_scale", {"others": True, "over": "batch", "epsilon": 0.1}),
    ("std_scale", {"alone": "none", "degrees_of_freedom": 1}),
    ("constant_scale", {"value": 0.7}), ("nonzero_share_scale", {}), ("nonzero_share_scale", {"factor": 2.0}),
    ("mean_scale", {"epsilon": 2.0}), ("mad_scale", {"factor": 1.4826, "epsilon": 0.1}), ("mad_scale", {"over": "batch"}),
]  # fmt: skip
RELATIVE = [
    slot
    for slot in BASELINES
    if slot[0] not in ("given_baseline", "constant_baseline") and slot[1] in ({}, {"over": "stratum"})
]


def of(slot):
    return None if slot is None else getattr(estimators, slot[0])(**slot[1])


def oracle_of(slot):
    return None if slot is None else (getattr(baselines, slot[0]), slot[1])


def scores_of(case, reward_weights=None):
    return advantages.row_scores(case.rewards, case.valid, case.mask, case.token_rewards, reward_weights)


@pytest.mark.parametrize(("name", "options"), BASELINES + SCALES)
@brief
@given(case=rich_cases())
def test_slots(name, options, case):
    score, present = scores_of(case)
    found = compiled(of((name, options)))(np.float32(score), np.float32(present), build(case))
    expected = getattr(baselines, name)(list(score), present, case, **options)
    keep = present > 0
    assert_close(np.asarray(found)[keep], np.asarray(expected)[keep])


@pytest.mark.parametrize(
    ("baseline", "scale"), list(itertools.product([None, BASELINES[1], BASELINES[5]], [None, SCALES[1], SCALES[4]]))
)
@brief
@given(case=rich_cases())
def test_group_advantage_with_slots(baseline, scale, case):
    found = run(group_advantage(baseline=of(baseline), scale=of(scale), reward_weights=(0.5, -2.0)), case)
    score, present = scores_of(case, (0.5, -2.0))
    expected = baselines.group_advantage(list(score), present, case, baseline=oracle_of(baseline), scale=oracle_of(scale))
    assert_close(found.advantage, expected, rtol=5e-5)
    assert_close(found.valid, present * case.valid)
    check_outside(found, case)


@pytest.mark.parametrize("slot", RELATIVE)
@brief
@given(case=rich_cases())
def test_uniform_pools_give_exactly_zero(slot, case):
    found = run(group_advantage(baseline=of(slot)), case)
    score, present = scores_of(case)
    for number in set(case.group):
        own = score[(case.group == number) & (present > 0)]
        if len(set(own)) <= 1:
            assert not found.advantage[case.group == number].any()


@pytest.mark.parametrize("slot", RELATIVE)
def test_uniform_numbers_that_float32_cannot_average(slot):
    """The float32 mean of six times 0.1 + 1e-8 need not be it; the advantage is 0 all the same."""
    mask = np.ones((6, 3), np.float32)
    rollouts = Rollouts(
        tokens=np.zeros((6, 3), np.int32), length=np.full(6, 3), mask=mask, rewards=np.full((6, 1), 100.1, np.float32),
        group=np.zeros(6, np.int32), extras={"stratum": np.zeros(6, np.int32)},
    )  # fmt: skip
    estimator = group_advantage(baseline=of(slot), scale=std_scale(epsilon=1e-12))
    assert not compiled(estimator.update)(rollouts, (), jax.random.key(0))[0].advantage.any()


@pytest.mark.parametrize(
    ("weights", "scale"), [(None, ("std_scale", {})), ((0.5, -2.0), ("std_scale", {"degrees_of_freedom": 1}))]
)
@brief
@given(case=rich_cases())
def test_component_advantage(weights, scale, case):
    found = run(estimators.component_advantage(scale=of(scale), reward_weights=weights), case)
    _, present = scores_of(case)
    expected = baselines.component_advantage(case.rewards, present, case, weights=weights or (1.0, 1.0), scale=oracle_of(scale))
    assert_close(found.advantage, expected, rtol=5e-5, atol=2e-5)
    check_outside(found, case)


@pytest.mark.reduction("ngrpo", "grpo")
@brief
@given(case=rich_cases())
def test_no_virtual_sample_is_the_plain_group(case):
    plain = run(group_advantage(), case)
    virtual = run(group_advantage(baseline=mean_baseline(virtual=()), scale=std_scale(virtual=())), case)
    np.testing.assert_array_equal(plain.advantage, virtual.advantage)


def test_ngrpo_by_hand():
    """All eight wrong beside one virtual right answer: A = -1 / sqrt(8 + 1) = -1/3."""
    rollouts = Rollouts(
        tokens=np.zeros((8, 1), np.int32), length=np.ones(8, np.int32), mask=np.ones((8, 1), np.float32),
        rewards=np.zeros((8, 1), np.float32), group=np.zeros(8, np.int32),
    )  # fmt: skip
    scale = std_scale(virtual=(1.0,), degrees_of_freedom=1)
    estimator = group_advantage(baseline=mean_baseline(virtual=(1.0,)), scale=scale)
    found = compiled(estimator.update)(rollouts, (), jax.random.key(0))[0]
    np.testing.assert_allclose(found.advantage, -1 / 3, rtol=1e-5)


@pytest.mark.parametrize("name", ["mean_baseline", "median_baseline", "leave_one_out_baseline", "length_weighted_baseline"])
def test_a_row_alone_may_keep_its_score(name):
    """Two rows of one prompt and one of another, of reward 2, which verl gives 2 / (1 + 1e-6)."""
    rollouts = Rollouts(
        tokens=np.zeros((3, 1), np.int32), length=np.ones(3, np.int32), mask=np.ones((3, 1), np.float32),
        rewards=np.array([[1], [0], [2]], np.float32), group=np.array([0, 0, 1], np.int32),
    )  # fmt: skip
    kept = group_advantage(baseline=getattr(estimators, name)(alone="none"), scale=std_scale(alone="none"))
    own = group_advantage(baseline=getattr(estimators, name)())
    kept, own = (compiled(estimator.update)(rollouts, (), jax.random.key(0))[0].advantage for estimator in (kept, own))
    np.testing.assert_array_equal(own[2], 0.0)
    np.testing.assert_array_equal(kept[2], 2.0)
    np.testing.assert_array_equal(own[:2], kept[:2])


def test_the_deviation_of_the_others_by_hand():
    """Rewards 1 0 0 0: beside the first all are equal, and nothing is divided; the others see 1 0 0, sqrt(1/3) by Bessel."""
    rollouts = Rollouts(
        tokens=np.zeros((4, 1), np.int32), length=np.ones(4, np.int32), mask=np.ones((4, 1), np.float32),
        rewards=np.array([[1], [0], [0], [0]], np.float32), group=np.zeros(4, np.int32),
    )  # fmt: skip
    scale = std_scale(others=True, degrees_of_freedom=1, placement="where_positive")
    estimator = group_advantage(baseline=estimators.leave_one_out_baseline(), scale=scale)
    found = compiled(estimator.update)(rollouts, (), jax.random.key(0))[0].advantage[:, 0]
    np.testing.assert_allclose(found, [1.0, *[-1 / 3 / (np.sqrt(1 / 3) + 1e-6)] * 3], rtol=1e-5)


def test_virtual_samples_keep_nobody_alone():
    for slot in ({"baseline": mean_baseline(virtual=(1.0,), alone="none")}, {"scale": std_scale(virtual=(1.0,), others=True)}):
        with pytest.raises(ValueError, match="virtual"):
            run_any(group_advantage(**slot))


def test_slots_declare_what_they_read():
    assert group_advantage(baseline=estimators.given_baseline()).annotations == {"greedy_reward"}
    assert group_advantage(scale=std_scale(over="stratum")).annotations == {"stratum"}
    assert group_advantage(scale=std_scale(over="batch")).annotations == frozenset()


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="placement is 'above'"):
        run_any(group_advantage(scale=std_scale(placement="above")))
    with pytest.raises(ValueError, match="alone is 'first'"):
        run_any(group_advantage(baseline=estimators.leave_one_out_baseline(alone="first")))


def run_any(estimator):
    rollouts = Rollouts(
        tokens=np.zeros((2, 1), np.int32), length=np.ones(2, np.int32), mask=np.ones((2, 1), np.float32),
        rewards=np.zeros((2, 1), np.float32),
    )  # fmt: skip
    return compiled(estimator.update)(rollouts, estimator.init(), jax.random.key(0))
