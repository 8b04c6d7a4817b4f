"""Losses that contrast the rollouts of a group by their scores or their correctness.

A group's loss stands at all its rollouts, so that a group counts by the sum of its weights (`estimators.sequence_mean`: the
mean over groups of equal size). Rollouts without a weight have no part.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable, require
from jaxrl_llm.numerics import MAX_LOG_RATIO, masked, safe_divide, without_infinities
from jaxrl_llm.objectives.base import logp_name
from jaxrl_llm.objectives.batch_statistics import counted, masked_mean
from jaxrl_llm.objectives.groups import (
    Groups, find_groups, group_count, group_logmeanexp, group_mean, group_sum, rollout_mean, rollout_sum, rollout_to_tokens,
    rollout_value,
)  # fmt: skip
from jaxrl_llm.objectives.implicit_rewards import REFERENCE_RATIO, rollout_reward
from jaxrl_llm.objectives.ratios import likelihood, token_ratio
from jaxrl_llm.types import Batch, Scores

LIKELIHOOD = likelihood()


@composable(annotations=("score",), coupled=True)
def contrastive_policy_gradient(scores: Scores, batch: Batch, *, beta: float = 0.1, evidence: Composable = REFERENCE_RATIO):
    """Half the mean over the pairs i < j of a group of -(r_i - r_j) (l_i - l_j) + `beta` / 2 (l_i - l_j)^2.

    r is `extras["score"]` and l the sum over actions of `evidence`. But for a constant, the term of a pair is the squared error
    ((r_i - r_j) - `beta` (l_i - l_j))^2 / (2 `beta`), least at the optimum of the reward with a KL penalty `beta`, whoever has
    sampled. Where l is 0 the gradient is that of REINFORCE with leave-one-out baselines. A group of one contributes 0.

    Source: CoPG, https://arxiv.org/abs/2406.19185; over groups of k as in Command A, https://arxiv.org/abs/2504.00698. GVPO,
      https://arxiv.org/abs/2504.19599, and REBEL, https://arxiv.org/abs/2404.16767, have the same gradient up to a factor.
    """
    groups = find_groups(batch)
    everyone = groups.counted
    score = _deviation(_given(batch, "score", groups), groups)
    reward = _deviation(rollout_reward(scores, batch, groups.rollout, evidence=evidence), groups)
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
    reward = rollout_reward(scores, batch, groups.rollout, evidence=evidence)
    return rollout_to_tokens(jnp.square(beta * reward - advantage), groups), {}


@composable
def brevity_weight(batch: Batch, groups: Groups, *, temperature: float = 0.1, max_length: int = 8192):
    """exp(-length / (`max_length` `temperature`)) of each rollout, [S], length in actions.

    It is proportional to exp(reward / `temperature`) for a reward of 1 - length / `max_length`.

    Raises ValueError: `temperature` is not above 0, or `max_length` not at least 1.
    Source: DRPO, https://arxiv.org/abs/2510.04474
    """
    if temperature <= 0 or max_length < 1:
        raise ValueError(f"temperature={temperature}, max_length={max_length}: they must be above 0, and at least 1 token")
    return jnp.exp(-groups.length / (max_length * temperature))


@composable(annotations=("correct",), coupled=True)
def discriminative(
    scores: Scores, batch: Batch, *, evidence: Composable = LIKELIHOOD, temperature: float = 10.0,
    weighting: Composable | None = None,
):  # fmt: skip
    """-sum over correct i of w_i [s_i - tau log mean over wrong j of exp(s_j / tau)] of each group, tau = `temperature`.

    s is the mean over the actions of a rollout of `evidence`, and w sums to 1. Groups that are all correct or all wrong
    contribute 0.

    Args:
      evidence: log-probabilities, or `probability_ratio()`.
      temperature: tau; the lower, the more the likeliest wrong rollout counts.
      weighting: function `(batch, groups) -> [S]` that the w of correct rollouts are proportional to; equal by default.

    Raises ValueError: `temperature` is not above 0.
    Source: DisCO, https://arxiv.org/abs/2505.12366; DRPO for `weighting`, https://arxiv.org/abs/2510.04474
    """
    require(temperature > 0, "temperature", temperature, "above 0")
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


@composable(annotations=logp_name, coupled=True)
def squared_hinge_kl(scores: Scores, batch: Batch, *, coefficient: float = 1e3, bound: float = 1e-4, against: str = "behavior"):
    """`coefficient` / 2 max(0, KL - `bound`)^2, where KL (nats) is the mean over all actions of log pi_old - log pi.

    It is one number for the whole batch, whatever the weights sum to.

    Source: DisCO, https://arxiv.org/abs/2505.12366
    """
    divergence = -masked_mean(token_ratio.function(scores, batch, against=against), counted(batch))
    value = 0.5 * coefficient * jnp.square(jax.nn.relu(divergence - bound))
    share = safe_divide(value, masked(batch.weight, batch.mask).sum())
    return jnp.broadcast_to(share, batch.mask.shape), {"constrained_kl": divergence}


@composable(annotations=("correct",), coupled=True)
def group_preference(
    scores: Scores, batch: Batch, *, beta: float = 0.1, variance: float = 1.0, evidence: Composable = REFERENCE_RATIO
):
    """-log s(`beta` (mean of l over correct - mean over wrong)) + `variance` (variance of l over correct) of each group.

    l is the sum over the actions of a rollout of `evidence`. Groups that are all correct or all wrong contribute 0.

    Source: GEPO, https://arxiv.org/abs/2505.12723
    """
    groups = find_groups(batch)
    correct, wrong, mixed = _classes(batch, groups)
    reward = rollout_reward(scores, batch, groups.rollout, evidence=evidence)
    center = group_mean(reward, correct, groups)
    spread = group_mean(jnp.square(reward - center), correct, groups)
    loss = jax.nn.softplus(beta * (group_mean(reward, wrong, groups) - center)) + variance * spread
    return rollout_to_tokens(masked(loss, mixed), groups), {}


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


@composable(annotations=("behavior_logp",), coupled=True)
def truncated_policy(scores: Scores, batch: Batch):
    """-A (log pi(y) - log P(V)) of each rollout y: REINFORCE of the policy cut to the set V of feasible answers.

    P(V), the probability of the set for the prompt, is estimated up to a constant by the rollouts z of the group that have a
    weight: the mean of pi(z) / mu(z), where mu sampled them. On policy its gradient is the mean of theirs, so that a constant
    in A has no influence. Log-ratios of whole answers are kept within +-20 nats. Infeasible rollouts have to be without weight.

    Source: TabNAS, https://arxiv.org/abs/2204.07615
    """
    groups = find_groups(batch)
    advantage = rollout_mean(batch.advantage, batch.mask, groups.rollout)
    logp = rollout_sum(without_infinities(masked(scores.logp, batch.mask)), batch.mask, groups.rollout)
    moved = rollout_sum(token_ratio.function(scores, batch), batch.mask, groups.rollout)
    feasible = group_logmeanexp(jnp.clip(moved, -MAX_LOG_RATIO, MAX_LOG_RATIO), groups.counted, groups)
    return rollout_to_tokens(-advantage * (logp - feasible), groups), {}


@composable(annotations=("preference", "revises"), coupled=True)
def self_improving(
    scores: Scores, batch: Batch, *, alpha: float = 0.5, beta: float = 0.1, evidence: Composable = REFERENCE_RATIO
):
    """(1 - `alpha`) times a squared error of the generator plus `alpha` times those of the reviser, of each pair of answers.

    For a preferred answer w and another one l a group has six rollouts: w and l behind the prompt, and w and l behind a
    prompt that shows w or l and asks for a better answer. `extras["preference"]` says which answer a rollout gives (1 for w,
    -1 for l) and `extras["revises"]` which its prompt shows (0 for none); both are equal along a rollout. With g(a) the
    sum of `evidence` of the answer a alone and d(a|b) that of a as a revision of b, the errors are

        (1 - beta [d(w|l) - d(l|w) + g(w) - g(l)])^2 for the generator,
        (1/2 - beta [d(w|l) - d(l|l)])^2 + (1/2 - beta [d(w|w) - d(l|w)])^2 for the reviser.

    A group counts by the sum of its weights; one that does not have exactly one rollout of each of the six contributes 0.

    Source: SRPO, https://arxiv.org/abs/2406.01660
    """
    groups = find_groups(batch)
    reward = rollout_reward(scores, batch, groups.rollout, evidence=evidence)
    marks = (batch.extras[name] for name in ("preference", "revises"))
    answer, shown = (jnp.sign(rollout_mean(mark, batch.mask, groups.rollout)) for mark in marks)
    win, lose = ((answer == side).astype(jnp.float32) for side in (1, -1))
    alone, of_win, of_lose = ((shown == side).astype(jnp.float32) for side in (0, 1, -1))

    def gap(condition):
        return group_mean(reward, win * condition, groups) - group_mean(reward, lose * condition, groups)

    crossed = group_mean(reward, win * of_lose, groups) - group_mean(reward, lose * of_win, groups)
    generator = jnp.square(1.0 - beta * (crossed + gap(alone)))
    reviser = jnp.square(0.5 - beta * gap(of_lose)) + jnp.square(0.5 - beta * gap(of_win))
    counts = [group_count(side * condition, groups) for side in (win, lose) for condition in (alone, of_win, of_lose)]
    complete = (jnp.stack(counts) == 1).all(axis=0).astype(jnp.float32)
    ahead = masked(gap(alone), complete)
    accuracy = masked_mean(0.5 * (jnp.sign(ahead) + 1.0), complete)
    metrics = {"pair_accuracy": accuracy, "pair_margin": safe_divide(ahead.sum(), complete.sum())}
    return rollout_to_tokens(masked((1.0 - alpha) * generator + alpha * reviser, complete), groups), metrics
