"""Losses on whole rankings of the rollouts of a group, by their scores."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.numerics import safe_divide
from jaxrl_llm.objectives.groups import Groups, find_groups, group_sum, rollout_to_tokens, rollout_value
from jaxrl_llm.objectives.implicit_rewards import REFERENCE_RATIO, rollout_reward
from jaxrl_llm.objectives.ratios import token_ratio
from jaxrl_llm.types import Batch, Scores

BEHAVIOR_RATIO = token_ratio()
LARGEST_SCORE = 30.0


def group_members(groups: Groups, members: int):
    """Slots of the rollouts of each rollout's group, [S, `members`], and 1 where there is one that counts, float likewise.

    A group of more than `members` has none.
    """
    slots = groups.group.size
    key = jnp.where(groups.counted > 0, groups.group, slots)
    order = jnp.argsort(key, stable=True)
    size = jax.ops.segment_sum(groups.counted.astype(jnp.int32), groups.group, slots)
    place = (jnp.cumsum(size) - size)[groups.group, None] + jnp.arange(members)
    there = (jnp.arange(members) < size[groups.group, None]) & (size[groups.group, None] <= members)
    return order[jnp.minimum(place, slots - 1)], there * groups.counted[:, None]


def pairwise(scores: Scores, batch: Batch, evidence: Composable, members: int):
    """Rewards, scores and slots of all rollouts of each rollout's group, beside its own: what rankings are made of.

    The metric "ranking_left_out" is the share of the rollouts that have no part, as their groups are too large.
    """
    groups = find_groups(batch)
    reward = rollout_reward(scores, batch, groups.rollout, evidence=evidence)
    score = rollout_value(batch.extras["score"], batch.mask, groups.rollout)
    slot, there = group_members(groups, members)
    metrics = {"ranking_left_out": safe_divide(groups.counted.sum() - there.any(axis=1).sum(), groups.counted.sum())}
    return groups, reward, score, slot, there, metrics


@composable(annotations=("score",), coupled=True)
def plackett_luce(
    scores: Scores, batch: Batch, *, beta: float = 0.1, evidence: Composable = REFERENCE_RATIO, members: int = 16
):
    """-sum over i of log [exp(`beta` l_i) / sum of exp(`beta` l_j) over j = i and those with r_j < r_i] of each group.

    r is `extras["score"]` and l the sum over the actions of a rollout of `evidence`. It is the negative log-likelihood of the
    ranking; of rollouts with equal scores nobody says which comes first, and each competes with those below alone.

    Source: DPO, https://arxiv.org/abs/2305.18290, appendix A.3
    """
    groups, reward, score, slot, there, metrics = pairwise(scores, batch, evidence, members)
    below = there * (score[slot] < score[:, None]) > 0
    gap = jnp.where(below, beta * (reward[slot] - reward[:, None]), -jnp.inf)
    loss = jax.nn.logsumexp(jnp.pad(gap, ((0, 0), (0, 1))), axis=1)
    return rollout_to_tokens(group_sum(loss, groups.counted, groups), groups), metrics


@composable(annotations=("score",), coupled=True)
def pairwise_ranking(
    scores: Scores, batch: Batch, *, beta: float = 0.1, evidence: Composable = REFERENCE_RATIO, gains: bool = True,
    members: int = 16,
):  # fmt: skip
    """-sum over i, j with r_i > r_j of d_ij log s(`beta` (l_i - l_j)) of each group.

    r is `extras["score"]` and l the sum over the actions of a rollout of `evidence`. With `gains`, d_ij is
    |2^r_i - 2^r_j| |1 / log(1 + t_i) - 1 / log(1 + t_j)|, t being the rank by l, without gradient: what the swap of both would
    change in the discounted cumulative gain. (Equal l share the best of their ranks; scores beyond +-30 count as that.)
    Otherwise d_ij is 1 / (number of such pairs of the group).

    Args:
      gains: weigh pairs by gains, as LambdaLoss does.

    Source: LiPO, https://arxiv.org/abs/2402.01878
    """
    groups, reward, score, slot, there, metrics = pairwise(scores, batch, evidence, members)
    above = there * (score[:, None] > score[slot])
    cost = jax.nn.softplus(-beta * (reward[:, None] - reward[slot]))
    if gains:
        rank = 1.0 + (there * (reward[slot] > reward[:, None])).sum(axis=1)
        gain, discount = jnp.exp2(jnp.clip(score, -LARGEST_SCORE, LARGEST_SCORE)), 1.0 / jnp.log1p(rank)
        weight = jnp.abs(gain[:, None] - gain[slot]) * jnp.abs(discount[:, None] - discount[slot])
    else:
        weight = safe_divide(1.0, group_sum(above.sum(axis=1), groups.counted, groups))[:, None]
    return rollout_to_tokens(group_sum((above * weight * cost).sum(axis=1), groups.counted, groups), groups), metrics


@composable(annotations=("score",), coupled=True)
def pairwise_clip(scores: Scores, batch: Batch, *, clip: float = 0.2, evidence: Composable = BEHAVIOR_RATIO, members: int = 16):
    """Mean over the pairs i < j of a group of -min(D q, D clip(q, -`clip`, `clip`)), D = (r_i - r_j) / 2, q = l_i - l_j.

    r is `extras["score"]` and l the sum over the actions of a rollout of `evidence`. Where l is 0 the gradient is that of
    REINFORCE with leave-one-out baselines.

    Args:
      clip: of the difference of two log-ratios (nats).

    Source: P3O, https://arxiv.org/abs/2310.00212, its second variant, which clips a pair as a whole
    """
    groups, reward, score, slot, there, metrics = pairwise(scores, batch, evidence, members)
    half, gap = 0.5 * (score[:, None] - score[slot]), reward[:, None] - reward[slot]
    surrogate = jnp.minimum(half * gap, half * jnp.clip(gap, -clip, clip))
    count = there.sum(axis=1)
    mean = safe_divide((there * surrogate).sum(axis=1), count * (count - 1.0))
    return rollout_to_tokens(-group_sum(mean, groups.counted, groups), groups), metrics
