"""What objectives want to know of whole rows: packing spreads it over their tokens."""

import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.pools import group_mean, group_range
from jaxrl_llm.estimators.scores import row_scores
from jaxrl_llm.estimators.selection import extremes
from jaxrl_llm.numerics import masked
from jaxrl_llm.types import Rollouts


@stateless(provides=("score", "correct", "accuracy"))
def row_statistics(rollouts: Rollouts, *, threshold: float = 0.5, reward_weights: tuple[float, ...] | None = None) -> Rollouts:
    """Adds the total reward of each row, whether it is correct, and the share of correct rows in its group.

    `extras["score"]` [N]; `extras["correct"]` [N], 1 where the score is above `threshold`; `extras["accuracy"]` [N], the
    mean of it over the present rows of the group. All are 0 for rows without any reward, except for the accuracy of their
    group.

    Args:
      rollouts: N rows.
      threshold: scores above it are correct.
      reward_weights: factor of each reward component; 1 by default.
    """
    score, present = row_scores(rollouts, reward_weights)
    score = masked(score, present)
    correct = present * (score > threshold)
    accuracy = group_mean(correct, present, rollouts.group)
    return rollouts.replace(extras={**rollouts.extras, "score": score, "correct": correct, "accuracy": accuracy})


@stateless(provides=("preference",))
def best_and_worst(rollouts: Rollouts, *, reward_weights: tuple[float, ...] | None = None) -> Rollouts:
    """Makes a pair of each group: `extras["preference"]` [N] is 1 for its best row, -1 for its worst one, 0 elsewhere.

    Groups whose present rows all have one score give no pair. Of several best or worst rows, the best is the likeliest one and
    the worst the least likely under the policy that sampled, by sums of `behavior_logp`; rows that are alike in this too are
    told apart by their number, which only matters where they are the same text.

    Source: online DPO, https://arxiv.org/abs/2402.04792; best against worst: https://arxiv.org/abs/2404.03715
    """
    score, present = row_scores(rollouts, reward_weights)
    best, worst = extremes(rollouts, score, present)
    differ = group_range(score, present, rollouts.group) > 0
    preference = jnp.where(differ, 1.0 * best - worst, 0.0)
    return rollouts.replace(extras={**rollouts.extras, "preference": preference})
