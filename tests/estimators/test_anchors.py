"""Optimal values against their oracle, and which rows stay."""

import jax
import numpy as np
import pytest
from oracles import anchors as oracle

from jaxrl_llm import estimators
from jaxrl_llm.types import Rollouts


@pytest.mark.parametrize("beta", [0.1, 0.5, 10.0])
@pytest.mark.parametrize("solvable", [True, False])
def test_optimal_value(beta, solvable):
    rewards = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [-1.0, 0.5, 2.0]], np.float32)
    shape = (4, 2)
    rollouts = Rollouts(
        tokens=np.zeros(shape, np.int32), length=np.full(4, 2), mask=np.ones(shape, np.float32), rewards=np.zeros((4, 1)),
        valid=np.array([1.0, 1.0, 0.0, 1.0], np.float32), extras={"anchor_rewards": rewards},
    )  # fmt: skip
    estimator = estimators.optimal_value(beta=beta, solvable=solvable)
    found, _ = estimator.update(rollouts, estimator.init(), jax.random.key(0))
    np.testing.assert_allclose(found.extras["optimal_value"], oracle.optimal_value(rewards, beta=beta), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.valid, [1, 0, 0, 1] if solvable else [1, 1, 0, 1])


def test_beta_must_be_positive():
    with pytest.raises(ValueError, match="beta is 0; it must be above 0"):
        estimators.optimal_value(beta=0).update(None, (), None)
