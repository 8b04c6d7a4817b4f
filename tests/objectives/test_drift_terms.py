"""A drift, ratios alike over buckets, weights by difficulty and truncated policies: against their oracles, and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from oracles import drifts as oracle
from oracles import harness, policy_terms
from oracles.cases import batch_cases, brief

from jaxrl_llm import objectives
from jaxrl_llm.objectives import kl, policy, score_function, token_ratio
from jaxrl_llm.types import Batch, Scores


@pytest.mark.parametrize("options", [{}, {"alpha": 0.5, "beta": 1.5}])
@brief
@given(case=batch_cases())
def test_discovered_drift(options, case):
    trust = functools.partial(oracle.discovered_drift, **options)
    expected = functools.partial(policy_terms.surrogate, ratio=policy_terms.tokens, trust=trust)
    harness.check(policy(trust=objectives.discovered_drift(**options)), case, expected)


BUCKETS = [{}, {"buckets": 2, "shrinkage": 1.0}, {"by": "entropy", "buckets": 3}]


@pytest.mark.parametrize("options", BUCKETS)
@brief
@given(case=batch_cases())
def test_bucket_normalised(options, case):
    ratio = functools.partial(oracle.bucket_normalised, **options)
    expected = functools.partial(policy_terms.surrogate, ratio=ratio, trust=policy_terms.plain_ratio)
    term = policy(ratio=objectives.bucket_normalised(**options), trust=objectives.unclipped())
    harness.check(term, case, expected, rtol=1e-3)


@pytest.mark.parametrize("options", BUCKETS)
@brief
@given(case=batch_cases())
def test_bucket_normalised_is_total(options, case):
    """Nothing that is far or infinite comes through, and nothing where no action counts."""
    scores, batch = harness.build(case)
    found = np.asarray(objectives.bucket_normalised(**options)(scores, batch))
    assert np.isfinite(found).all() and not found[(case.mask == 0) | (case.weight == 0)].any()


@pytest.mark.parametrize("options", [{}, {"steepness": 0.5}])
@brief
@given(case=batch_cases())
def test_difficulty_weight(options, case):
    factor = functools.partial(oracle.difficulty_weight, **options)
    ours = objectives.difficulty_weight(**options)
    expected = functools.partial(
        policy_terms.surrogate, ratio=policy_terms.tokens, trust=policy_terms.plain_score, factors=(factor,)
    )
    harness.check(policy(trust=score_function(), factors=(ours,)), case, expected)


@brief
@given(case=batch_cases())
def test_truncated_policy(case):
    harness.check(objectives.truncated_policy(), case, oracle.truncated_policy)


def batch_of(advantage, **fields):
    """One row of as many tokens as there are advantages, each of weight 1."""
    shape = (1, len(advantage))
    plain = {"tokens": np.zeros(shape, np.int32), "mask": np.ones(shape, np.float32), "weight": np.ones(shape, np.float32)}
    return Batch(**plain, advantage=np.array([advantage], np.float32), **fields)


def test_discovered_drift_by_hand():
    """A = 1, r = 1.5: 1 + 2 tanh(1/4). A = -1, r = 1/2: -1/2 - (log 2 - 0.6 tanh(log 2 / 0.6)). At r = 1 it is A."""
    log_ratio = jnp.log(jnp.array([[1.5, 0.5, 1.0, 1.0]]))
    batch = batch_of([1.0, -1.0, 1.0, -1.0])
    drift = objectives.discovered_drift()

    def losses(x):
        return drift(x, Scores(logp=x), batch)

    rest = np.log(2) - 0.6 * np.tanh(np.log(2) / 0.6)
    np.testing.assert_allclose(losses(log_ratio)[0], [-1 - 2 * np.tanh(0.25), 0.5 + rest, -1, 1], rtol=1e-5)
    slopes = jax.grad(lambda x: losses(x).sum())(log_ratio)[0]
    np.testing.assert_allclose(slopes[2:], [-1.0, 1.0], rtol=1e-6)
    far = jax.grad(lambda x: losses(x).sum())(jnp.full((1, 4), 20.0))[0]
    assert np.isfinite(far).all() and not far[0] and not far[2]


def test_buckets_make_early_and_late_tokens_alike():
    """Ratios of the first half are 10 times those of the second, and lie lower: afterwards both are spread alike round 0."""
    early, late = np.array([-0.9, -0.1]), np.array([0.06, 0.14])
    logp = np.concatenate([early, late])[None].astype(np.float32)
    batch = batch_of([1.0] * 4, behavior_logp=np.zeros((1, 4), np.float32))
    found = objectives.bucket_normalised(buckets=2, shrinkage=1e-9)(Scores(logp=logp), batch)[0]
    size = np.sqrt((0.4**2 + 0.04**2) / 2) + 1e-3
    np.testing.assert_allclose(
        found, [-size * 0.4 / 0.401, size * 0.4 / 0.401, -size * 0.04 / 0.041, size * 0.04 / 0.041], rtol=1e-4
    )


def test_buckets_on_policy_are_the_plain_ratio():
    batch = batch_of([1.0, -1.0, 0.5], behavior_logp=np.full((1, 3), -1.0, np.float32))
    scores = Scores(logp=np.full((1, 3), -1.0, np.float32))
    slopes = [
        jax.grad(lambda scores, ratio=ratio: objectives.objective(policy(ratio=ratio))(scores, batch)[0])(scores).logp
        for ratio in (objectives.bucket_normalised(), token_ratio())
    ]
    np.testing.assert_allclose(*slopes, rtol=1e-6)


def test_difficulty_weight_by_hand():
    """A quarter right: 1 - exp(-e / 4) at a positive advantage alone; all right or all wrong: 1."""
    accuracy = np.array([[0.25, 0.25, 1.0, 0.0]], np.float32)
    batch = batch_of([1.0, -1.0, 1.0, 1.0], extras={"accuracy": accuracy})
    found = objectives.difficulty_weight()(Scores(logp=np.zeros((1, 4), np.float32)), batch)
    np.testing.assert_allclose(found[0], [1 - np.exp(-np.e / 4), 1, 1, 1], rtol=1e-6)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: policy(trust=objectives.discovered_drift(alpha=0.0)), "alpha=0.0, beta=0.6: both must be above 0"),
    (lambda: policy(ratio=objectives.bucket_normalised(by="turn")), "by is 'turn'; it must be one of"),
    (lambda: policy(ratio=objectives.bucket_normalised(buckets=0)), "buckets=0"),
    (lambda: kl(factors=(objectives.difficulty_weight(steepness=0.0),)), "steepness is 0.0; it must be above 0"),
])  # fmt: skip
def test_impossible_options_are_refused(make, message):
    ones = np.ones((1, 2), np.float32)
    batch = batch_of([1.0, 1.0], behavior_logp=-ones, reference_logp=-ones, extras={"accuracy": ones})
    with pytest.raises(ValueError, match=message):
        objectives.objective(make())(Scores(logp=-ones), batch)
