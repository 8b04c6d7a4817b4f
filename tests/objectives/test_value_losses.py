"""Heads of critics and their losses against their oracles, by value and gradient."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from oracles import critics as oracle
from oracles import harness
from oracles.cases import batch_cases, brief

from jaxrl_llm import objectives
from jaxrl_llm.objectives import heads
from jaxrl_llm.types import Batch, Scores

TERMS = [
    (objectives.gaussian_value_loss(), oracle.gaussian_value_loss, "value_outputs"),
    (objectives.ensemble_value_loss(), oracle.ensemble_value_loss, "value_outputs"),
    (objectives.ensemble_value_loss(huber=0.4), functools.partial(oracle.ensemble_value_loss, huber=0.4), "value_outputs"),
    (objectives.expectile_value_loss(level=0.9), functools.partial(oracle.expectile_value_loss, level=0.9), "value"),
    *(
        (
            objectives.dual_value_loss(divergence=kind, bound=1.0),
            functools.partial(oracle.dual_value_loss, divergence=kind, bound=1.0),
            "value",
        )
        for kind in ("chi2", "total_variation", "gumbel")
    ),
    (
        objectives.categorical_value_loss(low=-1.0, high=1.5, smoothing=None),
        functools.partial(oracle.two_hot, low=-1.0, high=1.5),
        "value_outputs",
    ),
    (
        objectives.quantile_value_loss(samples="return_samples", huber=0.5),
        lambda live, case: oracle.quantile(live, case, case.return_samples, huber=0.5),
        "value_outputs",
    ),
]


@pytest.mark.parametrize(("term", "theirs", "by"), TERMS, ids=[repr(term) for term, *_ in TERMS])
@brief
@given(case=batch_cases())
def test_losses_of_critics(term, theirs, by, case):
    harness.check(term, case, theirs, by=(by,))


@brief
@given(case=batch_cases())
def test_a_dueling_loss_teaches_value_and_logits(case):
    metrics = harness.check(
        objectives.dueling_value_loss(alpha=0.3),
        case,
        functools.partial(oracle.dueling_value_loss, alpha=0.3),
        by=("value", "logp"),
    )
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(("bound", "scale"), [(0.5, 2.0), (100.0, 1.0)])
@brief
@given(case=batch_cases())
def test_the_deviation_learns_from_a_bounded_draw(bound, scale, case):
    term = objectives.gaussian_value_loss(bound=bound, scale=scale, samples="return_samples")
    scores, batch = harness.build(case)
    _, gradient, metrics = harness.program(objectives.objective(term))(scores, batch)
    expected = oracle.bounded_gaussian_gradient(
        case, case.value_outputs, bound=bound, scale=scale, drawn=case.return_samples[..., 0]
    )
    np.testing.assert_allclose(gradient.value_outputs, expected, rtol=2e-4, atol=1e-5 * (1 + np.abs(expected).max()))
    assert np.isfinite(metrics["critic/deviation"]) and metrics["critic/variance"] >= 0


def test_bounds_that_are_not_known_yet_bind_nothing():
    """The controllers of a first step give 0."""
    batch = Batch(
        tokens=np.zeros((1, 2), np.int32), mask=np.ones((1, 2), np.float32), returns=np.full((1, 2), 50.0, np.float32),
        extras={"return_samples": np.full((1, 2, 1), 50.0, np.float32)},
        coefficients={"b": np.float32(0), "s": np.float32(0)},
    )  # fmt: skip
    scores = Scores(logp=jnp.zeros((1, 2)), value_outputs=jnp.zeros((1, 2, 2)))
    plain = objectives.gaussian_value_loss()(scores, batch)[0]
    bounded = objectives.gaussian_value_loss(bound="b", scale="s", samples="return_samples")(scores, batch)[0]
    np.testing.assert_array_equal(plain, bounded)


# ---- heads


def cut(share):
    return lambda level: min(level / share, 1.0)


def normal_shift(shift):
    def distortion(level):
        if level in (0.0, 1.0):
            return level
        low, high = -10.0, 10.0
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if 0.5 * (1 + math.erf(middle / math.sqrt(2))) < level else (low, middle)
        return 0.5 * (1 + math.erf((low + shift) / math.sqrt(2)))

    return distortion


RISKS = [
    (heads.tail_mean(share=0.3), cut(0.3)), (heads.tail_mean(share=1.0), cut(1.0)),
    (heads.wang(shift=0.75), normal_shift(0.75)),
]  # fmt: skip


@pytest.mark.parametrize(("risk", "distortion"), RISKS, ids=["tail", "whole", "wang"])
def test_risks_of_distributions(risk, distortion):
    random = np.random.default_rng(3)
    outputs = random.normal(size=(4, 7)).astype(np.float32)
    found = heads.quantiles(count=7, risk=risk)(outputs)
    expected = [oracle.distorted_mean([float(x) for x in row], [1 / 7] * 7, distortion) for row in outputs]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    shares = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    values = [-1.0 + 0.5 * i for i in range(7)]
    found = heads.bins(count=7, low=-1.0, high=2.0, risk=risk)(outputs)
    expected = [oracle.distorted_mean(values, [float(x) for x in row], distortion) for row in shares]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: heads.quantiles(count=7, risk=risk)(x).sum())(jnp.asarray(outputs))
    assert np.isfinite(gradient).all()


def test_values_that_heads_read():
    outputs = np.array([[1.0, 3.0, -2.0, 0.5]], np.float32)
    assert float(heads.plain()(outputs)[0]) == 1.0 and heads.width(heads.plain()) == 1
    assert float(heads.quantiles(count=4)(outputs)[0]) == pytest.approx(0.625)
    assert float(heads.ensemble(count=4)(outputs)[0]) == -2.0 and heads.width(heads.ensemble(count=4)) == 4
    assert float(heads.gaussian(members=2)(outputs)[0]) == -2.0 and heads.width(heads.gaussian(members=2)) == 4
    # Bernoulli of p = 1 / (1 + e^-2) with values 0 and 1: eta log(1 - p + p e^(1 / eta)).
    logits, eta = np.array([[0.0, 2.0]], np.float32), 0.5
    p = 1 / (1 + math.exp(-2))
    found = heads.bins(count=2, risk=heads.soft_maximum(temperature=eta))(logits)
    assert float(found[0]) == pytest.approx(eta * math.log(1 - p + p * math.exp(1 / eta)), rel=1e-5)
    assert float(heads.bins(count=2)(logits)[0]) == pytest.approx(p, rel=1e-5)


def test_soft_maxima_of_impossible_values_are_finite():
    logits = jnp.array([[0.0, -jnp.inf], [1e4, -1e4]])
    head = heads.bins(count=2, risk=heads.soft_maximum(temperature=1e-3))
    value, gradient = jax.value_and_grad(lambda x: head(x).sum())(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize(("make", "message"), [
    (lambda x: heads.bins(count=1)(x), "bins of count=1"), (lambda x: heads.quantiles(count=1)(x), "count is 1 quantiles"),
    (lambda x: heads.gaussian(members=0)(x), "members is 0"),
    (lambda x: heads.tail_mean(share=0.0)(x, x), "share is 0.0"), (lambda x: heads.ensemble(count=1)(x), "count is 1 members"),
    (lambda x: heads.soft_maximum(temperature=0.0)(x, x), "temperature is 0.0"),
])  # fmt: skip
def test_impossible_heads(make, message):
    with pytest.raises(ValueError, match=message):
        make(np.zeros((1, 2), np.float32))


@pytest.mark.parametrize(("make", "options", "message"), [
    (objectives.gaussian_value_loss, {"least_deviation": 0.0}, "least_deviation is 0.0"),
    (objectives.expectile_value_loss, {"level": 1.0}, "level is 1.0"),
    (objectives.dual_value_loss, {"divergence": "kl"}, "divergence is 'kl'; it must be one of"),
    (objectives.dual_value_loss, {"share": 1.0}, "share is 1.0"),
])  # fmt: skip
def test_impossible_losses(make, options, message):
    batch = Batch(tokens=np.zeros((1, 2), np.int32), mask=np.ones((1, 2)), returns=np.zeros((1, 2)))
    scores = Scores(logp=np.zeros((1, 2)), value=np.zeros((1, 2)), value_outputs=np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match=message):
        make(**options)(scores, batch)


# ---- pairs


@pytest.mark.parametrize("options", [{"beta": 0.3, "discount": 0.9, "regularisation": 0.5}])
@brief
@given(case=batch_cases())
def test_inverse_preferences(options, case):
    harness.check(
        objectives.inverse_preference(**options),
        case,
        functools.partial(oracle.inverse_preference, **options),
        by=("logp", "value"),
    )


def test_without_size_and_discount_it_is_a_preference_of_likelihoods():
    """V telescopes away but for the first state, which a pair shares: here it has the value 0."""
    case = types.SimpleNamespace(logp=np.array([[-1.0, -2.0], [-0.5, -0.25]], np.float32))
    batch = Batch(
        tokens=np.zeros((2, 2), np.int32), mask=np.ones((2, 2), np.float32), group=np.zeros((2, 2), np.int32),
        extras={"preference": np.array([[1.0, 1.0], [-1.0, -1.0]], np.float32)},
    )  # fmt: skip
    scores = Scores(logp=jnp.asarray(case.logp), value=jnp.array([[0.0, 5.0], [0.0, -3.0]]))
    loss, _ = objectives.objective(objectives.inverse_preference(beta=0.5, discount=1.0, regularisation=0.0))(scores, batch)
    assert float(loss) == pytest.approx(math.log1p(math.exp(0.5 * (3.0 - 0.75))), rel=1e-5)
