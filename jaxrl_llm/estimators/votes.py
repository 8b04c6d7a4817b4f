"""Rewards without labels: what the answers of a group say of each other.

`extras["answer"]` int [N] is the class of the final answer, equal for equal answers, and -1 where there is none.
"""

import jax.numpy as jnp

from jaxrl_llm.compose import require
from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.pools import classes, group_bounds, group_sum
from jaxrl_llm.estimators.scores import component_of, row_scores, set_row_advantage, with_component
from jaxrl_llm.numerics import safe_divide
from jaxrl_llm.types import Rollouts


def _in_majority(answer, group, present):
    """Rows [N] with the answer that most rows of the group have; of several, that with the smallest number."""
    votes = present * (answer >= 0)
    count = group_sum(votes, classes(group, answer))
    most = group_bounds(count, votes, group)[1]
    chosen = group_bounds(answer, votes * (count == most), group)[0]
    return votes * (answer == chosen)


@stateless(annotations=("answer",))
def majority_reward(rollouts: Rollouts, *, component: int = 0) -> Rollouts:
    """Replaces the reward by 1 for the answer that most rows of the group give, and by 0 for all others.

    Of answers with as many votes, that with the smallest number is taken.

    Source: TTRL, https://arxiv.org/abs/2504.16084
    """
    _, present = component_of(rollouts, component)
    return with_component(rollouts, component, _in_majority(rollouts.extras["answer"], rollouts.group, present))


@stateless(annotations=("answer", "embedding"))
def novelty_reward(rollouts: Rollouts, *, component: int = 0) -> Rollouts:
    """Replaces the reward: the majority decides its sign, novelty of the reasoning its size.

    Novelty is 1 - (mean similarity to the others with the same verdict + largest similarity to any other row of the group) / 2,
    with similarity max(0, cosine of the embeddings), brought to u from 0 to 1 within the rows of the group with the same
    verdict (1 for a row alone, 1/2 where all are equal). Rows of the majority get (1 + u) / 2, others u / 2 - 1, rows
    without an answer -1; these are left out of all comparisons.

    Args:
      rollouts: with `extras["answer"]` int [N] and `extras["embedding"]` [N, E] of the reasoning.

    Source: EVOL-RL, https://arxiv.org/abs/2509.15194
    """
    answer, group = rollouts.extras["answer"], rollouts.group
    _, present = component_of(rollouts, component)
    votes, majority = present * (answer >= 0), _in_majority(answer, group, present)
    verdict = classes(group, majority.astype(jnp.int32))
    alike = _similarity(rollouts.extras["embedding"])
    others = (votes[:, None] * votes) * (1.0 - jnp.eye(votes.shape[0])) * (group[:, None] == group)
    same = others * (verdict[:, None] == verdict)
    mean = safe_divide((same * alike).sum(axis=1), same.sum(axis=1))
    novelty = 1.0 - 0.5 * (mean + (others * alike).max(axis=1))
    low, high = group_bounds(novelty, votes, verdict)
    wide = high - low > 1e-6
    share = jnp.where(wide, safe_divide(novelty - low, jnp.where(wide, high - low, 0.0)), 0.5)
    share = jnp.where(group_sum(votes, verdict) == 1, 1.0, share)
    reward = jnp.where(majority > 0, 0.5 + 0.5 * share, -1.0 + 0.5 * share)
    return with_component(rollouts, component, jnp.where(votes > 0, reward, -1.0))


def _similarity(embedding):
    """Cosines [N, N] of the rows of an array [N, E], not below 0; those with a row of zeros are 0."""
    size = jnp.sqrt(jnp.square(embedding).sum(axis=1, keepdims=True))
    unit = safe_divide(jnp.nan_to_num(embedding), jnp.nan_to_num(size))
    return jnp.maximum(jnp.einsum("ie,je->ij", unit, unit, precision="highest"), 0.0)


@stateless(annotations=("answer",))
def pseudo_label_advantage(
    rollouts: Rollouts, *, center: float = 1.0, width: float = 0.5, quorum: int = 2, offset: float = 1.0
) -> Rollouts:
    """Takes every answer of the group for the right one, with a weight by its frequency, and adds up the advantages.

    A_i = sum_j w_j (1[a_i = a_j] - f_j) / sqrt(f_j (1 - f_j)) over the different answers j of the group, with frequencies
    f_j among its n rows and w_j = g(f_j) / sum g, g(f) = exp(-(f - center)^2 / (2 width^2)). Where the most frequent
    answer has less than `quorum` votes, all rows get -`offset`. Rows without an answer are never right.

    Args:
      rollouts: with `extras["answer"]` int [N]; rewards are not read, but rows without any are left out.
      center: of the Gaussian g.
      width: its standard deviation.
      quorum: votes.
      offset: size of the penalty.

    Raises ValueError: a width that is not positive.
    Source: RESTRAIN, https://arxiv.org/abs/2510.02172
    """
    require(width > 0, "width", width, "positive")
    answer, group = rollouts.extras["answer"], rollouts.group
    _, present = row_scores(rollouts)
    votes = present * (answer >= 0)
    count = group_sum(votes, classes(group, answer))
    share = safe_divide(count, group_sum(present, group))
    # Sums over the different answers are sums over rows, each divided by the number of rows with its answer.
    bump = votes * jnp.exp(-0.5 * jnp.square((share - center) / width))
    weight = safe_divide(bump, group_sum(safe_divide(bump, count), group))
    unit = safe_divide(weight, jnp.sqrt(share * (1.0 - share)))
    below = group_sum(safe_divide(votes * unit * share, count), group)
    agreed = group_bounds(count, votes, group)[1] >= quorum
    return set_row_advantage(rollouts, jnp.where(agreed, votes * unit - below, -offset), present)
