"""Weights by sign, centred scores and balanced flows: against their oracles, and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from oracles import harness, policy_terms
from oracles import off_policy_terms as oracle
from oracles.cases import batch_cases, brief

from jaxrl_llm import objectives
from jaxrl_llm.objectives import policy
from jaxrl_llm.types import Batch, Scores


@pytest.mark.parametrize("options", [{}, {"positive": (0.5, 1.5), "negative": (0.1, 0.8)}])
@brief
@given(case=batch_cases())
def test_tapered(options, case):
    trust = functools.partial(oracle.tapered, **options)
    expected = functools.partial(policy_terms.surrogate, ratio=policy_terms.sequence_total_ratio, trust=trust)
    term = policy(ratio=objectives.sequence_total_ratio(), trust=objectives.tapered(**options))
    harness.check(term, case, expected)


def row_of(**extras):
    """A row of three actions of advantages 1, -1, -1 and weight 1."""
    ones = np.ones((1, 3), np.float32)
    advantage = np.array([[1.0, -1.0, -1.0]], np.float32)
    return Batch(tokens=np.zeros((1, 3), np.int32), mask=ones, weight=ones, advantage=advantage, extras=extras)


def test_tapered_by_hand():
    """Ratios 4, 4 and 1/2 with A = 1, -1, -1 and log pi = -2: weights 1, 1 and 1/2."""
    scores = Scores(logp=np.full((1, 3), -2.0, np.float32))
    log_ratio = np.log(np.array([[4.0, 4.0, 0.5]], np.float32))
    np.testing.assert_allclose(objectives.tapered()(log_ratio, scores, row_of()), [[2.0, -2.0, -1.0]], rtol=1e-6)


@pytest.mark.parametrize("bounds", [(0.5, 0.1), (-0.1, 1.0)])
def test_tapered_refuses_bounds(bounds):
    with pytest.raises(ValueError, match="negative is .*two bounds of a weight"):
        objectives.tapered(negative=bounds)(np.zeros((1, 3)), Scores(logp=np.zeros((1, 3), np.float32)), row_of())


TOP = objectives.top(of="proximal", count=3)


@pytest.mark.parametrize("options", [{}, {"high": 1.1}, {"low": 0.9}, {"low": 0.8, "high": 1.5}])
@brief
@given(case=batch_cases())
def test_score_centering(options, case):
    term = objectives.score_centering(candidates=TOP, **options)
    harness.check(term, case, functools.partial(oracle.score_centering, **options), by=("candidate_logp",))


def gradient_by_logits(logits, sampler, count, token=None, **options):
    """Slope by the logits [V] of the centring of one action with A = 1, and with a token that of its score as well."""
    order = jnp.argsort(-sampler)[:count]
    batch = Batch(
        tokens=np.zeros((1, 1), np.int32), mask=np.ones((1, 1)), weight=np.ones((1, 1)), advantage=np.ones((1, 1)),
        extras={"candidates": order[None, None], "proximal_candidate_logp": jax.nn.log_softmax(sampler)[order][None, None]},
    )  # fmt: skip

    def loss(logits):
        logp = jax.nn.log_softmax(logits)
        scores = Scores(logp=jnp.zeros((1, 1)), candidate_logp=logp[order][None, None])
        return term(scores, batch)[0].sum() - (0.0 if token is None else logp[token])

    term = objectives.score_centering(candidates=TOP, **options)
    return np.asarray(jax.grad(loss)(logits))


def test_centred_scores_have_mean_0_under_the_sampler():
    """With all tokens, or with the candidates where the sampler is rho p behind them."""
    random = np.random.default_rng(0)
    logits = jnp.asarray(random.normal(size=6), jnp.float32)
    other = jnp.asarray(random.normal(size=6), jnp.float32)
    p, q = jax.nn.softmax(logits), jax.nn.softmax(other)
    order = jnp.argsort(-q)
    mixed = q.at[order[3:]].set(p[order[3:]] / p[order[3:]].sum() * q[order[3:]].sum())
    assert (jnp.argsort(-mixed)[:3] == order[:3]).all()
    for sampler, count in ((other, 6), (jnp.log(mixed), 3)):
        slopes = [gradient_by_logits(logits, sampler, count, token) for token in range(6)]
        np.testing.assert_allclose(np.einsum("v,vd->d", jax.nn.softmax(sampler), slopes), 0, atol=1e-6)


def test_weighted_scores_are_centred_too():
    random = np.random.default_rng(1)
    logits, sampler = (jnp.asarray(random.normal(size=6), jnp.float32) for _ in range(2))
    p, q = jax.nn.softmax(logits), jax.nn.softmax(sampler)
    weight = jnp.clip(p / q, 0.5, 1.2)
    scores = jax.vmap(lambda token: -weight[token] * jax.grad(lambda x: jax.nn.log_softmax(x)[token])(logits))(jnp.arange(6))
    mean = jnp.einsum("v,vd->d", q, scores)
    np.testing.assert_allclose(mean + gradient_by_logits(logits, sampler, 6, low=0.5, high=1.2), 0, atol=1e-6)


def test_centring_is_0_on_policy():
    logits = jnp.asarray(np.random.default_rng(2).normal(size=6), jnp.float32)
    for count in (2, 6):
        for options in ({}, {"low": 0.5, "high": 2.0}):
            np.testing.assert_allclose(gradient_by_logits(logits, logits, count, **options), 0, atol=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), [(40.0, 40.0), (40.0, 0.0), (0.0, 40.0)])
@pytest.mark.parametrize("options", [{}, {"high": 2.0}])
def test_centring_is_finite_where_the_candidates_have_all_mass(options, ours, theirs):
    logits, sampler = jnp.array([ours, 0.0, 0.0, 0.0]), jnp.array([theirs, 0.0, 0.0, 0.0])
    found = gradient_by_logits(logits, sampler, 2, **options)
    assert np.isfinite(found).all() and np.abs(found).max() < 2


def test_centring_refuses_bounds():
    with pytest.raises(ValueError, match="low=2.0, high=1.0: bounds of a weight"):
        objectives.score_centering(candidates=TOP, low=2.0, high=1.0)(None, None)


@pytest.mark.parametrize("weighted", [False, True])
@brief
@given(case=batch_cases())
def test_trajectory_balance(weighted, case):
    ours = (objectives.importance_weight(of="policy", ratio=objectives.sequence_ratio(), low=0.8, high=1.28),)
    theirs = functools.partial(
        policy_terms.importance_weight, of="policy", ratio=policy_terms.sequence_mean_ratio, low=0.8, high=1.28
    )
    term = objectives.trajectory_balance(beta=1.5, factors=ours if weighted else ())
    expected = functools.partial(oracle.trajectory_balance, beta=1.5, factors=(theirs,) if weighted else ())
    harness.check(term, case, expected, by=("logp", "value"))


def test_trajectory_balance_by_hand():
    """log Z = 3 before the second token, the first action; mean log-ratio 0.2, A = 0.1: (3 + 0.2 - 15 * 0.1)^2 = 2.89."""
    logp = np.array([[0.0, -1.0, -2.0]], np.float32)
    batch = Batch(
        tokens=np.zeros((1, 3), np.int32), mask=np.array([[0, 1, 1]], np.float32), advantage=np.full((1, 3), 0.1, np.float32),
        weight=np.ones((1, 3), np.float32), reference_logp=logp - np.array([[9.0, 0.1, 0.3]], np.float32),
    )  # fmt: skip
    found, metrics = objectives.trajectory_balance()(Scores(logp=logp, value=np.array([[7.0, 3.0, 5.0]], np.float32)), batch)
    np.testing.assert_allclose(found[0, 1:], 2.89, rtol=1e-5)
    np.testing.assert_allclose(metrics["log_partition"], 6.0, rtol=1e-6)


def test_trajectory_balance_refuses_a_beta():
    with pytest.raises(ValueError, match="beta is 0.0"):
        objectives.trajectory_balance(beta=0.0)(None, None)
