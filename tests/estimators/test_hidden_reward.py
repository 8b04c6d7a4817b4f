"""Token hidden rewards against loops, and groups that they leave alone."""

import jax
import numpy as np
import pytest
from estimators.test_estimators_against_oracle import build, scores_of
from hypothesis import given
from oracles import hidden_reward as oracle
from oracles.cases import ROWS, WIDTH, brief, rollout_cases
from oracles.distributions import tokens_of_group

from jaxrl_llm import estimators, objectives

VOCABULARY, STATE = 32, 3


def annotated(case, seed=0):
    random = np.random.default_rng(seed)
    shape = (ROWS, WIDTH)
    logp = np.log(random.dirichlet(np.ones(VOCABULARY), shape)).astype(np.float32)
    extras = {
        "proximal_hidden": random.normal(size=(*shape, STATE)).astype(np.float32),
        "proximal_candidate_logp": logp,
        "candidates": np.broadcast_to(np.arange(VOCABULARY, dtype=np.int32), (*shape, VOCABULARY)),
    }
    rollouts = build(case)
    return rollouts.replace(extras=extras, advantage=np.where(case.mask > 0, case.advantage, 0).astype(np.float32))


@pytest.mark.parametrize("strength", [0.3, -0.3])
@brief
@given(case=rollout_cases())
def test_hidden_reward_weighting(strength, case):
    options = {"strength": strength, "share": 0.8, "threshold": 0.1}
    rollouts = annotated(case)
    estimator = estimators.hidden_reward_weighting(candidates=objectives.vocabulary(of="proximal"), **options)
    found, _ = estimator.update(rollouts, estimator.init(), jax.random.key(0))
    names = ("proximal_hidden", "proximal_candidate_logp", "candidates")
    given_arrays = [rollouts.extras[name] for name in names]
    expected = oracle.hidden_reward_weighting(
        rollouts.advantage, *given_arrays, case.tokens, case.mask, *scores_of(case), case.group, **options
    )
    inside = case.mask > 0
    np.testing.assert_allclose(np.asarray(found.advantage)[inside], expected[inside], rtol=1e-4, atol=1e-5)
    assert np.isfinite(found.advantage).all()


@pytest.mark.reduction("thr")
@brief
@given(case=rollout_cases())
def test_groups_without_a_contrast_stay_as_they_are(case):
    case.rewards[:], case.token_rewards = 1.0, None
    rollouts = annotated(case)
    estimator = estimators.hidden_reward_weighting(candidates=objectives.vocabulary(of="proximal"))
    found, _ = estimator.update(rollouts, estimator.init(), jax.random.key(0))
    np.testing.assert_array_equal(found.advantage, rollouts.advantage)


@brief
@given(case=rollout_cases())
def test_the_tokens_of_the_group_are_enough(case):
    """Error vectors over the ids that occur: as over the vocabulary with all other entries left out."""
    rollouts = annotated(case)
    candidates = objectives.group_tokens(rollouts)
    whole = rollouts.extras["proximal_candidate_logp"]
    own = np.where(candidates >= 0, np.take_along_axis(whole, np.maximum(candidates, 0), axis=2), -np.inf)
    narrow = rollouts.replace(extras=rollouts.extras | {"candidates": candidates, "proximal_candidate_logp": own})
    occurs = np.array([[np.isin(np.arange(VOCABULARY), candidates[n, 0]) for _ in range(WIDTH)] for n in range(ROWS)])
    wide = rollouts.replace(
        extras=rollouts.extras | {"proximal_candidate_logp": np.where(occurs, whole, -np.inf).astype(np.float32)}
    )
    found = [
        estimators.hidden_reward_weighting(candidates=rule).update(step, (), jax.random.key(0))[0].advantage
        for rule, step in ((objectives.tokens_of_group(), narrow), (objectives.vocabulary(of="proximal"), wide))
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    expected = tokens_of_group(rollouts.group, rollouts.tokens, rollouts.mask)
    assert [[token for token in row[0].tolist() if token >= 0] for row in candidates] == expected


def test_tokens_of_the_group_cannot_be_picked_one_by_one():
    with pytest.raises(ValueError, match="group_tokens"):
        objectives.tokens_of_group()(None, None, None)
