"""Several objectives: advantages of each, and rewards that a fair scalarisation weighs."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from oracles import scalarisation as oracle
from oracles.cases import brief
from running import assert_close, check_outside, rich_cases, run, step

from jaxrl_llm import estimators
from jaxrl_llm.estimators import chain, fair_rewards, group_advantage, objective_advantages
from jaxrl_llm.types import Rollouts


@brief
@given(case=rich_cases())
def test_advantages_of_each_objective(case):
    found = run(objective_advantages(inner=group_advantage(), objectives=2), case)

    def alone(rewards):
        other = dataclasses.replace(case, rewards=rewards)
        other.fields, other.extras = case.fields, case.extras
        return run(group_advantage(), other).advantage

    each, mean = oracle.objective_advantages(alone, case.rewards)
    # Rows that lack one of the rewards have no part.
    assert np.array_equal(found.valid > 0, (case.valid > 0) & np.isfinite(case.rewards).all(axis=1))
    assert_close(found.extras["objective_advantage"], np.stack(each, axis=-1), rtol=1e-4, atol=1e-5)
    assert_close(found.advantage, mean, rtol=1e-4, atol=1e-5)
    check_outside(found, case)


@brief
@given(case=rich_cases())
def test_fair_rewards(case):
    estimator = fair_rewards(objectives=2, floor=0.2, decay=0.75)
    state, mean, count = estimator.init(), [0.0, 0.0], 0
    for _ in range(2):
        found, state = step(estimator, case, state)
        expected, mean, count = oracle.fair_rewards(case.rewards, case.valid, mean, count, floor=0.2, decay=0.75)
        assert_close(found.rewards, expected, rtol=1e-4, atol=1e-5)
        assert_close(state["mean"], mean, rtol=1e-4, atol=1e-5)
        assert int(state["count"]) == count


@pytest.mark.parametrize("estimator", [
    objective_advantages(inner=group_advantage(), objectives=3), fair_rewards(objectives=3),
    fair_rewards(objectives=2, floor=0.0),
])  # fmt: skip
def test_wrong_numbers_of_objectives(estimator):
    rollouts = Rollouts(
        tokens=np.zeros((2, 2), np.int32), length=np.full(2, 2), mask=np.ones((2, 2), np.float32), rewards=np.zeros((2, 2))
    )
    with pytest.raises(ValueError, match="objectives is 3, and there are 2 rewards|floor is 0.0"):
        chain(estimator, estimators.token_mean()).update(rollouts, (estimator.init(), ()), jax.random.key(0))
