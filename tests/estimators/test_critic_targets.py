"""Targets of critics against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from oracles import advantages
from oracles import critics as oracle
from oracles.cases import brief
from running import assert_close, check_outside, rich_cases, step

from jaxrl_llm import estimators
from jaxrl_llm.estimators import chain, gae, monte_carlo_targets, reward_to_go, td_targets, v_trace
from jaxrl_llm.objectives import top
from jaxrl_llm.types import Rollouts

OUTPUTS = 4


def with_critic(case, seed=0):
    """The case with what critics and the policy before the step say, NaN outside of actions."""
    random, shape = np.random.default_rng(seed), case.mask.shape
    said = {
        "target_value": random.normal(size=shape),
        "behavior_value_outputs": random.normal(size=(*shape, OUTPUTS)),
        "target_value_outputs": random.normal(size=(*shape, OUTPUTS)),
        "proximal_logp": case.behavior_logp + 0.7 * random.normal(size=shape),
        "proximal_max_logp": -random.exponential(0.3, shape),
        "proximal_candidate_logp": -random.exponential(1.0, (*shape, 1)),
        "candidates": np.zeros((*shape, 1)),
    }
    inside = case.mask > 0
    for name, values in said.items():
        kept = np.where(inside if values.ndim == 2 else inside[..., None], values, np.nan).astype(np.float32)
        case.extras[name] = kept if name != "candidates" else np.zeros(values.shape, np.int32)
    return case


def rewards_of(case):
    rewards, present = advantages.rewards_per_token(case.rewards, case.valid, case.mask, case.token_rewards, None)
    return rewards * present[:, None], present


@pytest.mark.parametrize("options", [{"steps": 1}, {"steps": 3, "discount": 0.8}, {"steps": 50, "of": "behavior"}])
@brief
@given(case=rich_cases())
def test_td_targets(options, case):
    case = with_critic(case)
    found, _ = step(td_targets(**options), case)
    value = case.behavior_value if options.get("of") else case.extras["target_value"]
    expected = oracle.td_targets(
        rewards_of(case)[0], value, case.mask, steps=options["steps"], discount=options.get("discount", 1.0)
    )
    assert_close(found.extras["returns"], expected)


@brief
@given(case=rich_cases())
def test_monte_carlo_targets_are_the_returns(case):
    found, _ = step(monte_carlo_targets(discount=0.5), case)
    assert_close(found.extras["returns"], oracle.monte_carlo_targets(rewards_of(case)[0], case.mask, discount=0.5))
    np.testing.assert_array_equal(found.advantage, case.advantage)  # what came before stays, NaN included


@pytest.mark.parametrize("by", ["constant", "sigmoid", "rank"])
@brief
@given(case=rich_cases())
def test_blended_targets(by, case):
    case = with_critic(case)
    found, _ = step(estimators.blended_targets(by=by, share=0.7, discount=0.9), case)
    rewards, present = rewards_of(case)
    expected = oracle.blended_targets(
        rewards, case.extras["target_value"], case.mask, case.valid * present, share=0.7, by=by, discount=0.9
    )
    assert_close(found.extras["returns"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"clip_rho": 2.0, "clip_c": 0.7, "discount": 0.9, "trace_decay": 0.8}])
@brief
@given(case=rich_cases())
def test_v_trace(options, case):
    case = with_critic(case)
    found, _ = step(v_trace(**options), case)
    rewards, present = rewards_of(case)
    ratio = case.extras["proximal_logp"].astype(np.float64) - case.behavior_logp
    targets, advantage = oracle.v_trace(rewards, case.behavior_value, ratio, case.mask, **options)
    assert_close(found.extras["returns"], targets, rtol=1e-4, atol=1e-5)
    assert_close(found.advantage, advantage, rtol=1e-4, atol=1e-5)
    assert_close(found.valid, case.valid * present)
    check_outside(found, case)


@brief
@given(case=rich_cases())
def test_on_policy_v_trace_is_the_monte_carlo_advantage(case):
    """Ratios of 1 and no discount: the traces sum all rewards."""
    case = with_critic(case)
    case.extras["proximal_logp"] = case.behavior_logp
    found, _ = step(v_trace(), case)
    plain, _ = step(gae(trace_decay=1.0), case)
    assert_close(found.extras["returns"], plain.extras["returns"], rtol=1e-4, atol=1e-5)
    assert_close(found.advantage, plain.advantage, rtol=1e-4, atol=1e-5)


@brief
@given(case=rich_cases())
def test_stock_advantage(case):
    case = with_critic(case)
    found, _ = step(estimators.stock_advantage(share=0.3, trace_decay=0.8), case)
    expected = oracle.stock_advantage(
        rewards_of(case)[0], case.extras["behavior_value_outputs"], case.mask, share=0.3, trace_decay=0.8
    )
    assert_close(found.advantage, expected, rtol=1e-4, atol=1e-5)
    check_outside(found, case)


@brief
@given(case=rich_cases())
def test_greedy_targets(case):
    case = with_critic(case)
    found, _ = step(estimators.greedy_targets(greedy=top(count=1, of="reference"), alpha=0.3, discount=0.9), case)
    expected = oracle.greedy_targets(
        rewards_of(case)[0], case.behavior_value, case.extras["proximal_candidate_logp"][..., 0],
        case.extras["proximal_max_logp"], case.mask, alpha=0.3, discount=0.9,
    )  # fmt: skip
    assert_close(found.extras["returns"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", [None, 1.5])
@brief
@given(case=rich_cases())
def test_soft_rewards(target, case):
    state = np.float32(-1.2)
    found, after = step(estimators.soft_reward(initial=0.3, target=target, rate=0.1), case, state)
    bonus, moved = oracle.soft_reward(case.behavior_logp, case.mask, case.valid, float(state), target=target, rate=0.1)
    before = 0.0 if case.token_rewards is None else np.where(case.mask > 0, case.token_rewards, 0)
    assert_close(found.token_rewards, before + bonus, rtol=1e-4, atol=1e-5)
    assert_close(after, moved, rtol=1e-5, atol=1e-5)
    assert float(estimators.soft_reward(initial=0.3).init()) == pytest.approx(np.log(0.3))


@brief
@given(case=rich_cases())
def test_distributions_of_the_next_state(case):
    case = with_critic(case)
    found, _ = step(estimators.distribution_targets(kind="quantiles", discount=0.9), case)
    rewards, _ = rewards_of(case)
    samples = oracle.distribution_targets(rewards, case.extras["target_value_outputs"], case.mask, discount=0.9)
    assert_close(found.extras["return_samples"], samples)
    mean = oracle.td_targets(rewards, case.extras["target_value"], case.mask, steps=1, discount=0.9)
    assert_close(found.extras["returns"], mean)
    for expected in (True, False):
        drawn, _ = step(estimators.distribution_targets(kind="gaussian", expected=expected), case)
        assert np.isfinite(drawn.extras["return_samples"]).all() and drawn.extras["return_samples"].shape[-1] == 1
        if not expected:
            np.testing.assert_array_equal(drawn.extras["returns"], drawn.extras["return_samples"][..., 0])


def test_draws_have_the_moments_of_the_pair_with_the_least_mean():
    rows = 20_000
    outputs = np.tile(np.array([3.0, 0.0, 1.0, 0.5], np.float32), (rows, 2, 1))
    rollouts = Rollouts(
        tokens=np.zeros((rows, 2), np.int32), length=np.full(rows, 2), mask=np.ones((rows, 2), np.float32),
        rewards=np.zeros((rows, 1), np.float32),
        extras={"target_value": np.ones((rows, 2), np.float32), "target_value_outputs": outputs},
    )  # fmt: skip
    found, _ = estimators.distribution_targets(kind="gaussian").update(rollouts, (), jax.random.key(0))
    drawn = np.asarray(found.extras["return_samples"][:, 0, 0])
    assert drawn.mean() == pytest.approx(1.0, abs=0.03) and drawn.std() == pytest.approx(np.log1p(np.exp(0.5)), rel=0.03)
    assert not found.extras["return_samples"][:, 1].any()  # the end has the value 0


@brief
@given(case=rich_cases())
def test_weights_of_advantages(case):
    found, _ = step(estimators.advantage_weight(temperature=0.5, largest=9.0), case)
    expected = oracle.advantage_weight(case.advantage, case.mask, case.valid, temperature=0.5, largest=9.0)
    assert_close(found.advantage, expected, rtol=1e-4)
    check_outside(found, case)
    with pytest.raises(ValueError, match="temperature=0.0"):
        estimators.advantage_weight(temperature=0.0).update(build_rows([[0.0]]), (), None)


def build_rows(advantage):
    advantage = np.array(advantage, np.float32)
    return Rollouts(
        tokens=np.zeros(advantage.shape, np.int32), length=np.full(len(advantage), advantage.shape[1]),
        mask=np.ones(advantage.shape, np.float32), rewards=np.zeros((len(advantage), 1), np.float32), advantage=advantage,
    )  # fmt: skip


@pytest.mark.parametrize(("make", "message"), [
    (lambda: td_targets(steps=0, of="behavior"), "steps is 0"),
    (lambda: estimators.blended_targets(by="best"), "by is 'best'"),
    (lambda: estimators.blended_targets(share=2.0), "share is 2.0"),
    (lambda: estimators.stock_advantage(share=1.0), "share is 1.0"),
    (lambda: estimators.distribution_targets(kind="bins"), "kind is 'bins'"),
])  # fmt: skip
def test_impossible_targets(make, message):
    with pytest.raises(ValueError, match=message):
        make().update(build_rows([[0.0]]), (), jax.random.key(0))


def test_the_residual_gradient_is_biased_and_targets_are_not():
    """https://arxiv.org/abs/2108.06655: from one state the return is 0 or 1; the state behind it knows which.

    A critic learns the mean return from targets, Monte-Carlo or one-step. With a gradient through both values the squared error
    is the variation of the path, which it makes small instead.
    """
    # Rows go 0 -> 1 -> end and 0 -> 2 -> end with rewards 0 and 1 at the end.
    states = jnp.array([[0, 1], [0, 2]])
    rewards = jnp.array([[0.0, 0.0], [0.0, 1.0]])
    true = jnp.array([0.5, 0.0, 1.0])

    def descend(gradient):
        table = jnp.zeros(3)
        for _ in range(400):
            table -= 0.1 * gradient(table)
        return table

    def following(values):
        return jnp.pad(values[:, 1:], ((0, 0), (0, 1)))

    def by_targets(estimator):
        def gradient(table):
            rollouts = build_rows(np.zeros((2, 2))).replace(
                token_rewards=rewards, extras={"behavior_value": table[states], "target_value": table[states]}
            )
            targets = estimator.update(rollouts, (), None)[0].extras["returns"]
            return jax.grad(lambda table: 0.5 * jnp.square(table[states] - targets).sum())(table)

        return jax.jit(gradient)

    def residual(table):
        return 0.5 * jnp.square(rewards + following(table[states]) - table[states]).sum()

    for estimator in (monte_carlo_targets(), td_targets(steps=1)):
        np.testing.assert_allclose(descend(by_targets(estimator)), true, atol=1e-3)
    assert np.abs(descend(jax.jit(jax.grad(residual))) - true).max() > 0.2


def test_returns_go_through_a_chain():
    assert chain(reward_to_go(), monte_carlo_targets()).provides == {"returns"}
    assert td_targets(of="behavior").annotations == {"behavior_value"} and td_targets().annotations == {"target_value"}
