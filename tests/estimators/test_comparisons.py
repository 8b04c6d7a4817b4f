"""Advantages from trees, places, sets, exams and earlier visits."""

import jax
import numpy as np
import pytest
from hypothesis import given
from oracles import advantages, comparisons
from oracles.cases import brief
from running import PROMPTS, Rollouts, assert_close, check_outside, compiled, rich_cases, run, step

from jaxrl_llm import estimators
from jaxrl_llm.estimators import group_advantage, std_scale


def scores_of(case, reward_weights=None):
    return advantages.row_scores(case.rewards, case.valid, case.mask, case.token_rewards, reward_weights)


def spread(values, case):
    return np.where(case.mask > 0, np.asarray(values)[:, None], 0)


@pytest.mark.parametrize("divide", [True, False])
@brief
@given(case=rich_cases())
def test_prefix_tree_advantage(divide, case):
    estimator = estimators.prefix_tree_advantage() if divide else estimators.prefix_tree_advantage(scale=None)
    found = run(estimator, case)
    score, present = scores_of(case)
    arrays = (case.fields["tokens"], case.length, case.mask, case.group)
    assert_close(
        found.advantage, comparisons.prefix_tree_advantage(score, present, *arrays, divide=divide), rtol=5e-5, atol=1e-5
    )
    assert_close(found.valid, case.valid * present)
    check_outside(found, case)


@pytest.mark.reduction("tempo", "grpo")
@brief
@given(case=rich_cases())
def test_a_tree_without_branches_behind_the_first_token_is_the_group(case):
    """All answers begin differently: from the second token on there is nothing to tell."""
    case.fields["tokens"][:, 0] = np.arange(len(case.mask))
    case.mask[:, 0] = 0
    found, plain = (
        run(estimators.prefix_tree_advantage(), case),
        run(group_advantage(scale=std_scale(degrees_of_freedom=1)), case),
    )
    assert_close(found.advantage, plain.advantage)


@pytest.mark.parametrize("options", [{}, {"tail": "none"}, {"by": "place"}, {"weights": "rho", "tail": "none"}])
@brief
@given(case=rich_cases())
def test_optimal_token_baseline(options, case):
    case.extras["proximal_logp"] = case.reference_logp
    case.extras["rho"] = np.float32(1 + (np.arange(case.mask.size) % 3)).reshape(case.mask.shape) / 2
    found = run(estimators.optimal_token_baseline(**options), case)
    arrays = (case.reference_logp, case.extras["proximal_log_collision"], case.valid, case.mask, case.group)
    chosen = {"rho" if name == "weights" else name: value for name, value in options.items()}
    chosen |= {"rho": case.extras["rho"]} if "rho" in chosen else {}
    expected = comparisons.optimal_token_baseline(case.advantage, *arrays, **chosen)
    assert_close(found.advantage, expected, rtol=1e-4, atol=2e-4 * max(np.nanmax(np.abs(expected), initial=0), 1))
    check_outside(found, case)


@pytest.mark.parametrize("divide", [True, False])
@brief
@given(case=rich_cases())
def test_best_lead_advantage(divide, case):
    estimator = estimators.best_lead_advantage() if divide else estimators.best_lead_advantage(scale=None)
    found = run(estimator, case)
    score, present = scores_of(case)
    assert_close(found.advantage, spread(comparisons.best_lead_advantage(score, present, case.group, divide=divide), case))
    check_outside(found, case)


@pytest.mark.parametrize("k", [1, 2, 3])
@brief
@given(case=rich_cases())
def test_pass_at_k_advantage(k, case):
    found = run(estimators.pass_at_k_advantage(k=k, threshold=0.1), case)
    score, present = scores_of(case)
    expected = comparisons.pass_at_k_advantage(score, present, case.group, k=k, threshold=0.1)
    assert_close(found.advantage, spread(expected, case), rtol=1e-4, atol=1e-5)
    check_outside(found, case)


@pytest.mark.reduction("pass_at_k", "grpo")
def test_pass_at_one_is_the_standardised_group():
    rollouts = Rollouts(
        tokens=np.zeros((6, 1), np.int32), length=np.ones(6, np.int32), mask=np.ones((6, 1), np.float32),
        rewards=np.array([[0], [1], [0], [1], [1], [1]], np.float32), group=np.array([0, 0, 0, 0, 1, 1], np.int32),
    )  # fmt: skip
    plain, sets = (
        compiled(estimator.update)(rollouts, (), jax.random.key(0))[0].advantage
        for estimator in (group_advantage(scale=std_scale(epsilon=0.0)), estimators.pass_at_k_advantage(k=1))
    )
    np.testing.assert_allclose(sets, plain, rtol=1e-6)


@pytest.mark.parametrize("credit", ["share", "std", "uniform"])
@brief
@given(first=rich_cases(), second=rich_cases())
def test_risk_advantage(credit, first, second):
    options = {"bundle": 2, "levels": (0.25, 0.75), "rate": 0.125, "credit": credit}
    estimator = estimators.risk_advantage(**options)
    state, quantiles = None, None
    for case in (first, second):
        found, state = step(estimator, case, state)
        expected, quantiles = comparisons.risk_advantage(quantiles, *scores_of(case), case.group, **options)
        assert_close(found.advantage, spread(expected, case), rtol=2e-4, atol=1e-4)
        check_outside(found, case)
        if quantiles is not None:
            assert_close(state["quantiles"], quantiles)


@pytest.mark.parametrize("options", [{}, {"half_life": None, "forgetting": (0.9, 0.9), "prior": (2.0, 1.0)}])
@brief
@given(first=rich_cases(), second=rich_cases())
def test_tracked_advantage(options, first, second):
    estimator = estimators.tracked_advantage(prompts=PROMPTS, **options)
    state, table = None, {}
    for case in (first, second):
        case.extras["drift"] = np.abs(case.extras["greedy_reward"]) / 20
        found, state = step(estimator, case, state)
        arrays = (case.fields["prompt_id"], case.extras["drift"])
        expected, table = comparisons.tracked_advantage(table, *scores_of(case), *arrays, prompts=PROMPTS, **options)
        assert_close(found.advantage, spread(expected, case))
        check_outside(found, case)
        for prompt, (successes, failures) in table.items():
            assert_close(state["successes"][prompt], successes)
            assert_close(state["failures"][prompt], failures)


@brief
@given(first=rich_cases(), second=rich_cases(), third=rich_cases())
def test_cumulative_advantage(first, second, third):
    estimator = estimators.cumulative_advantage(prompts=PROMPTS)
    state, table = None, {}
    for case in (first, second, third):
        found, state = step(estimator, case, state)
        expected, table = comparisons.cumulative_advantage(table, *scores_of(case), case.fields["prompt_id"], prompts=PROMPTS)
        assert_close(found.advantage, spread(expected, case), rtol=1e-4, atol=1e-4)
        check_outside(found, case)


@brief
@given(first=rich_cases(), second=rich_cases())
def test_role_advantage(first, second):
    estimator = estimators.role_advantage(roles=2, decay=0.75)
    state, table = None, [0.0, 0.0]
    for case in (first, second):
        case.extras["role"] = case.extras["format"]
        found, state = step(estimator, case, state)
        expected, table = comparisons.role_advantage(table, *scores_of(case), case.extras["role"], roles=2, decay=0.75)
        assert_close(found.advantage, spread(expected, case))
        assert_close(state, table)
        check_outside(found, case)


@pytest.mark.reduction("dcpo", "grpo")
@brief
@given(case=rich_cases())
def test_the_first_visit_of_dcpo_is_grpo(case):
    found = run(estimators.cumulative_advantage(prompts=PROMPTS), case)
    plain = run(group_advantage(scale=std_scale(degrees_of_freedom=1, epsilon=0.0)), case)
    assert_close(found.advantage, plain.advantage, rtol=1e-5)


@pytest.mark.parametrize(("estimator", "message"), [
    (lambda: estimators.optimal_token_baseline(tail="long"), "tail is 'long'"),
    (lambda: estimators.optimal_token_baseline(by="row"), "by is 'row'"),
    (lambda: estimators.pass_at_k_advantage(k=0), "k is 0"),
    (lambda: estimators.risk_advantage(bundle=0), "bundle is 0"),
    (lambda: estimators.risk_advantage(levels=(0.8, 0.2)), "levels is"),
    (lambda: estimators.risk_advantage(credit="all"), "credit is 'all'"),
    (lambda: estimators.tracked_advantage(prompts=0), "prompts is 0"),
    (lambda: estimators.cumulative_advantage(prompts=0), "prompts is 0"),
    (lambda: estimators.role_advantage(roles=0), "roles is 0"),
    (lambda: estimators.tracked_advantage(prompts=3, forgetting=(0.9, 0.8)), "forgetting is"),
    (lambda: estimators.tracked_advantage(prompts=3, half_life=None), "without half_life there is one rho"),
])  # fmt: skip
def test_refusals_name_the_value(estimator, message):
    rollouts = Rollouts(
        tokens=np.zeros((2, 1), np.int32), length=np.ones(2, np.int32), mask=np.ones((2, 1), np.float32),
        rewards=np.zeros((2, 1), np.float32), extras={"drift": np.zeros(2)},
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        built = estimator()
        compiled(built.update)(rollouts, built.init(), jax.random.key(0))


@pytest.mark.parametrize("limit", [5.0, 1.0])
@brief
@given(case=rich_cases())
def test_token_group_advantage(limit, case):
    found = run(estimators.token_group_advantage(limit=limit, epsilon=1e-3), case)
    score, present = scores_of(case)
    expected = comparisons_of_tokens(score, present, case.mask, case.group, limit=limit, epsilon=1e-3)
    # A size within rounding of the limit may fall on either side.
    other = comparisons_of_tokens(score, present, case.mask, case.group, limit=limit * (1 + 1e-4), epsilon=1e-3)
    clear = np.isclose(expected, other)
    assert_close(found.advantage[clear], spread(expected, case)[clear], rtol=1e-4, atol=1e-4)
    check_outside(found, case)


comparisons_of_tokens = advantages.token_group_advantage


def test_a_long_answer_counts_as_often_as_it_has_tokens():
    """Rewards 1 and 0 of answers of three tokens and one: mean 3/4, deviation sqrt(3)/4."""
    rollouts = Rollouts(
        tokens=np.zeros((2, 3), np.int32), length=np.array([3, 1]), mask=np.array([[1, 1, 1], [1, 0, 0]], np.float32),
        rewards=np.array([[1.0], [0.0]], np.float32), group=np.zeros(2, np.int32),
    )  # fmt: skip
    found = estimators.token_group_advantage.function(rollouts).advantage[:, 0]
    np.testing.assert_allclose(found, [1 / np.sqrt(3), -np.sqrt(3)], rtol=1e-5)
    bounded = estimators.token_group_advantage.function(rollouts, limit=1.5).advantage[:, 0]
    np.testing.assert_allclose(bounded, [np.sqrt(0.5), -np.sqrt(0.5)], rtol=1e-5)


@brief
@given(case=rich_cases())
def test_among_is_the_estimator_of_these_rows_alone(case):
    case.fields["source"] = case.extras["stratum"]
    inner = estimators.chain(group_advantage(), estimators.sequence_mean())
    found = run(estimators.chain(estimators.among(0, inner), estimators.among(1, estimators.token_mean())), case)
    own = case.extras["stratum"] == 0
    valid = case.valid.copy()
    case.valid = valid * own
    alone = run(inner, case)
    case.valid = valid * ~own
    others = run(estimators.token_mean(), case)
    source = case.extras["stratum"]
    assert_close(found.advantage[own], alone.advantage[own])
    assert_close(found.weight, advantages.among(source, 0, alone.weight, others.weight))
    assert_close(found.valid, advantages.among(source, 0, alone.valid, valid))
