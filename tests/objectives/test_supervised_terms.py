"""Imitation against its oracle, and its limits."""

import functools

import numpy as np
import pytest
from hypothesis import given
from oracles import harness
from oracles import supervised_terms as oracle
from oracles.cases import batch_cases, brief

from jaxrl_llm import objectives
from jaxrl_llm.types import Batch, Scores

LIKELIHOOD = objectives.negative_log_likelihood()


@pytest.mark.parametrize("name", ["probability", "uncertainty"])
@brief
@given(case=batch_cases())
def test_weighted_likelihood(name, case):
    term = objectives.negative_log_likelihood(coefficient=0.6, factors=(getattr(objectives, name)(),))
    expected = functools.partial(oracle.negative_log_likelihood, coefficient=0.6, factor=getattr(oracle, name))
    harness.check(term, case, expected)


@brief
@given(case=batch_cases())
def test_sequence_likelihood(case):
    term = objectives.sequence_likelihood(coefficient=-0.4)
    harness.check(term, case, functools.partial(oracle.sequence_likelihood, coefficient=-0.4))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@brief
@given(case=batch_cases())
def test_label_smoothing(smoothing, case):
    term = objectives.label_smoothing(smoothing=smoothing)
    harness.check(term, case, functools.partial(oracle.label_smoothing, smoothing=smoothing), by=("logp", "mean_logp"))


@pytest.mark.parametrize("share", [0.3, "beta"])
@brief
@given(case=batch_cases())
def test_blended(share, case):
    first, second = LIKELIHOOD, objectives.negative_log_likelihood(factors=(objectives.probability(),))
    weighted = functools.partial(oracle.negative_log_likelihood, factor=oracle.probability)
    harness.check(
        objectives.blended(first=first, second=second, share=share),
        case,
        functools.partial(oracle.blended, first=oracle.negative_log_likelihood, second=weighted, share=np.longdouble("0.3")),
    )


@brief
@given(case=batch_cases())
def test_own_mean(case):
    expected = functools.partial(oracle.own_mean, term=oracle.negative_log_likelihood)
    harness.check(objectives.own_mean(term=LIKELIHOOD), case, expected)


@brief
@given(case=batch_cases())
def test_own_mean_of_a_source(case):
    term = objectives.by_source(terms=((1, objectives.own_mean(term=LIKELIHOOD)),))
    harness.check(term, case, functools.partial(oracle.own_mean, term=oracle.negative_log_likelihood, source=1))


@pytest.mark.reduction("sft")
def test_label_smoothing_of_nothing_is_the_likelihood():
    batch = Batch(tokens=np.zeros((1, 3), np.int32), mask=np.ones((1, 3), np.float32))
    scores = Scores(logp=np.array([[-1.0, -2.0, -0.5]], np.float32), mean_logp=np.full((1, 3), -4.0, np.float32))
    smooth, plain = (objectives.objective(t)(scores, batch)[0] for t in (objectives.label_smoothing(smoothing=0.0), LIKELIHOOD))
    assert smooth == plain


def test_factors_by_hand():
    """A certain token: probability 1, uncertainty 0. One of probability 1/2: 1/2 and 1/4."""
    scores = Scores(logp=np.log(np.array([[1.0, 0.5]], np.float32)))
    batch = Batch(tokens=np.zeros((1, 2), np.int32), mask=np.ones((1, 2), np.float32))
    np.testing.assert_allclose(objectives.probability()(scores, batch), [[1.0, 0.5]])
    np.testing.assert_allclose(objectives.uncertainty()(scores, batch), [[0.0, 0.25]])


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="smoothing is 1.5"):
        objectives.label_smoothing(smoothing=1.5)(Scores(logp=np.zeros((1, 1))), None)
