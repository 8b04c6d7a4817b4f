"""Weights by sign, centred scores and balanced flows: against their oracles, and by hand."""

import functools

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
