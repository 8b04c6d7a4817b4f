"""Rewards shaped by length, likelihood, tools, formats, votes and novelty."""

import jax
import numpy as np
import pytest
from hypothesis import given
from oracles import advantages, filters, shaping
from oracles.cases import brief
from running import PROMPTS, Rollouts, assert_close, check_outside, compiled, rich_cases, run, step

from jaxrl_llm import estimators

COMPONENT, THRESHOLD = 1, 0.1


def component(case):
    """Values of the reward component, 0 where it is missing, and whether it is there in a valid row."""
    given = case.rewards[:, COMPONENT].astype(float)
    known = ~np.isnan(given)
    return list(np.where(known, given, 0.0)), list((known & (case.valid > 0)).astype(float))


def check_component(found, expected, case, **tolerances):
    """The component is as expected where it was known, and nothing else has changed."""
    known = ~np.isnan(case.rewards[:, COMPONENT])
    assert_close(found.rewards[known, COMPONENT], np.asarray(expected)[known], **tolerances)
    assert np.isnan(found.rewards[~known, COMPONENT]).all()
    np.testing.assert_array_equal(found.rewards[:, 0], case.rewards[:, 0])


STATELESS = [
    ("length_penalty", {"coefficient": 0.1}, ("mask",), False),
    ("relative_length_reward", {"weight": 0.5, "threshold": THRESHOLD}, ("mask", "group"), True),
    ("shortest_correct_penalty", {"coefficient": 0.1, "threshold": THRESHOLD}, ("mask", "group"), True),
    ("cosine_length_reward", {"max_length": 5, "threshold": THRESHOLD}, ("mask",), False),
    ("cosine_length_reward", {"max_length": 9, "right": (0.5, 1.0), "wrong": (-1.0, -0.5)}, ("mask",), False),
    ("efficient_length_reward", {"share": 0.2, "threshold": THRESHOLD}, ("mask", "group"), True),
    ("efficient_length_reward", {"share": 0.5, "strength": 0.3}, ("mask", "group"), True),
    ("efficient_length_reward", {"share": 0.0}, ("mask", "group"), True),
    ("unlikeliness_reward", {"strength": 0.5}, ("behavior_logp", "mask", "group"), True),
    ("tool_call_reward", {"threshold": THRESHOLD, "smoothing": 0.5}, ("group", "calls"), True),
    ("flaw_penalty", {"penalty": 0.5, "threshold": THRESHOLD}, ("flawed",), False),
]


def arrays_of(case, names):
    return [case.extras[name] if name in case.extras else getattr(case, name) for name in names]


@pytest.mark.parametrize(("name", "options", "arrays", "needs_present"), STATELESS)
@brief
@given(case=rich_cases())
def test_shaping(name, options, arrays, needs_present, case):
    found = run(getattr(estimators, name)(component=COMPONENT, **options), case)
    value, present = component(case)
    given = (value, present) if needs_present else (value,)
    expected = np.asarray(getattr(shaping, name)(*given, *arrays_of(case, arrays), **options))
    if needs_present:  # what a row that is not valid would get is nobody's business
        expected = np.where(np.asarray(present) > 0, expected, found.rewards[:, COMPONENT])
    check_component(found, expected, case)


@pytest.mark.parametrize("name", ["majority_reward", "novelty_reward"])
@brief
@given(case=rich_cases())
def test_votes(name, case):
    found = run(getattr(estimators, name)(component=COMPONENT), case)
    _, present = component(case)
    arrays = ("group", "answer") if name == "majority_reward" else ("group", "answer", "embedding")
    expected = np.asarray(getattr(shaping, name)(present, *arrays_of(case, arrays)))
    expected = np.where(np.asarray(present) > 0, expected, found.rewards[:, COMPONENT])
    check_component(found, expected, case, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"center": 0.5, "width": 0.2, "quorum": 1}, {"quorum": 3, "offset": 0.5}])
@brief
@given(case=rich_cases())
def test_pseudo_label_advantage(options, case):
    found = run(estimators.pseudo_label_advantage(**options), case)
    _, present = advantages.row_scores(case.rewards, case.valid, case.mask)
    expected = shaping.pseudo_label_advantage(present, case.group, case.extras["answer"], **options)
    assert_close(found.advantage, np.where(case.mask > 0, np.asarray(expected)[:, None], 0), rtol=1e-4, atol=1e-5)
    check_outside(found, case)


@brief
@given(case=rich_cases())
def test_contrasted_bonus(case):
    case.fields["source"] = source = case.extras["stratum"]
    found = run(estimators.contrasted_bonus(component=0, bonus=COMPONENT, margin=0.05), case)
    known = ~np.isnan(case.rewards[:, 0])
    value, present = np.where(known, case.rewards[:, 0], 0.0), (known & (case.valid > 0)).astype(float)
    bonus, _ = component(case)
    expected = shaping.contrasted_bonus(value, present, bonus, source, case.group, margin=0.05)
    check_component(found, expected, case)


@pytest.mark.parametrize("options", [{}, {"strength": 1.0, "bound": 0.3}])
@brief
@given(case=rich_cases())
def test_early_call_bonus(options, case):
    options = options | {"threshold": THRESHOLD}
    found = run(estimators.early_call_bonus(component=COMPONENT, **options), case)
    value, present = component(case)
    arrays = (case.mask, case.group, case.extras["first_call"])
    expected = shaping.early_call_bonus(case.advantage, value, present, *arrays, **options)
    assert_close(found.advantage, expected, rtol=1e-4, atol=1e-5)
    check_outside(found, case)


@brief
@given(first=rich_cases(), second=rich_cases(), third=rich_cases())
def test_budget_length_reward(first, second, third):
    options = {"budget": 4.0, "decay": 0.5, "interval": 2, "weight": 0.25}
    estimator, state = estimators.budget_length_reward(component=COMPONENT, **options), None
    for number, case in enumerate((first, second, third)):
        found, state = step(estimator, case, state)
        check_component(found, shaping.budget_length_reward(number, component(case)[0], case.mask, **options), case)


@brief
@given(first=rich_cases(), second=rich_cases())
def test_history_length_reward(first, second):
    options = {"prompts": PROMPTS, "weight": 0.5, "lowest": -0.3, "threshold": THRESHOLD}
    estimator, state, table = estimators.history_length_reward(component=COMPONENT, **options), None, {}
    for case in (first, second, first):
        found, state = step(estimator, case, state)
        expected, table = shaping.history_length_reward(table, *component(case), case.mask, case.fields["prompt_id"], **options)
        check_component(found, expected, case)
        np.testing.assert_array_equal(state, [table.get(prompt, np.inf) for prompt in range(PROMPTS)])


@brief
@given(first=rich_cases(), second=rich_cases(), third=rich_cases())
def test_format_diversity_reward(first, second, third):
    estimator, state = estimators.format_diversity_reward(component=COMPONENT, steps_total=2), None
    for number, case in enumerate((first, second, third)):
        found, state = step(estimator, case, state)
        value, present = component(case)
        expected = shaping.format_diversity_reward(number, value, present, case.group, case.extras["format"], steps_total=2)
        expected = np.where(np.asarray(present) > 0, expected, found.rewards[:, COMPONENT])
        check_component(found, expected, case)


@pytest.mark.reduction("grpo_lambda", "grpo")
def test_no_share_of_efficient_groups_is_the_plain_reward():
    rollouts = few(np.array([[1.0], [0.0], [1.0]]))
    found = once(estimators.efficient_length_reward(share=0.0), rollouts)
    np.testing.assert_array_equal(found.rewards, rollouts.rewards)


@pytest.mark.reduction("ada_grpo", "grpo")
def test_one_format_is_the_plain_reward():
    rollouts = few(np.array([[1.0], [0.0], [1.0]]), format=np.zeros(3, np.int32))
    np.testing.assert_array_equal(once(estimators.format_diversity_reward(steps_total=5), rollouts).rewards, rollouts.rewards)


def test_majority_by_hand():
    """Two votes for 4 and two for 7: the smaller number; rows without an answer have no vote."""
    rollouts = few(np.zeros((6, 1)), answer=np.array([7, 4, -1, -1, 4, 7], np.int32))
    assert once(estimators.majority_reward(), rollouts).rewards[:, 0].tolist() == [0, 1, 0, 0, 1, 0]


def test_tool_calls_by_hand():
    """The least number of calls of a right answer is 2: it keeps its reward, one with six calls gets sin(3/4 pi) of it."""
    rollouts = few(np.array([[1.0], [1.0], [0.0]]), calls=np.array([2, 6, 0], np.int32))
    np.testing.assert_allclose(once(estimators.tool_call_reward(), rollouts).rewards[:, 0], [1.0, np.sqrt(0.5), 0.0], rtol=1e-6)


def few(rewards, **extras) -> Rollouts:
    rows = len(rewards)
    return Rollouts(
        tokens=np.zeros((rows, 4), np.int32), length=np.full(rows, 4), mask=np.ones((rows, 4), np.float32),
        rewards=np.asarray(rewards, np.float32), group=np.zeros(rows, np.int32), extras=extras,
    )  # fmt: skip


def once(estimator, rollouts):
    return compiled(estimator.update)(rollouts, estimator.init(), jax.random.key(0))[0]


@pytest.mark.parametrize(("estimator", "message"), [
    (lambda: estimators.length_penalty(component=3), "component is 3; the rollouts have 1"),
    (lambda: estimators.cosine_length_reward(max_length=0), "max_length is 0"),
    (lambda: estimators.efficient_length_reward(share=2.0), "share is 2.0"),
    (lambda: estimators.budget_length_reward(interval=0), "interval is 0"),
    (lambda: estimators.history_length_reward(prompts=0), "prompts is 0"),
    (lambda: estimators.format_diversity_reward(steps_total=0), "steps_total is 0"),
    (lambda: estimators.tool_call_reward(smoothing=0.0), "smoothing is 0.0"),
    (lambda: estimators.pseudo_label_advantage(width=0.0), "width is 0.0"),
])  # fmt: skip
def test_refusals_name_the_value(estimator, message):
    with pytest.raises(ValueError, match=message):
        once(estimator(), few(np.zeros((2, 1)), format=np.zeros(2, np.int32), calls=np.zeros(2), answer=np.zeros(2, np.int32)))


@brief
@given(case=rich_cases())
def test_rewards_of_rounds_are_discounted_by_those_behind(case):
    case.extras = {"rounds_left": np.arange(len(case.group), dtype=np.int32) % 3}
    found = run(estimators.round_discount(discount=0.5), case)
    assert_close(found.rewards, filters.round_discount(case.rewards, case.extras["rounds_left"], discount=0.5))
    if case.token_rewards is not None:
        expected = filters.round_discount(case.token_rewards, case.extras["rounds_left"], discount=0.5)
        assert_close(found.token_rewards, expected)


@brief
@given(case=rich_cases())
def test_dear_modes_lose_where_the_cheap_one_is_right(case):
    case.extras = {"mode": case.extras["format"] + 1}
    found = run(estimators.mode_cost(power=2.0, component=COMPONENT, threshold=THRESHOLD), case)
    arrays = (*component(case), case.extras["mode"], case.group)
    expected = filters.mode_cost(case.rewards, *arrays, power=2.0, threshold=THRESHOLD)
    assert_close(found.rewards, expected, atol=1e-6)
