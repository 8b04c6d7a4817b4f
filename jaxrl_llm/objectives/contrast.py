"""Losses that contrast the rollouts of a group by their scores or their correctness.

A group's loss stands at all its rollouts, so that a group counts by the sum of its weights (`estimators.sequence_mean`: the
mean over groups of equal size). Rollouts without a weight have no part.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.objectives.base import logp_name, traits
from jaxrl_llm.objectives.batch_statistics import action_mean, counted
from jaxrl_llm.objectives.groups import (
    Groups,
    find_groups,
    group_count,
    group_logmeanexp,
    group_mean,
    group_sum,
    rollout_mean,
    rollout_to_tokens,
    rollout_value,
)
from jaxrl_llm.objectives.implicit_rewards import REFERENCE_RATIO, rollout_reward
from jaxrl_llm.objectives.ratios import likelihood, token_ratio
from jaxrl_llm.types import Batch, Scores

LIKELIHOOD = likelihood()


@composable(annotations=("score",))
@traits(coupled=True)
def contrastive_policy_gradient(scores: Scores, batch: Batch, *, beta: float = 0.1, evidence: Composable = REFERENCE_RATIO):
    """Half the mean over the pairs i < j of a group of -(r_i - r_j) (l_i - l_j) + `beta` / 2 (l_i - l_j)^2.

    r is `extras["score"]` and l the sum over actions of `evidence`. But for a constant, the term of a pair is the squared
    error ((r_i - r_j) - `beta` (l_i - l_j))^2 / (2 `beta`), least at the optimum of the reward with a KL penalty `beta`,
    whoever has sampled. Where l is 0 the gradient is that of REINFORCE with leave-one-out baselines. A group of one
    contributes 0.

    Source: CoPG, https://arxiv.org/abs/2406.19185; over groups of k as in Command A, https://arxiv.org/abs/2504.00698. GVPO,
      https://arxiv.org/abs/2504.19599, and REBEL, https://arxiv.org/abs/2404.16767, have the same gradient up to a factor.
    """
    groups = find_groups(batch)
    everyone = groups.counted
    score = _deviation(_given(batch, "score", groups), groups)
    reward = _deviation(_reward(scores, batch, groups, evidence), groups)
    per_rollout = -score * reward + 0.5 * beta * jnp.square(reward)
    others = group_count(everyone, groups) - 1.0
    return rollout_to_tokens(safe_divide(group_sum(per_rollout, everyone, groups), others), groups), {}


@composable
def log_ratio_regression(scores: Scores, batch: Batch, *, beta: float, evidence: Composable = REFERENCE_RATIO):
    """(`beta` l - A)^2 of each rollout, l being the sum over its actions of `evidence` and A the mean of its advantages.

    Source: A*-PO, https://arxiv.org/abs/2505.20686, with A = r - V*; SPPO, https://arxiv.org/abs/2405.00675,
      with A the win rate less 1/2, times `beta`^2
    """
    groups = find_groups(batch)
    advantage = rollout_mean(batch.advantage, batch.mask, groups.rollout)
    return rollout_to_tokens(jnp.square(beta * _reward(scores, batch, groups, evidence) - advantage), groups), {}


@composable
def brevity_weight(batch: Batch, groups: Groups, *, temperature: float = 0.1, max_length: int = 8192):
    """exp(-length / (`max_length` `temperature`)) of each rollout, [S], length in actions.

    It is proportional to exp(reward / `temperature`) for a reward of 1 - length / `max_length`.

    Raises:
      ValueError: `temperature` is not above 0, or `max_length` not at least 1.

    Source: DRPO, https://arxiv.org/abs/2510.04474
    """
    del batch
    if temperature <= 0 or max_length < 1:
        raise ValueError(f"temperature={temperature}, max_length={max_length}: they must be above 0, and at least 1 token")
    return jnp.exp(-groups.length / (max_length * temperature))


@composable(annotations=("correct",))
@traits(coupled=True)
def discriminative(
    scores: Scores,
    batch: Batch,
    *,
    evidence: Composable = LIKELIHOOD,
    temperature: float = 10.0,
    weighting: Composable | None = None,
):
    """-sum over correct i of w_i [s_i - tau log mean over wrong j of exp(s_j / tau)] of each group, tau = `temperature`.

    s is the mean over the actions of a rollout of `evidence`, and w sums to 1. Groups that are all correct or all wrong
    contribute 0.

    Args:
      evidence: log-probabilities, or `probability_ratio()`.
      temperature: tau; the lower, the more the likeliest wrong rollout counts.
      weighting: function `(batch, groups) -> [S]` that the w of correct rollouts are proportional to; equal by default.

    Raises:
      ValueError: `temperature` is not above 0.

    Source: DisCO, https://arxiv.org/abs/2505.12366; DRPO for `weighting`, https://arxiv.org/abs/2510.04474
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    groups = find_groups(batch)
    correct, wrong, mixed = _classes(batch, groups)
    score = rollout_reward(scores, batch, groups.rollout, evidence=evidence, average=True)
    weight = jnp.ones_like(score) if weighting is None else weighting(batch, groups)
    positive = safe_divide(group_sum(weight * score, correct, groups), group_sum(weight, correct, groups))
    negative = temperature * group_logmeanexp(score / temperature, wrong, groups)
    return rollout_to_tokens(masked(negative - positive, mixed), groups), {}


@composable(annotations=("behavior_logp",))
def probability_ratio(scores: Scores, batch: Batch):
    """pi(token) / pi_behavior(token). Source: DisCO's "L-ratio", https://arxiv.org/abs/2505.12366"""
    return jnp.exp(token_ratio.function(scores, batch)) * (batch.mask > 0)


@composable(annotations=logp_name)
@traits(coupled=True)
def squared_hinge_kl(scores: Scores, batch: Batch, *, coefficient: float = 1e3, bound: float = 1e-4, against: str = "behavior"):
    """`coefficient` / 2 max(0, KL - `bound`)^2, where KL (nats) is the mean over all actions of log pi_old - log pi.

    It is one number for the whole batch, whatever the weights sum to.

    Args:
      coefficient: of the square.
      bound: of the divergence that costs nothing.
      against: pi_old, as in `token_ratio`.

    Source: DisCO, https://arxiv.org/abs/2505.12366
    """
    divergence = -action_mean(token_ratio.function(scores, batch, against=against), counted(batch))
    value = 0.5 * coefficient * jnp.square(jax.nn.relu(divergence - bound))
    share = safe_divide(value, masked(batch.weight, batch.mask).sum())
    return jnp.broadcast_to(share, batch.mask.shape), {"constrained_kl": divergence}


@composable(annotations=("correct",))
@traits(coupled=True)
def group_preference(
    scores: Scores, batch: Batch, *, beta: float = 0.1, variance: float = 1.0, evidence: Composable = REFERENCE_RATIO
):
    """-log s(`beta` (mean of l over correct - mean over wrong)) + `variance` (variance of l over correct) of each group.

    l is the sum over the actions of a rollout of `evidence`. Groups that are all correct or all wrong contribute 0.

    Source: GEPO, https://arxiv.org/abs/2505.12723
    """
    groups = find_groups(batch)
    correct, wrong, mixed = _classes(batch, groups)
    reward = _reward(scores, batch, groups, evidence)
    center = group_mean(reward, correct, groups)
    spread = group_mean(jnp.square(reward - center), correct, groups)
    loss = jax.nn.softplus(beta * (group_mean(reward, wrong, groups) - center)) + variance * spread
    return rollout_to_tokens(masked(loss, mixed), groups), {}


def _reward(scores: Scores, batch: Batch, groups: Groups, evidence: Composable):
    return rollout_reward(scores, batch, groups.rollout, evidence=evidence)


def _given(batch: Batch, name: str, groups: Groups):
    """An annotation that is equal along a rollout, by rollout, [S]."""
    return rollout_value(batch.extras[name], batch.mask, groups.rollout)


def _deviation(per_rollout, groups: Groups):
    return per_rollout - group_mean(per_rollout, groups.counted, groups)


def _classes(batch: Batch, groups: Groups):
    """Correct and wrong rollouts, and those of groups that have both, float [S]."""
    correct = (_given(batch, "correct", groups) > 0.5).astype(jnp.float32)
    wrong = 1.0 - correct
    mixed = (group_count(correct, groups) > 0) & (group_count(wrong, groups) > 0)
    return correct, wrong, mixed.astype(jnp.float32)
