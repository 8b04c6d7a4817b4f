"""Divergences, candidates, projections and entropies against their oracles; and the rules that pick candidates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from oracles import distributions as oracle
from oracles import harness
from oracles.cases import batch_cases, brief

from jaxrl_llm import objectives
from jaxrl_llm.objectives.candidates import picks_of
from jaxrl_llm.objectives.distillation import project

KINDS = [  # names and options
    ("forward_divergence", {}), ("reverse_divergence", {}), ("jensen_shannon", {"beta": 0.3}),
    ("jensen_shannon", {"beta": 0.0}), ("jensen_shannon", {"beta": 1.0}),
    ("alpha_divergence", {"alpha": 0.4}), ("alpha_divergence", {"alpha": 2.0}), ("cross_entropy", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), KINDS)
@pytest.mark.parametrize("rest", ["bucket", "renormalise"])
@brief
@given(case=batch_cases())
def test_divergence(rest, name, options, case):
    kind = getattr(objectives, name)(**options)
    term = objectives.divergence(kind=kind, rest=rest, coefficient=0.7)
    theirs = functools.partial(getattr(oracle, name), **options)
    harness.check(
        term, case, functools.partial(oracle.divergence, kind=theirs, rest=rest, coefficient=0.7), by=("candidate_logp",)
    )


@brief
@given(case=batch_cases())
def test_divergence_with_a_floor(case):
    """Log-probabilities below -1.5 nats count as -1.5, on both sides."""
    term = objectives.divergence(kind=objectives.forward_divergence(), rest="ignore", floor=-1.5)
    least = np.exp(np.longdouble(-1.5))

    def theirs(other, policy):
        other, policy = (np.where(x > 0, np.maximum(x, least), x) for x in (other, policy))
        return oracle.forward_divergence(other, policy)

    expected = functools.partial(oracle.divergence, kind=theirs, rest="ignore")
    harness.check(term, case, expected, by=("candidate_logp",))


@brief
@given(case=batch_cases())
def test_divergence_from_the_reference_over_bare_candidates(case):
    term = objectives.divergence(kind=objectives.forward_divergence(), against="reference", rest="ignore")
    expected = functools.partial(oracle.divergence, kind=oracle.forward_divergence, rest="ignore", against="reference")
    harness.check(term, case, expected, by=("candidate_logp",))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@brief
@given(case=batch_cases())
def test_generalised_divergence_over_bare_candidates(direction, case):
    kind = objectives.generalised_divergence(direction=direction)
    term = objectives.divergence(kind=kind, rest="ignore", candidates=objectives.top(count=3), coefficient=0.7)
    theirs = functools.partial(oracle.generalised_divergence, direction=direction)
    expected = functools.partial(oracle.divergence, kind=theirs, rest="ignore", coefficient=0.7)
    harness.check(term, case, expected, by=("candidate_logp",))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_generalised_divergence_by_hand(direction):
    """p = (0.4, 0.2), q = (0.2, 0.1): 0.6 log 2 - 0.3 and, the other way, -0.3 log 2 + 0.3; 0 at p = q, with slope 0 there."""
    other, policy = (jnp.log(jnp.array(values)) for values in ((0.4, 0.2), (0.2, 0.1)))
    kind = objectives.generalised_divergence(direction=direction)
    expected = {"forward": 0.6 * np.log(2) - 0.3, "reverse": 0.3 - 0.3 * np.log(2)}[direction]
    np.testing.assert_allclose(kind(other, policy), expected, rtol=1e-5)
    value, slope = jax.value_and_grad(lambda policy: kind(other, policy))(other)
    np.testing.assert_allclose([value, *slope], 0, atol=1e-7)


def test_only_the_generalised_divergence_stays_at_the_teacher_over_bare_candidates():
    """By the logits of all five tokens: the plain forward sum over two candidates moves mass to them, away from p = q."""
    logits = jnp.array([1.0, 0.5, 0.0, -0.5, -1.0])

    def slope(kind):
        other = jax.nn.log_softmax(logits)[:2]
        return np.abs(jax.grad(lambda logits: kind(other, jax.nn.log_softmax(logits)[:2]))(logits)).max()

    assert slope(objectives.forward_divergence()) > 0.05 and slope(objectives.reverse_divergence()) > 0.05
    assert all(slope(objectives.generalised_divergence(direction=each)) < 1e-6 for each in ("forward", "reverse"))


@pytest.mark.parametrize("rest", ["bucket", "renormalise"])
def test_the_generalised_divergence_of_equal_masses_is_refused(rest):
    term = objectives.divergence(kind=objectives.generalised_divergence(), rest=rest)
    with pytest.raises(ValueError, match="would be the plain divergence.*set rest='ignore'"):
        term(None, None)


@brief
@given(case=batch_cases())
def test_one_token_rollouts(case):
    term = objectives.one_token_rollouts(candidates=objectives.sampled(count=3), wrong=-0.2)
    case.candidates[:, ::2, 0] = case.tokens[:, ::2]
    harness.check(term, case, functools.partial(oracle.one_token_rollouts, wrong=-0.2), by=("candidate_logp",))


@pytest.mark.parametrize("bound", [0.02, 0.3])
@settings(brief, max_examples=4)
@given(case=batch_cases())
def test_projected(bound, case):
    case.candidates[:] = (case.tokens[..., None] + np.array([1, 0, 2])) % 32
    term = objectives.policy(ratio=None, trust=objectives.projected(bound=bound, regression=0.5))
    expected = functools.partial(oracle.projected, bound=bound, regression=0.5)
    harness.check(term, case, expected, by=("candidate_logp",), rtol=2e-3)


def test_a_projection_meets_its_bound_and_leaves_what_is_within():
    random = np.random.default_rng(0)
    policy, old = (np.log(random.dirichlet(np.ones(6), 50)).astype(np.float32) for _ in range(2))
    found = np.asarray(jax.jit(functools.partial(project, bound=0.1))(policy, old), np.float64)
    distance = np.sum(np.exp(found) * (found - old), axis=1)
    before = np.sum(np.exp(policy) * (policy - old), axis=1)
    assert (before > 0.1).sum() > 20
    np.testing.assert_allclose(distance[before > 0.1], 0.1, rtol=1e-3)
    np.testing.assert_allclose(found[before <= 0.1], policy[before <= 0.1], rtol=1e-6)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.reduction("troll")
@brief
@given(case=batch_cases())
def test_within_its_bound_a_projection_is_the_unclipped_ratio(case):
    """A bound that nothing meets and no regression leave pi / q, the plain importance-weighted gradient."""
    case.candidates[:, :, 0], case.candidates[:, :, 1:] = case.tokens, -1
    for scores in (case.candidate_logp, case.proximal_candidate_logp):
        scores[..., 1:] = -np.inf
    case.candidate_logp[..., 0] = np.where(case.mask > 0, np.log(0.4), np.nan)
    case.proximal_candidate_logp[..., 0] = np.where(case.mask > 0, np.log(0.5), np.nan)
    term = objectives.policy(ratio=None, trust=objectives.projected(bound=9.0, regression=0.0))
    plain = -0.8 * sum(case.weight[p] * case.advantage[p] for p in harness.actions(case))
    np.testing.assert_allclose(
        harness.program(objectives.objective(term))(*harness.build(case))[0], plain, rtol=1e-4, atol=1e-6
    )


@brief
@given(case=batch_cases())
def test_top_entropy_bonus(case):
    expected = functools.partial(oracle.top_entropy_bonus, coefficient=0.2)
    harness.check(objectives.top_entropy_bonus(coefficient=0.2), case, expected, by=("top_entropy",))


@pytest.mark.parametrize("history", [0.0, 1.0])
@brief
@given(case=batch_cases())
def test_smoothed_entropy(history, case):
    options = {"coefficient": 0.2, "smoothing": 0.5, "history": history, "low": 0.8, "high": 1.2, "penalty": 0.3}
    term = objectives.smoothed_entropy(**options)
    harness.check(term, case, functools.partial(oracle.smoothed_entropy, **options), by=("entropy",))


@brief
@given(case=batch_cases())
def test_overconfidence(case):
    expected = functools.partial(oracle.overconfidence, coefficient=0.3)
    harness.check(objectives.overconfidence(coefficient=0.3), case, expected)


def test_refusals():
    logp = np.log(np.full((1, 1, 2), 0.5))
    with pytest.raises(ValueError, match="beta is 2; it must be from 0 to 1"):
        objectives.jensen_shannon(beta=2)(logp, logp)
    with pytest.raises(ValueError, match="alpha is 1; take forward_divergence"):
        objectives.alpha_divergence(alpha=1)(logp, logp)
    with pytest.raises(ValueError, match="direction is 'both'"):
        objectives.generalised_divergence(direction="both")(logp, logp)
    with pytest.raises(ValueError, match="bound is 0 nats"):
        objectives.projected(bound=0)(None, None, None)
    with pytest.raises(ValueError, match="rest is 'all'"):
        objectives.candidates.distributions(logp, logp, "all")


# ---- rules


def table(rows=40, size=9):
    random = np.random.default_rng(1)
    logp = np.log(random.dirichlet(0.5 * np.ones(size), rows)).astype(np.float32)
    return logp, random.integers(0, size, rows).astype(np.int32), jax.random.split(jax.random.key(0), rows)


@pytest.mark.parametrize("options", [{"count": 3}, {"count": 4, "mass": 0.8}, {"count": 3, "mass": 0.9, "with_token": True}])
def test_top(options):
    logp, tokens, keys = table()
    np.testing.assert_array_equal(objectives.top(**options)(logp, tokens, keys), oracle.top(logp, tokens, **options))


def test_vocabulary():
    logp, tokens, keys = table()
    np.testing.assert_array_equal(objectives.vocabulary()(logp, tokens, keys), oracle.vocabulary(logp))


def test_sampled():
    logp, tokens, keys = table(rows=4)
    drawn = np.asarray(objectives.sampled(count=20000, temperature=1.5)(logp, tokens, keys))
    frequencies = np.stack([np.bincount(row, minlength=9) / 20000 for row in drawn])
    np.testing.assert_allclose(frequencies, oracle.sampled(logp, 1.5), atol=0.015)
    assert (drawn[:1] != drawn[1:2]).any()


def test_rules_are_found_where_they_are_used():
    rule = objectives.sampled(count=3)
    assert picks_of(objectives.objective(objectives.one_token_rollouts(candidates=rule)).terms) == {rule}
    assert picks_of((objectives.policy(trust=objectives.projected()),)) == {objectives.distillation.TOP}
    assert not picks_of((objectives.policy(),))
