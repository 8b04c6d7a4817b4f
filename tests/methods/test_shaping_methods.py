"""Methods that differ in the reward: they are total, and become others where their papers say so."""

import jax
import numpy as np
import pytest
from annotated import annotated_rollouts, estimated
from oracles import tiny_policy

from jaxrl_llm import estimators, methods
from jaxrl_llm.types import Rollouts

NAMES = (
    "open_rs", "train_long_think_short", "grpo_lambda", "shorter_better", "hapo_history", "otc", "aspo_tools", "fapo",
    "unlikeliness", "ada_grpo", "ttrl", "evol_rl", "restrain",
)  # fmt: skip


@pytest.fixture(scope="module")
def rollouts():
    return annotated_rollouts(tiny_policy.init())


def assert_close(actual, expected, rtol=2e-5, atol=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def plain(rollouts, **options):
    return estimated(methods.get("grpo", kl_coefficient=0.0, **options), rollouts).advantage


@pytest.mark.parametrize("name", NAMES)
def test_shaped_advantages_are_finite_and_say_something(name, rollouts):
    found = estimated(methods.get(name), rollouts)
    assert np.isfinite(found.advantage).all() and np.isfinite(found.weight).all()
    assert (found.advantage * found.weight).any()
    assert not found.weight[found.mask == 0].any() and not found.advantage[found.mask == 0].any()


@pytest.mark.parametrize("name", NAMES)
def test_shaping_does_not_look_at_the_order_of_rows(name, rollouts):
    order = np.random.default_rng(0).permutation(len(rollouts.group))
    moved = jax.tree.map(lambda values: values[order], rollouts)
    first, found = (estimated(methods.get(name), each) for each in (rollouts, moved))
    assert_close(found.advantage, first.advantage[order], rtol=1e-4, atol=1e-5)
    assert_close(found.weight, first.weight[order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_shaping_of_missing_rewards_leaves_nothing(name, rollouts):
    found = estimated(methods.get(name), rollouts.replace(rewards=np.full_like(rollouts.rewards, np.nan)))
    assert not found.weight.any() and np.isfinite(found.advantage).all()


@pytest.mark.parametrize(("name", "options"), [
    pytest.param("grpo_lambda", {"share": 0.0}, marks=pytest.mark.reduction("grpo_lambda", "grpo")),
    pytest.param("shorter_better", {"length_coefficient": 0.0}, marks=pytest.mark.reduction("shorter_better", "grpo")),
    pytest.param(
        "train_long_think_short", {"length_weight": 0.0}, marks=pytest.mark.reduction("train_long_think_short", "grpo")
    ),
    pytest.param("hapo_history", {}, marks=pytest.mark.reduction("hapo_history", "grpo")),
    pytest.param("unlikeliness", {"strength": 0.0}, marks=pytest.mark.reduction("unlikeliness", "grpo")),
    pytest.param("aspo_tools", {"strength": 0.0}, marks=pytest.mark.reduction("aspo_tools", "dapo")),
])  # fmt: skip
def test_without_its_term_it_is_grpo(name, options, rollouts):
    """HAPO has none before the first right answer of a prompt, that is, in its first step."""
    assert_close(estimated(methods.get(name, **options), rollouts).advantage, plain(rollouts))


@pytest.mark.reduction("ada_grpo", "grpo")
def test_ada_grpo_of_one_format_is_grpo(rollouts):
    alike = rollouts.replace(extras=rollouts.extras | {"format": np.zeros(10, np.int32)})
    assert_close(estimated(methods.get("ada_grpo"), alike).advantage, plain(rollouts))


@pytest.mark.reduction("otc", "grpo")
def test_otc_with_equal_numbers_of_calls_is_grpo(rollouts):
    alike = rollouts.replace(extras=rollouts.extras | {"calls": np.full(10, 2, np.int32)})
    assert_close(estimated(methods.get("otc"), alike).advantage, plain(rollouts))


@pytest.mark.reduction("ttrl", "grpo")
def test_ttrl_where_the_majority_is_right_is_grpo(rollouts):
    """Wrong answers all differ, or are fewer than the right ones."""
    single = rollouts.replace(rewards=rollouts.rewards[:, :1])
    right = single.rewards[:, 0] > 0
    answers = np.where(right, 0, 1 + np.arange(10)).astype(np.int32)
    voted = single.replace(extras=single.extras | {"answer": answers})
    assert_close(estimated(methods.get("ttrl"), voted).advantage, plain(single))


@pytest.mark.reduction("restrain", "grpo")
def test_restrain_with_all_weight_on_one_answer_is_grpo(rollouts):
    """Right answers are the majority; a narrow weight at their frequency sees no other answer."""
    right = np.array([1, 1, 1, 0, 1, 1, 1, 0, 1, 0])
    made = rollouts.replace(rewards=right[:, None].astype(np.float32), group=np.array([0] * 4 + [1] * 4 + [2, 2], np.int32))
    made = made.replace(extras=made.extras | {"answer": np.where(right > 0, 0, 1).astype(np.int32)})
    found = estimated(methods.get("restrain", center=0.75, width=0.02, quorum=1), made).advantage
    assert_close(found[:8], plain(made, epsilon=0.0)[:8], rtol=1e-4)


def test_hapo_remembers_the_shortest_right_answer(rollouts):
    method = methods.get("hapo_history", prompts=10)
    state = method.estimator.init()
    found, state = method.estimator.update(rollouts, state, jax.random.key(0))
    right = rollouts.rewards[:, 0] > 0.5
    length = rollouts.mask.sum(axis=1)
    for prompt in set(rollouts.prompt_id[right]):
        assert state[0][prompt] == length[right & (rollouts.prompt_id == prompt)].min()
    again, _ = method.estimator.update(rollouts, state, jax.random.key(0))
    assert np.abs(np.asarray(again.advantage) - np.asarray(found.advantage)).max() > 0.01


def test_evol_rl_puts_the_majority_above_all_others(rollouts):
    found = estimated(methods.get("evol_rl"), rollouts)
    for number in range(3):
        own = (rollouts.group == number) & rollouts.mask.any(axis=1)
        answers, value = rollouts.extras["answer"][own], found.advantage[own].sum(axis=1) / rollouts.mask[own].sum(axis=1)
        counts = {answer: (-np.sum(answers == answer), answer) for answer in set(answers)}
        majority = answers == min(counts, key=counts.get)
        assert majority.all() or value[majority].min() > value[~majority].max()


def test_unlikeliness_ranks_by_the_mean_of_a_token():
    """Five tokens at -0.2 are likelier than two at -0.4, though their sum is smaller: 1 - 0.25 * rank / 2."""
    mask = (np.arange(5) < np.array([[5], [2]])).astype(np.float32)
    rollouts = Rollouts(
        tokens=np.zeros((2, 5), np.int32), length=np.array([5, 2]), mask=mask, rewards=np.ones((2, 1), np.float32),
        group=np.zeros(2, np.int32), behavior_logp=mask * np.array([[-0.2], [-0.4]], np.float32),
    )  # fmt: skip
    found = estimators.unlikeliness_reward.function(rollouts).rewards[:, 0]
    assert_close(found, [0.875, 1.0])


def test_shorter_better_has_the_numbers_of_its_authors():
    options = methods.options_of("shorter_better")
    assert options["length_coefficient"] == 0.001 / 2.0 and options["kl_coefficient"] == 0.001
    assert "kl(coefficient=0.001)" in methods.get("shorter_better").composition()
