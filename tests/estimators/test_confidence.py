"""Rewards from what the policy itself thinks: against their oracles, and by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from oracles import advantages
from oracles import confidence as oracle
from oracles.cases import brief
from running import assert_close, check_outside, rich_cases, run

from jaxrl_llm import estimators
from jaxrl_llm.estimators import group_advantage
from jaxrl_llm.types import Rollouts


@st.composite
def confident_cases(draw):
    """Cases with mean log-probabilities, some of them infinite, log-probabilities and reference answers."""
    case = draw(rich_cases())
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mean = -4.0 - random.exponential(1.0, case.mask.shape)
    logp = -random.exponential(0.5, case.mask.shape)
    if draw(st.booleans()):
        mean[random.random(mean.shape) < 0.2], logp[random.random(mean.shape) < 0.1] = -np.inf, -np.inf
    length = case.mask.sum(axis=1)[:, None]
    behind = np.cumsum(case.mask, axis=1) > length - random.integers(0, 4, length.shape)
    case.extras |= {
        "proximal_mean_logp": np.where(case.mask > 0, mean, np.nan).astype(np.float32),
        "proximal_logp": np.where(case.mask > 0, logp, np.nan).astype(np.float32),
        "answer_mask": behind.astype(np.float32),
    }
    return case


@brief
@given(case=confident_cases())
def test_self_certainty_reward(case):
    found = run(estimators.self_certainty_reward(component=1), case)
    there = ~np.isnan(case.rewards[:, 1])
    expected = np.asarray(oracle.self_certainty_reward(case.mask, case.extras["proximal_mean_logp"]))
    np.testing.assert_allclose(found.rewards[:, 1], np.where(there, expected, np.nan), rtol=1e-5)
    np.testing.assert_array_equal(found.rewards[:, 0], case.rewards[:, 0])


@brief
@given(case=confident_cases())
def test_answer_likelihood_advantage(case):
    found = run(estimators.answer_likelihood_advantage(), case)
    _, present = advantages.row_scores(case.rewards, case.valid, case.mask)
    arrays = case.group, case.mask, case.extras["answer_mask"], case.extras["proximal_logp"]
    expected = oracle.answer_likelihood_advantage(present, *arrays)
    assert_close(found.advantage, expected, rtol=1e-4, atol=1e-5)
    assert_close(found.valid, case.valid * present)
    check_outside(found, case)


def rollouts_of(mask, **extras):
    mask = np.asarray(mask, np.float32)
    return Rollouts(
        tokens=np.zeros(mask.shape, np.int32), length=np.full(len(mask), mask.shape[1], np.int32), mask=mask,
        rewards=np.zeros((len(mask), 1), np.float32), group=np.zeros(len(mask), np.int32),
        extras={name: np.asarray(values, np.float32) for name, values in extras.items()},
    )  # fmt: skip


def test_self_certainty_by_hand():
    """p = (1/2, 1/2) and (0.9, 0.1): KL from uniform 0 and log(1/2) - log(0.3), each plus log 2."""
    mean = np.log([[0.5, 0.5], [0.3, 0.3]])
    given = rollouts_of([[0, 1], [1, 1]], proximal_mean_logp=mean)
    found, _ = estimators.self_certainty_reward().update(given, (), None)
    np.testing.assert_allclose(found.rewards[:, 0] - np.log(2), [0.0, 0.510826], atol=1e-6)


def test_answer_likelihood_by_hand():
    """Answers of probabilities 0.5 * 0.5 and 0.5: R - b is -1/4 and 1/4 at the reasoning."""
    logp = np.log([[0.3, 0.5, 0.5], [0.3, 0.3, 0.5]])
    given = rollouts_of(np.ones((2, 3)), proximal_logp=logp, answer_mask=[[0, 1, 1], [0, 0, 1]])
    found, _ = estimators.answer_likelihood_advantage().update(given, (), None)
    np.testing.assert_allclose(found.advantage, [[-0.25, 0.25, 0.25], [0.25, 0.25, 0.5]], rtol=1e-6)


@brief
@given(case=confident_cases())
def test_a_constant_such_as_the_logarithm_of_the_vocabulary_changes_no_advantage(case):
    estimator = estimators.chain(estimators.self_certainty_reward(), group_advantage(scale=None, reward_weights=(1.0, 0.0)))
    case.token_rewards = None
    plain = run(estimator, case)
    case.extras["proximal_mean_logp"] = case.extras["proximal_mean_logp"] - np.float32(np.log(32))
    assert_close(run(estimator, case).advantage[known(case)], plain.advantage[known(case)], rtol=1e-4, atol=1e-4)


def known(case):
    """Rows of groups whose first components are all there: a row that has only the second is compared by it."""
    count = (np.isfinite(case.extras["proximal_mean_logp"]) & (case.mask > 0)).sum(axis=1)
    missing = np.isnan(case.rewards[:, 0]) | (count == 0)
    return np.array([not missing[case.group == number].any() for number in case.group])
