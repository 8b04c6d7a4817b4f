"""The adaptive KL penalty against its oracle, over two steps."""

import functools

import jax
import numpy as np
import pytest
from estimators.test_estimators_against_oracle import build
from hypothesis import given
from oracles import kl_penalty as oracle
from oracles.cases import brief, rollout_cases

from jaxrl_llm import estimators

OPTIONS = {"target": 0.7, "horizon": 5.0, "bound": 1.5}


@functools.cache
def program(kind):
    estimator = estimators.adaptive_kl_in_reward(initial=0.3, kind=kind, **OPTIONS)
    return estimator.init(), jax.jit(estimator.update)


@pytest.mark.parametrize("kind", ["k1", "k3"])
@brief
@given(case=rollout_cases())
def test_adaptive_kl_in_reward(kind, case):
    state, update = program(kind)
    coefficient = 0.3
    for _ in range(2):
        found, state = update(build(case), state, jax.random.key(0))
        expected, coefficient = oracle.adaptive_kl_in_reward(
            case.token_rewards,
            case.behavior_logp,
            case.reference_logp,
            case.mask,
            case.valid,
            coefficient,
            kind=kind,
            **OPTIONS,
        )
        inside = case.mask > 0
        np.testing.assert_allclose(np.asarray(found.token_rewards)[inside], expected[inside], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state, coefficient, rtol=1e-4)
