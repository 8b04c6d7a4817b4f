"""Losses on groups with scores against their oracle, and the cases in which they are one another or REINFORCE."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from oracles import contrast as oracle
from oracles import harness
from oracles.cases import batch_cases, brief
from oracles.tiny_policy import jit

from jaxrl_llm import objectives
from jaxrl_llm.types import Batch, Scores


@pytest.mark.parametrize("beta", [0.2, 2.0])
@brief
@given(case=batch_cases())
def test_contrastive_policy_gradient(beta, case):
    term = objectives.contrastive_policy_gradient(beta=beta)
    harness.check(term, case, functools.partial(oracle.contrastive_policy_gradient, beta=beta), rtol=1e-3)


@brief
@given(case=batch_cases())
def test_log_ratio_regression(case):
    harness.check(objectives.log_ratio_regression(beta=0.3), case, functools.partial(oracle.log_ratio_regression, beta=0.3))


@pytest.mark.parametrize("temperature", [0.5, 10.0])
@brief
@given(case=batch_cases())
def test_discriminative(temperature, case):
    term = objectives.discriminative(temperature=temperature)
    harness.check(term, case, functools.partial(oracle.discriminative, temperature=temperature))


@brief
@given(case=batch_cases())
def test_discriminative_by_ratios_and_brevity(case):
    assume(not np.isinf(case.logp).any())  # ratios of exp(20) leave float32 no digits for the others
    assume(np.abs(np.where(case.mask > 0, case.logp - case.behavior_logp, 0)).max() < 10)
    options = {"temperature": 0.3, "max_length": 10}
    term = objectives.discriminative(
        evidence=objectives.probability_ratio(), temperature=1.0, weighting=objectives.brevity_weight(**options)
    )
    weight = functools.partial(oracle.brevity_weight, **options)
    harness.check(
        term, case, functools.partial(oracle.discriminative, evidence=oracle.probability_ratio, temperature=1.0, weight=weight)
    )


@brief
@given(case=batch_cases())
def test_squared_hinge_kl(case):
    term = objectives.squared_hinge_kl(coefficient=3.0, bound=0.05)
    metrics = harness.check(term, case, functools.partial(oracle.squared_hinge_kl, coefficient=3.0, bound=0.05))
    assert "constrained_kl" in metrics


@brief
@given(case=batch_cases())
def test_group_preference(case):
    term = objectives.group_preference(beta=0.3, variance=0.7)
    harness.check(term, case, functools.partial(oracle.group_preference, beta=0.3, variance=0.7), rtol=1e-3)


@pytest.mark.parametrize("members", [3, 16])
@brief
@given(case=batch_cases())
def test_plackett_luce(members, case):
    term = objectives.plackett_luce(beta=0.3, members=members)
    metrics = harness.check(term, case, functools.partial(oracle.plackett_luce, beta=0.3, members=members))
    sizes = np.array([len(numbers) for numbers in oracle.members_of(case)] or [0])
    expected = sizes[sizes > members].sum() / max(sizes.sum(), 1)
    np.testing.assert_allclose(metrics["ranking_left_out"], expected, rtol=1e-6)


@pytest.mark.parametrize("gains", [True, False])
@brief
@given(case=batch_cases())
def test_pairwise_ranking(gains, case):
    # Ranks jump where rewards tie, and on policy all of them are 0 and move together.
    term = objectives.pairwise_ranking(beta=0.3, gains=gains)
    harness.check(term, case, functools.partial(oracle.pairwise_ranking, beta=0.3, gains=gains))


@brief
@given(case=batch_cases())
def test_pairwise_clip(case):
    harness.check(objectives.pairwise_clip(clip=0.5), case, functools.partial(oracle.pairwise_clip, clip=0.5))


def step(rows=6, seed=0, on_policy=False):
    """One rollout a row of three tokens; groups of three (or, for pairs, of two), each rollout with the same share."""
    random = np.random.default_rng(seed)
    shape = (rows, 3)
    behavior = -random.exponential(1.0, shape).astype(np.float32)
    logp = behavior if on_policy else behavior + 0.3 * random.normal(size=shape).astype(np.float32)
    return behavior, logp, random


def gradient(term, logp, behavior, *, score, group, advantage=None):
    rows = [np.repeat(np.asarray(values, np.float32)[:, None], 3, axis=1) for values in (score, score)]
    batch = Batch(
        tokens=np.zeros(logp.shape, np.int32),
        mask=np.ones(logp.shape, np.float32),
        group=np.repeat(np.asarray(group, np.int32)[:, None], 3, axis=1),
        behavior_logp=behavior,
        reference_logp=behavior,
        advantage=rows[0] if advantage is None else np.repeat(np.asarray(advantage, np.float32)[:, None], 3, axis=1),
        extras={"score": rows[0], "correct": (rows[0] > 0).astype(np.float32), "preference": np.sign(rows[0])},
    )
    run = jit(jax.grad(lambda logp: objectives.objective(term)(Scores(logp=logp), batch)[0]))
    return np.asarray(run(jnp.asarray(logp)))


def leave_one_out(score, group):
    score, group = np.asarray(score, float), np.asarray(group)
    return [
        r - score[(group == g) & (np.arange(len(score)) != i)].mean() for i, (r, g) in enumerate(zip(score, group, strict=True))
    ]


@pytest.mark.reduction("copg", "rloo")
def test_contrastive_policy_gradient_on_policy_is_leave_one_out():
    """Where policy and reference agree, the penalty has no slope and the contrast is REINFORCE with RLOO's baselines."""
    behavior, _, random = step(on_policy=True)
    score, group = random.normal(size=6), [0, 0, 0, 4, 4, 4]
    found = gradient(objectives.contrastive_policy_gradient(), behavior, behavior, score=score, group=group)
    expected = -np.asarray(leave_one_out(score, group))[:, None] / 6 * np.ones(3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.reduction("p3o", "rloo")
def test_a_clipped_pair_on_policy_is_leave_one_out_of_two():
    behavior, _, random = step(rows=4, on_policy=True)
    score, group = random.normal(size=4), [1, 0, 0, 1]
    expected = -np.asarray(leave_one_out(score, group))[:, None] / 4 * np.ones(3)
    found = gradient(objectives.pairwise_clip(), behavior, behavior, score=score, group=group)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.reduction("copg", "ipo")
def test_contrast_of_labels_is_ipo():
    """With rewards of 1/2 and -1/2 the squares differ by a factor: beta / 4 of IPO's gradient, halved weights aside."""
    behavior, logp, _ = step(rows=4)
    score, group, beta = np.array([0.25, -0.25, 0.25, -0.25]), [0, 0, 1, 1], 0.4
    contrast = gradient(objectives.contrastive_policy_gradient(beta=beta), logp, behavior, score=score, group=group)
    ipo = gradient(objectives.preference(link=objectives.ipo_link(beta=beta)), logp, behavior, score=score, group=group)
    # (1/2 - beta d)^2 / (2 beta) = beta / 2 (d - 1 / (2 beta))^2, and a contrast is half of the mean over pairs.
    np.testing.assert_allclose(contrast, beta / 4 * ipo, rtol=1e-4, atol=1e-6)


@pytest.mark.reduction("listwise_dpo", "dpo")
@pytest.mark.parametrize("term", [objectives.plackett_luce(beta=0.3), objectives.pairwise_ranking(beta=0.3, gains=False)])
def test_a_ranking_of_two_is_dpo(term):
    behavior, logp, _ = step(rows=4)
    score, group = np.array([2.0, -1.0, -0.5, 0.5]), [3, 3, 2, 2]
    expected = gradient(objectives.preference(link=objectives.sigmoid_link(beta=0.3)), logp, behavior, score=score, group=group)
    np.testing.assert_allclose(gradient(term, logp, behavior, score=score, group=group), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.reduction("gepo", "dpo")
def test_a_group_of_one_winner_and_one_loser_is_dpo():
    behavior, logp, _ = step(rows=4)
    score, group = np.array([2.0, -1.0, -0.5, 0.5]), [3, 3, 2, 2]
    expected = gradient(objectives.preference(link=objectives.sigmoid_link(beta=0.3)), logp, behavior, score=score, group=group)
    found = gradient(objectives.group_preference(beta=0.3), logp, behavior, score=score, group=group)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.reduction("drpo", "disco")
def test_brevity_at_a_high_temperature_is_no_weighting():
    behavior, logp, random = step()
    score, group = np.array([1.0, 1.0, -1.0, 1.0, -1.0, -1.0]), [0, 0, 0, 1, 1, 1]
    weighting = objectives.brevity_weight(temperature=1e6)
    found, expected = (
        gradient(objectives.discriminative(weighting=w), logp, behavior, score=score, group=group) for w in (weighting, None)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_discriminative_at_a_high_temperature_subtracts_the_mean():
    """tau log mean exp(s / tau) tends to the mean: DisCO without the distributionally robust part."""
    behavior, logp, _ = step()
    score, group = np.array([1.0, 1.0, -1.0, 1.0, -1.0, -1.0]), [0, 0, 0, 1, 1, 1]
    found = gradient(objectives.discriminative(temperature=1e4), logp, behavior, score=score, group=group)
    shares = np.array([-1 / 2, -1 / 2, 1, -1, 1 / 2, 1 / 2])  # of each group's loss, which stands at half of the rows
    np.testing.assert_allclose(found, (shares / 2 / 3)[:, None] * np.ones(3), rtol=1e-3)


@pytest.mark.parametrize(("term", "message"), [
    (objectives.discriminative(temperature=0.0), "temperature is 0.0"),
    (objectives.discriminative(weighting=objectives.brevity_weight(temperature=0.0)), "temperature=0.0"),
])  # fmt: skip
def test_bad_options_are_refused(term, message):
    behavior, logp, _ = step()
    with pytest.raises(ValueError, match=message):
        gradient(term, logp, behavior, score=np.ones(6), group=[0] * 6)
