"""Losses on single labelled rollouts against their oracle, and in the cases that are known by hand."""

import functools
import types

import numpy as np
import pytest
from hypothesis import given
from oracles import harness
from oracles import unpaired as oracle
from oracles.cases import batch_cases, brief
from oracles.preference_terms import reward_of
from oracles.tiny_policy import jit

from jaxrl_llm import objectives
from jaxrl_llm.types import Batch, Scores

LINKS = ("saturating_link", "logistic_link")
POINTS = {
    "none": (None, lambda case: 0),
    "mean": (objectives.mean_reference_point(), oracle.mean_reference_point),
    "given": (
        objectives.given_reference_point(annotation="teacher_logp"),
        functools.partial(oracle.given_reference_point, annotation="teacher_logp"),
    ),
    "controlled": (
        objectives.controlled_reference_point(coefficient="beta"),
        functools.partial(oracle.controlled_reference_point, value=np.longdouble("0.3")),
    ),
    "running": (
        objectives.running_reference_point(total="beta", count="beta"),
        functools.partial(oracle.running_reference_point, total=np.longdouble("0.3"), count=np.longdouble("0.3")),
    ),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("link", LINKS)
@brief
@given(case=batch_cases())
def test_unpaired(link, point, case):
    ours, theirs = POINTS[point]
    options = {"beta": 0.4, "desirable": 1.3, "undesirable": 0.6}
    term = objectives.unpaired(link=getattr(objectives, link)(), reference_point=ours, **options)
    metrics = harness.check(term, case, functools.partial(oracle.unpaired, link=getattr(oracle, link), point=theirs, **options))
    labels = oracle.labelled(case)
    if labels:
        exact = types.SimpleNamespace(**{**vars(case), "logp": case.logp.astype(np.longdouble)})
        sides = [[reward_of(exact, exact, n) for n, sign in labels.items() if sign == side] for side in (1, -1)]
        means = [np.mean(side) if side else 0.0 for side in sides]
        np.testing.assert_allclose(metrics["reward_center"], sum(means) / 2, rtol=1e-4, atol=1e-4)


def test_by_hand():
    """Log-ratios of 3 and -1, of which the first is desirable: the mean is 1, so that both are 2 on the right side."""
    batch = Batch(
        tokens=np.zeros((2, 1), np.int32),
        mask=np.ones((2, 1), np.float32),
        reference_logp=np.array([[-4.0], [-1.0]], np.float32),
        extras={"preference": np.array([[1.0], [-1.0]], np.float32)},
    )
    term = objectives.unpaired(
        link=objectives.saturating_link(), beta=0.5, reference_point=objectives.mean_reference_point(), undesirable=3.0
    )
    scores = Scores(logp=np.array([[-1.0], [-2.0]], np.float32))
    loss, metrics = jit(objectives.objective(term))(scores, batch)
    np.testing.assert_allclose(loss, 2.0 / (1 + np.e), rtol=1e-6)
    assert metrics["pair_accuracy"] == 0  # each answers a prompt of its own
    found = {name.removeprefix("reward_"): float(value) for name, value in metrics.items() if name.startswith("reward_")}
    assert found == {"desirable": 3.0, "undesirable": -1.0, "center": 1.0, "reference_point": 1.0}


def test_only_a_mean_over_rollouts_couples():
    link = objectives.saturating_link()
    assert not objectives.unpaired(link=link).coupled
    assert not objectives.unpaired(link=link, reference_point=objectives.controlled_reference_point()).coupled
    assert objectives.unpaired(link=link, reference_point=objectives.mean_reference_point()).coupled
