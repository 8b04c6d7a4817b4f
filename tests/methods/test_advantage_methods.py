"""Methods that differ in advantages and in the choice of rows: they are total, and become others where their papers say so."""

import jax
import numpy as np
import pytest
from annotated import annotated_rollouts, estimated
from oracles import tiny_policy
from oracles.tiny_policy import jit

from jaxrl_llm import methods
from jaxrl_llm.data.packing import pack
from jaxrl_llm.estimators import chain, group_advantage, mean_scale, std_scale, token_mean
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.training import make_gradient
from jaxrl_llm.types import Rollouts

NAMES = (
    "remax", "opo", "pvpo", "spo", "ngrpo", "lite_ppo", "stratified_grpo", "reinforce_plus_plus_baseline", "gdpo",
    "grpo_passk", "pass_at_k", "rae", "riskpo", "vapo", "tempo", "gigpo", "igpo", "otb", "gtpo", "gtpo_entropy", "grpo_s",
    "d3s", "pf_ppo", "red_drop", "red_weight", "mgpo", "egsw", "seed_grpo", "group_invariant",
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    return tiny_policy.init()


@pytest.fixture(scope="module")
def rollouts(params):
    return annotated_rollouts(params)


def advantages(method, rollouts):
    return estimated(method, rollouts).advantage


def assert_close(actual, expected, rtol=2e-5, atol=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_advantages_and_weights_are_finite_and_say_something(name, rollouts):
    found = estimated(methods.get(name), rollouts)
    assert np.isfinite(found.advantage).all() and np.isfinite(found.weight).all()
    assert (found.advantage * found.weight).any()
    assert not found.weight[found.mask == 0].any() and not found.advantage[found.mask == 0].any()


@pytest.mark.parametrize("name", NAMES)
def test_rows_may_stand_in_any_order(name, rollouts):
    """What does not draw from the key and does not number the rows of a group."""
    if name in ("riskpo", "pf_ppo", "red_drop"):
        return
    order = np.random.default_rng(0).permutation(len(rollouts.group))
    moved = jax.tree.map(lambda values: values[order], rollouts)
    plain, found = (estimated(methods.get(name), each) for each in (rollouts, moved))
    assert_close(found.advantage, plain.advantage[order], rtol=1e-4, atol=1e-5)
    assert_close(found.weight, plain.weight[order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_missing_rewards_leaves_nothing(name, rollouts):
    missing = rollouts.replace(rewards=np.full_like(rollouts.rewards, np.nan))
    found = estimated(methods.get(name), missing)
    assert not found.weight.any() and np.isfinite(found.advantage).all()


@pytest.mark.parametrize("name", ["tempo", "vapo", "grpo_s"])
def test_gradients_are_finite_and_move(name, params, rollouts):
    """One method of each kind of objective that these compose; all of them go through the catalogue's own tests."""
    method = methods.get(name)
    scorer = make_scorer(tiny_policy.policy, method.objective.needs)
    batch = pack(estimated(method, rollouts), 12)
    gradient = jit(make_gradient(scorer, method.objective))(params, batch)[1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.abs(gradient["mix"]).max() > 0


@pytest.mark.reduction("ngrpo", "grpo")
def test_ngrpo_without_its_virtual_sample_is_grpo(rollouts):
    plain = advantages(methods.get("grpo", degrees_of_freedom=1, kl_coefficient=0.0), rollouts)
    assert_close(advantages(methods.get("ngrpo", virtual_reward=None), rollouts), plain)
    assert np.abs(advantages(methods.get("ngrpo"), rollouts) - plain).max() > 0.05


@pytest.mark.reduction("opo", "dr_grpo")
def test_opo_of_equal_lengths_is_the_mean(rollouts):
    mask = np.zeros_like(rollouts.mask)
    mask[:, 1:3] = 1
    even = rollouts.replace(mask=mask)
    assert_close(advantages(methods.get("opo"), even), advantages(methods.get("dr_grpo"), even))
    assert np.abs(advantages(methods.get("opo"), rollouts) - advantages(methods.get("dr_grpo"), rollouts)).max() > 0.01


@pytest.mark.reduction("stratified_grpo", "grpo")
def test_stratified_grpo_of_one_stratum_is_grpo(rollouts):
    alike = rollouts.replace(extras=rollouts.extras | {"stratum": np.zeros(10, np.int32)})
    plain = advantages(methods.get("grpo", degrees_of_freedom=1, kl_coefficient=0.0), rollouts)
    assert_close(advantages(methods.get("stratified_grpo"), alike), plain)
    assert_close(advantages(methods.get("stratified_grpo", stratum_share=0.0), rollouts), plain)


@pytest.mark.reduction("lite_ppo", "grpo")
def test_lite_ppo_of_one_group_is_grpo(rollouts):
    one = rollouts.replace(group=np.zeros(10, np.int32))
    plain = advantages(methods.get("grpo", degrees_of_freedom=1, kl_coefficient=0.0), one)
    assert_close(advantages(methods.get("lite_ppo"), one), plain)


@pytest.mark.reduction("gdpo", "grpo")
def test_gdpo_of_one_reward_is_whitened_grpo(rollouts):
    """With one component, both steps normalise the same numbers: the second only scales by what is left."""
    single = rollouts.replace(rewards=rollouts.rewards[:, :1])
    found = advantages(methods.get("gdpo"), single)
    plain = advantages(methods.get("grpo", degrees_of_freedom=1, epsilon=1e-4, kl_coefficient=0.0), single)
    rows = rollouts.mask.any(axis=1)
    value = (plain.sum(1) / np.maximum(rollouts.mask.sum(1), 1))[rows]
    assert_close(found, (plain - rollouts.mask * value.mean()) / (value.std(ddof=1) + 1e-4), rtol=1e-4, atol=1e-5)


@pytest.mark.reduction("pass_at_k", "grpo")
def test_pass_at_one_is_grpo(rollouts):
    """Also for groups that are ragged."""
    single = rollouts.replace(rewards=rollouts.rewards[:, :1])
    plain = advantages(methods.get("grpo", epsilon=0.0, kl_coefficient=0.0), single)
    assert_close(advantages(methods.get("pass_at_k", k=1), single), plain)


@pytest.mark.reduction("vapo", "ppo")
def test_vapo_with_one_decay_is_ppo_before_whitening(rollouts):
    """Decays of 1 for both, from a scale so large that the length does not count."""
    found = estimated(methods.get("vapo", decay_scale=1e9, value_trace_decay=1.0), rollouts)
    rewards = np.where(rollouts.mask > 0, 0.0, 0.0)
    last = [np.flatnonzero(row)[-1] for row in rollouts.mask]
    rewards[np.arange(10), last] = rollouts.rewards.sum(axis=1)
    returns = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1] * rollouts.mask
    expected = returns - rollouts.extras["behavior_value"] * rollouts.mask
    assert_close(found.advantage, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.reduction("igpo", "grpo")
def test_igpo_without_gains_is_grpo(rollouts):
    plain = advantages(methods.get("grpo", degrees_of_freedom=1, kl_coefficient=0.0), rollouts)
    silent = rollouts.replace(extras=rollouts.extras | {"token_rewards": np.zeros_like(rollouts.mask)})
    assert_close(advantages(methods.get("igpo", kl_coefficient=0.0), silent), plain, rtol=1e-4)
    with pytest.raises(ValueError, match="needs rollouts.token_rewards, which is missing"):
        methods.get("igpo").estimator.update(rollouts, methods.get("igpo").estimator.init(), jax.random.key(0))


@pytest.mark.reduction("gigpo", "grpo")
def test_gigpo_without_step_advantages_is_grpo(rollouts):
    plain = advantages(methods.get("grpo", degrees_of_freedom=1, kl_coefficient=0.0), rollouts)
    assert_close(advantages(methods.get("gigpo", step_weight=0.0, kl_coefficient=0.0), rollouts), plain)


@pytest.mark.reduction("mgpo", "grpo")
def test_mgpo_without_sharpness_is_grpo(rollouts):
    plain = advantages(methods.get("grpo", kl_coefficient=0.0), rollouts)
    assert_close(advantages(methods.get("mgpo", sharpness=0.0), rollouts), plain)


@pytest.mark.reduction("seed_grpo", "dr_grpo")
def test_seed_grpo_without_strength_is_dr_grpo(rollouts):
    assert_close(advantages(methods.get("seed_grpo", strength=0.0), rollouts), advantages(methods.get("dr_grpo"), rollouts))


@pytest.mark.reduction("d3s", "grpo")
def test_d3s_that_keeps_all_is_grpo(rollouts):
    found = estimated(methods.get("d3s", rows=1.0, tokens=1.0), rollouts)
    assert_close(found.advantage, advantages(methods.get("grpo", kl_coefficient=0.0), rollouts))
    assert_close(found.weight, rollouts.mask / rollouts.mask.sum())


@pytest.mark.reduction("maxrl", "grpo")
def test_the_mean_as_scale_is_maximum_likelihood(rollouts):
    """For rewards 0 and 1, rows that are right get (1 - p) / p, and rows that are wrong -1: p the share of right ones."""
    single = rollouts.replace(rewards=rollouts.rewards[:, :1])
    estimator = chain(group_advantage(scale=mean_scale(epsilon=0.0)), token_mean())
    found = estimator.update(single, estimator.init(), jax.random.key(0))[0].advantage
    share = np.array([single.rewards[single.group == g].mean() for g in single.group])
    right = single.rewards[:, 0] > 0
    assert_close(found, np.where(right, (1 - share) / share, -1.0)[:, None] * single.mask)


@pytest.mark.reduction("red_weight", "rec")
def test_red_weight_at_high_temperature_is_group_reinforce(rollouts):
    plain = advantages(methods.get("dr_grpo"), rollouts)
    assert_close(advantages(methods.get("red_weight", temperature=1e7), rollouts), plain, rtol=1e-4)


def test_spo_learns_the_rates_of_prompts(rollouts):
    """The second visit of a prompt is compared with what the first one left."""
    method = methods.get("spo", prompts=10)
    tracker = method.estimator
    single = rollouts.replace(rewards=rollouts.rewards[:, :1], prompt_id=np.arange(10, dtype=np.int32))
    state = tracker.init()
    for _ in range(2):
        _, state = tracker.update(single, state, jax.random.key(0))
    rate = state[0]["successes"] / (state[0]["successes"] + state[0]["failures"])
    assert (np.asarray(rate)[single.rewards[:, 0] > 0] > 0.7).all() and (
        np.asarray(rate)[single.rewards[:, 0] == 0] < 0.3
    ).all()


def test_reinforce_plus_plus_baseline_centres_groups_and_scales_the_step(rollouts):
    found = estimated(methods.get("reinforce_plus_plus_baseline"), rollouts).advantage
    taken = found[rollouts.mask > 0]
    assert_close(taken.std(ddof=1), 1.0, rtol=1e-4)
    assert_close(taken.mean(), 0.0, atol=1e-5)


def test_what_must_be_given_is_named():
    assert "greedy_reward" not in methods.get("remax").needs, "its strategy brings it"
    assert "anchor_reward" not in methods.get("pvpo").needs and methods.get("pvpo").needs_reference
    assert "drift" in methods.get("spo", drift_half_life=0.06).needs and "drift" not in methods.get("spo").needs
    assert methods.get("vapo").needs_critic and methods.get("pf_ppo").needs_critic
    assert {"stratum", "state", "calls"} <= methods.get("stratified_grpo").needs | methods.get("gigpo").needs | methods.get(
        "otc"
    ).needs


def test_a_deviation_of_all_scores_is_lite_ppos():
    rollouts = Rollouts(
        tokens=np.zeros((4, 1), np.int32), length=np.ones(4, np.int32), mask=np.ones((4, 1), np.float32),
        rewards=np.array([[0], [1], [1], [1]], np.float32), group=np.array([0, 0, 1, 1], np.int32),
    )  # fmt: skip
    found = advantages(methods.get("lite_ppo"), rollouts)[:, 0]
    assert_close(found, np.array([-0.5, 0.5, 0, 0]) / np.std([0, 1, 1, 1], ddof=1), rtol=1e-4)
    assert std_scale(over="batch") != std_scale()


def test_the_first_game_of_a_role_is_compared_with_nothing():
    """The mean of earlier games is 0: the score itself; then decay * 0 + (1 - decay) * 1 = 0.05 for role 0."""
    rollouts = Rollouts(
        tokens=np.zeros((2, 1), np.int32), length=np.ones(2, np.int32), mask=np.ones((2, 1), np.float32),
        rewards=np.array([[1], [0]], np.float32), extras={"role": np.array([0, 1])},
    )  # fmt: skip
    estimator = methods.get("rae").estimator
    first, state = estimator.update(rollouts, estimator.init(), jax.random.key(0))
    assert_close(first.advantage[:, 0], [1.0, 0.0])
    second, _ = estimator.update(rollouts, state, jax.random.key(0))
    assert_close(second.advantage[:, 0], [0.95, 0.0])


def test_gtpo_of_the_paper_is_a_mean_over_each_sequence(rollouts):
    """The authors' code divides by the number of conflict tokens too."""
    paper, code = (estimated(methods.get("gtpo", convention=name), rollouts) for name in ("paper", "authors-code"))
    valid = paper.valid[:, None] * paper.mask
    assert_close(paper.weight, valid / np.maximum(paper.mask.sum(axis=1, keepdims=True), 1) / paper.valid.sum())
    conflicts = np.maximum(code.extras["conflicts"].sum(axis=1, keepdims=True), 1)
    assert_close(code.weight, paper.weight / conflicts)
