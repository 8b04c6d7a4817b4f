"""What the methods on trust regions, ratios and old samples become in special cases, as their papers say."""

import functools

import jax
import numpy as np
import pytest
from oracles import tiny_policy

from jaxrl_llm import methods, objectives
from jaxrl_llm.data.packing import pack
from jaxrl_llm.objectives import clip, kl, objective, policy, score_function, unclipped
from jaxrl_llm.types import Rollouts, Scores

WIDTH = 12


@functools.cache
def program(value):
    return tiny_policy.jit(jax.grad(lambda scores, batch: value(scores, batch)[0]))


def gradient(value, scores, batch):
    """Gradient of an objective by the log-probabilities."""
    return np.asarray(program(value)(scores, batch).logp)


def assert_same(first, second, scores, batch, rtol=2e-5):
    found, expected = (gradient(value, scores, batch) for value in (first, second))
    assert np.abs(expected).max() > 1e-4, "nothing to compare"
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-6 * np.abs(expected).max())


def surrogate(**options):
    return objective(policy(**options))


def loss_of(name, **options):
    return methods.get(name, **options).objective


def rollouts(*, single=False, drift=0.3, seed=0, rewards=None) -> Rollouts:
    """Ragged groups; with `single`, answers of one action; `drift` is the deviation of other policies' log-probabilities."""
    random = np.random.default_rng(seed)
    rows, width = 12, 10
    length = random.integers(4, width + 1, rows).astype(np.int32)
    inside = np.arange(width) < length[:, None]
    mask = inside & ((np.arange(width) == length[:, None] - 1) if single else (np.arange(width) >= 2))
    logp = np.where(mask, -random.exponential(1.0, mask.shape) - 0.05, 0.0).astype(np.float32)
    near = [np.where(mask, np.minimum(logp + drift * random.normal(size=logp.shape), -0.01), 0) for _ in range(3)]
    return Rollouts(
        tokens=np.where(inside, random.integers(0, 9, inside.shape), 0).astype(np.int32),
        length=length,
        mask=mask.astype(np.float32),
        rewards=(random.random((rows, 1)) < 0.5).astype(np.float32) if rewards is None else rewards,
        group=np.repeat(np.arange(3), 4).astype(np.int32),
        behavior_logp=near[0].astype(np.float32),
        extras={
            "logp": logp,
            "proximal_logp": near[1].astype(np.float32),
            "reference_logp": near[2].astype(np.float32),
            "proximal_entropy": random.exponential(1.0, mask.shape).astype(np.float32),
            "proximal_mean_logp": (-3 - random.random(mask.shape)).astype(np.float32),
        },
    )


def case(name, *, on_policy=False, method_options=None, **options):
    """Scores and the batch of a method's own estimator; on policy, all policies agree."""
    method = methods.get(name, **(method_options or {}))
    found, _ = method.estimator.update(rollouts(**options), method.estimator.init(), jax.random.key(0))
    batch = pack(jax.tree.map(np.asarray, found), WIDTH)
    logp = batch.extras["logp"]
    scores = Scores(logp=logp, entropy=batch.extras["proximal_entropy"], mean_logp=batch.extras["proximal_mean_logp"])
    if on_policy:
        batch = batch.replace(behavior_logp=logp, extras=batch.extras | {"proximal_logp": logp})
    return scores, batch


REINFORCE = surrogate(ratio=None, trust=score_function())


@pytest.mark.reduction("gspo_token")
def test_gspo_token_is_gspo_where_a_sequence_shares_one_advantage():
    assert_same(loss_of("gspo_token"), loss_of("gspo"), *case("gspo", drift=1e-4))
    wide = {"clip_low": 0.2, "clip_high": 0.2}
    assert_same(loss_of("gspo_token", **wide), loss_of("gspo", **wide), *case("gspo"))


@pytest.mark.reduction("gspo", "luspo", "gmpo", "minpro", "gspo_token")
def test_of_one_token_ratios_are_alike():
    """One action an answer: GSPO and LUSPO are GRPO, GMPO is GRPO with the bounds e^-c and e^c, MinPRO is CISPO."""
    scores, batch = case("gspo", single=True)
    wide = {"clip_low": 0.2, "clip_high": 0.2}
    for name in ("gspo", "luspo", "gspo_token"):
        assert_same(loss_of(name, **wide), surrogate(), scores, batch)
    bounds = {"low": 1 - np.exp(-0.2), "high": np.expm1(0.3)}
    assert_same(loss_of("gmpo", clip_low=0.2, clip_high=0.3), surrogate(trust=clip(**bounds)), scores, batch)
    assert_same(
        loss_of("minpro", clip_low=0.2, clip_high=0.3), surrogate(trust=objectives.cispo(low=0.2, high=0.3)), scores, batch
    )
    weights = [case(name, single=True)[1].weight for name in ("gspo", "luspo", "gmpo")]
    np.testing.assert_allclose(weights[0], weights[1])
    np.testing.assert_allclose(weights[0], weights[2])


@pytest.mark.reduction("luspo")
def test_luspo_weighs_gspo_by_length():
    (_, gspo), (_, luspo) = case("gspo"), case("luspo")
    for number in np.unique(gspo.rollout[gspo.mask > 0]):
        own = (gspo.rollout == number) & (gspo.mask > 0)
        np.testing.assert_allclose(luspo.weight[own], gspo.weight[own] * own.sum(), rtol=1e-6)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.reduction(name)) for name in (
        "sapo", "vespo", "gppo", "ce_gppo", "bapo", "m2po", "kl_cov", "dppo", "dcpo", "aspo", "rec", "opmd", "dro",
        "gmpo", "minpro", "tis", "icepop", "decoupled_ppo",
    )
])  # fmt: skip
def test_on_policy_it_is_reinforce(name):
    """At ratio 1 nothing is bounded: the gradient is that of A log pi, under the method's own weights."""
    scores, batch = case(name, on_policy=True)
    assert_same(loss_of(name), REINFORCE, scores, batch)


@pytest.mark.reduction("rover")
def test_rover_on_policy_is_twice_reinforce():
    scores, batch = case("rover", on_policy=True)
    double = objective(objectives.scaled(term=policy(ratio=None, trust=score_function()), coefficient=2.0))
    assert_same(loss_of("rover"), double, scores, batch)


@pytest.mark.reduction("reg_grpo")
def test_reg_grpo_on_policy_is_centred_reinforce_over_epsilon():
    """Of whole answers: the gradient by each token is that of the sum, A / epsilon * 2 * the share of the rollout."""
    scores, batch = case("reg_grpo", on_policy=True)
    found = gradient(loss_of("reg_grpo", kl_coefficient=0.0, epsilon=0.1), scores, batch)
    for number in np.unique(batch.rollout[batch.mask > 0]):
        own = (batch.rollout == number) & (batch.mask > 0)
        expected = -2 / 0.1 * batch.advantage[own][0] * batch.weight[own].sum()
        np.testing.assert_allclose(found[own], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.reduction("nft")
@pytest.mark.parametrize("weighting", ["std", "failure"])
def test_nft_on_policy_is_grpo(weighting):
    """For rewards 0 and 1: A = (r - q) / sqrt(q (1 - q)); by the failure rate, Dr. GRPO's A = r - q."""
    scores, batch = case("nft", on_policy=True)
    accuracy, correct = batch.extras["accuracy"], batch.extras["correct"]
    scale = np.sqrt(accuracy * (1 - accuracy)) if weighting == "std" else np.ones_like(accuracy)
    advantage = np.where(batch.weight > 0, (correct - accuracy) / np.maximum(scale, 1e-9), 0).astype(np.float32)
    batch = batch.replace(advantage=advantage)
    assert_same(loss_of("nft", weighting=weighting), REINFORCE, scores, batch)


@pytest.mark.reduction("ce_gppo", "gppo")
def test_ce_gppo_between_clip_and_gppo():
    scores, batch = case("ce_gppo", drift=0.6)
    zero = {"low_gradient": 0.0, "high_gradient": 0.0, "clip_dual": None}
    assert_same(loss_of("ce_gppo", **zero), surrogate(trust=clip(high=0.28)), scores, batch)
    assert loss_of("ce_gppo", low_gradient=1.0) == loss_of("gppo")


@pytest.mark.reduction("bapo")
def test_bapo_with_fixed_bounds_is_the_clip():
    bounds = {"lowest_bound": 0.8, "lower_bound": 0.8, "upper_bound": 1.2, "highest_bound": 1.2}
    assert_same(loss_of("bapo", **bounds), surrogate(trust=clip(dual=3.0)), *case("bapo", drift=0.6))


@pytest.mark.reduction("m2po", "dppo", "kl_cov", "clip_cov")
def test_masks_that_spare_everything_leave_the_surrogate():
    scores, batch = case("m2po", drift=0.6)
    assert_same(loss_of("m2po", budget=1e6), surrogate(trust=unclipped()), scores, batch)
    assert_same(loss_of("dppo", bound_low=1.0, bound_high=1.0), surrogate(trust=unclipped()), scores, batch)
    assert_same(loss_of("kl_cov", coefficient=0.0), surrogate(trust=unclipped()), scores, batch)
    none = loss_of("clip_cov", lowest=1e6, highest=2e6, clip_low=0.2, clip_high=0.2)
    assert_same(none, surrogate(), scores, batch)


@pytest.mark.reduction("kl_cov")
def test_kl_cov_of_all_tokens_is_a_penalty_on_all():
    expected = objective(policy(trust=unclipped()), kl(coefficient=0.5, kind="abs", against="behavior"))
    assert_same(loss_of("kl_cov", share=1.0, coefficient=0.5), expected, *case("kl_cov", drift=0.6))


@pytest.mark.reduction("dppo")
def test_dppo_of_verl_has_the_same_gradient_below_its_cap():
    scores, batch = case("dppo")
    plain = loss_of("dppo", bound_low=0.2, bound_high=0.2)
    assert_same(methods.get("dppo", convention="verl-0.10").objective, plain, scores, batch)


@pytest.mark.reduction("forking_tokens", "hapo_heterogeneous")
def test_of_all_tokens_entropies_do_not_matter():
    scores, batch = case("forking_tokens", drift=0.6)
    assert_same(loss_of("forking_tokens", share=1.0), surrogate(trust=clip(high=0.28)), scores, batch)
    plain = loss_of("hapo_heterogeneous", widening=0.0, strength=0.0)
    assert_same(plain, surrogate(trust=clip(dual=10.0)), scores, batch)


@pytest.mark.reduction("decoupled_ppo", "tis", "icepop", "remix")
def test_where_sampler_and_proximal_policy_agree_nothing_is_corrected():
    scores, batch = case("tis", drift=0.6)
    batch = batch.replace(extras=batch.extras | {"proximal_logp": batch.behavior_logp})
    for name in ("decoupled_ppo", "tis", "icepop"):
        assert_same(loss_of(name), surrogate(), scores, batch)
    expected = objective(policy(), kl(coefficient=0.01))
    assert_same(loss_of("remix"), expected, scores, batch)


@pytest.mark.parametrize("level", ["sequence", "geometric"])
@pytest.mark.reduction("tis", "icepop")
def test_of_one_token_levels_of_weights_are_alike(level):
    scores, batch = case("tis", single=True, drift=0.6)
    for name in ("tis", "icepop"):
        assert_same(loss_of(name, level=level), loss_of(name), scores, batch)


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="level is 'word'"):
        methods.get("tis", level="word")


@pytest.mark.reduction("decoupled_ppo")
def test_decoupled_unclipped_is_the_plain_importance_weight():
    """pi / proximal * proximal / mu = pi / mu."""
    ratio, weight = objectives.token_ratio(against="proximal"), objectives.importance_weight()
    decoupled = surrogate(ratio=ratio, trust=unclipped(), factors=(weight,))
    assert_same(decoupled, surrogate(trust=unclipped()), *case("decoupled_ppo"))


@pytest.mark.reduction("rec")
def test_rec_with_the_importance_weight_is_the_clip():
    masked = surrogate(trust=unclipped(), factors=(objectives.ring_mask(),))
    assert_same(masked, surrogate(), *case("rec", drift=0.6))


@pytest.mark.reduction("rec")
def test_a_ring_that_reaches_the_bounds_is_the_one_sided_mask():
    scores, batch = case("rec", drift=0.6)
    assert_same(loss_of("rec", far_low=0.2, far_high=0.2), loss_of("rec"), scores, batch)


@pytest.mark.reduction("asymre")
def test_asymre_without_a_shift_is_reinforce():
    assert_same(loss_of("asymre", shift=0.0), REINFORCE, *case("asymre"))


@pytest.mark.reduction("asymre")
def test_asymre_shifts_the_advantage():
    scores, batch = case("asymre")
    shifted = batch.replace(advantage=batch.advantage + np.float32(0.1))
    found, expected = gradient(loss_of("asymre"), scores, batch), gradient(REINFORCE, scores, shifted)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.reduction("rpg")
def test_rpg_without_a_penalty_is_the_clip():
    scores, batch = case("rpg", drift=0.6)
    for style in ("reinforce", "differentiable"):
        loss = loss_of("rpg", kl_coefficient=0.0, style=style)
        assert_same(loss, surrogate(trust=clip(high=0.28, dual=10.0)), scores, batch)


@pytest.mark.reduction("rpg")
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_both_styles_of_rpg_have_one_gradient_within_the_bounds(direction, normalised):
    options = {"kl_coefficient": 0.3, "direction": direction, "normalised": normalised, "clip_low": 1.0, "clip_high": 1e6}
    losses = [loss_of("rpg", **options, clip_dual=None, style=style) for style in ("reinforce", "differentiable")]
    assert_same(*losses, *case("rpg", drift=0.6))


@pytest.mark.reduction("gpg")
def test_gpg_is_dr_grpo_on_informative_groups():
    rewards = np.array([[1], [0], [0], [1], [1], [1], [1], [1], [0], [0], [0], [1]], np.float32)
    _, batch = case("gpg", rewards=rewards)
    assert not batch.weight[batch.group == 1].any()
    inside = batch.mask * (batch.group != 1) > 0
    np.testing.assert_allclose(batch.weight[inside], 1 / inside.sum(), rtol=1e-6)
    np.testing.assert_allclose(batch.advantage[inside & (batch.group == 0)] ** 2, 0.25, rtol=1e-5)


@pytest.mark.reduction("maxrl")
def test_maxrl_divides_by_the_success_rate():
    """The sum over right answers of A is 1 / q - 1 each, over wrong ones -1: the gradient of log q."""
    rewards = np.array([[1], [0], [0], [0], [1], [1], [1], [0], [0], [0], [0], [0]], np.float32)
    _, batch = case("maxrl", rewards=rewards)
    for group, right in ((0, 3.0), (1, 1 / 3)):
        own = (batch.mask > 0) & (batch.group == group)
        np.testing.assert_allclose(np.unique(batch.advantage[own].round(4)), [-1.0, round(right, 4)], rtol=1e-3)
    assert not batch.advantage[(batch.mask > 0) & (batch.group == 2)].any()


@pytest.mark.reduction("p3o")
def test_p3o_takes_half_the_difference_of_two_rewards():
    pairs = rollouts(rewards=np.arange(12, dtype=np.float32)[:, None] ** 2).replace(group=np.arange(12, dtype=np.int32) // 2)
    estimator = methods.get("p3o", kl_coefficient=0.0).estimator
    found, _ = estimator.update(pairs, estimator.init(), jax.random.key(0))
    advantage = np.asarray(found.advantage).sum(axis=1) / pairs.mask.sum(axis=1)
    first, second = pairs.rewards[::2, 0], pairs.rewards[1::2, 0]
    np.testing.assert_allclose(advantage[::2], (first - second) / 2, rtol=1e-5)
    np.testing.assert_allclose(advantage[1::2], (second - first) / 2, rtol=1e-5)


@pytest.mark.reduction("luffy", "rl_plus")
def test_without_demonstrations_only_the_policy_is_left():
    for name in ("luffy", "rl_plus"):
        scores, batch = case(name, method_options={"max_length": 10})
        assert_same(loss_of(name), surrogate(trust=unclipped()), scores, batch)


@pytest.mark.reduction("luffy", "rl_plus")
def test_demonstrations_have_a_loss_of_their_own():
    scores, batch = case("luffy")
    batch = batch.replace(extras=batch.extras | {"source": np.where(batch.group == 0, 1, 0).astype(np.int32)})
    probability, advantage, weight = np.exp(scores.logp), batch.advantage, batch.weight
    given = (batch.group == 0) & (batch.mask > 0)
    # Gradient by log pi of -A p / (p + gamma), as in the paper.
    expected = -weight * advantage * 0.1 * probability / (probability + 0.1) ** 2
    np.testing.assert_allclose(gradient(loss_of("luffy"), scores, batch)[given], expected[given], rtol=1e-5, atol=1e-9)
    old = np.exp(batch.extras["proximal_logp"])
    ratio = 2 * probability / (old + 0.5 * (old + 1))
    expected = -weight * advantage * ratio * np.sqrt(1 - probability)
    np.testing.assert_allclose(gradient(loss_of("rl_plus"), scores, batch)[given], expected[given], rtol=1e-5, atol=1e-9)


@pytest.mark.reduction("deepseek_v32")
def test_deepseek_v32_masks_left_behind_wrong_answers_only():
    scores, batch = case("deepseek_v32", drift=0.6)
    batch = batch.replace(reference_logp=scores.logp)
    penalty = objective(kl(coefficient=0.01, ratio=objectives.token_ratio()))
    found = gradient(loss_of("deepseek_v32"), scores, batch) - gradient(penalty, scores, batch)
    plain = gradient(surrogate(), scores, batch)
    dropped = 0
    for number in np.unique(batch.rollout[batch.mask > 0]):
        own = (batch.rollout == number) & (batch.mask > 0)
        behind = np.mean((batch.behavior_logp - scores.logp)[own]) > 0.1 and batch.advantage[own].max() < 0
        dropped += behind
        np.testing.assert_allclose(found[own], 0.0 if behind else plain[own], rtol=1e-4, atol=1e-7)
    assert dropped


@pytest.mark.reduction("a_lol")
def test_a_lol_learns_only_from_what_beats_the_reference():
    method = methods.get("a_lol")
    data = rollouts()
    data = data.replace(extras=data.extras | {"anchor_reward": np.full(12, 0.4, np.float32)})
    found, _ = method.estimator.update(data, method.estimator.init(), jax.random.key(0))
    batch = pack(jax.tree.map(np.asarray, found), WIDTH)
    slopes = gradient(method.objective, Scores(logp=batch.extras["logp"]), batch)
    better = (batch.mask > 0) & (batch.advantage > 0)
    assert (slopes[better] < 0).all() and not slopes[~better].any()
    np.testing.assert_allclose(batch.advantage[better], 0.6, rtol=1e-5)
