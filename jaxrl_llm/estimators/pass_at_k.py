"""Advantages for the best of several answers: at least one of k shall be right."""

import jax.numpy as jnp

from jaxrl_llm.compose import Composable, require
from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.pools import group_bounds, group_sum
from jaxrl_llm.estimators.scales import std_scale
from jaxrl_llm.estimators.scores import row_scores, set_row_advantage
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts

BESSEL = std_scale(degrees_of_freedom=1)


@stateless
def best_lead_advantage(
    rollouts: Rollouts, *, scale: Composable | None = BESSEL, reward_weights: tuple[float, ...] | None = None
) -> Rollouts:
    """The best row of a group gets its lead over the second, r_max - r_second, all others get 0.

    Where several are best, and in groups of one, there is no lead. What the group wins with a row is what it would lose
    without it.

    Args:
      rollouts: N rows; groups may differ in size.
      scale: what the lead is divided by, as in `group_advantage`; None for nothing.
      reward_weights: factor of each reward component; 1 by default.

    Source: https://arxiv.org/abs/2503.19595; "grpo_passk" of verl
    """
    score, present = row_scores(rollouts, reward_weights)
    best = group_bounds(score, present, rollouts.group)[1]
    leading = present * (score == best)
    second = group_bounds(score, present * (1 - leading), rollouts.group)[1]
    alone = (group_sum(leading, rollouts.group) == 1) & jnp.isfinite(second)
    advantage = jnp.where((leading > 0) & alone, score - jnp.where(alone, second, 0.0), 0.0)
    if scale is not None:
        advantage = safe_divide(advantage, scale(score, present, rollouts))
    return set_row_advantage(rollouts, advantage, present)


@stateless
def pass_at_k_advantage(
    rollouts: Rollouts, *, k: int = 2, threshold: float = 0.5, reward_weights: tuple[float, ...] | None = None
) -> Rollouts:
    """Mean advantage of a row over all sets of k rows of its group, whose reward is 1 where one of them is right.

    With n rows of which w are wrong and C(a, b) the binomial coefficient, the mean reward of a set is m = 1 - C(w, k) /
    C(n, k) and its deviation s = sqrt(m (1 - m)). Right rows get (1 - m) / s, wrong ones (1 - m - C(w - 1, k - 1) / C(n -
    1, k - 1)) / s. For k = 1 it is GRPO with the population's deviation. Groups with less than k rows, and those where s
    = 0, get 0.

    Args:
      rollouts: N rows; groups may differ in size.
      k: size of the sets.
      threshold: scores above it are right.
      reward_weights: factor of each reward component; 1 by default.

    Raises:
      ValueError: k is below 1.

    Source: https://arxiv.org/abs/2508.10751
    """
    require(k >= 1, "k", k, "at least 1")
    score, present = row_scores(rollouts, reward_weights)
    right = present * (score > threshold)
    count, wrong = group_sum(present, rollouts.group), group_sum(present - right, rollouts.group)
    none_right = _share_of_sets(wrong, count, k)
    deviation = jnp.sqrt(none_right * (1.0 - none_right))
    others = jnp.where(right > 0, 0.0, _share_of_sets(wrong - 1, count - 1, k - 1))
    # Numbers of rows tell whether the deviation is 0; it is a product of rounded shares.
    enough = (count >= k) & (wrong >= k) & (wrong < count)
    advantage = masked(safe_divide(none_right - others, deviation), enough)
    return set_row_advantage(rollouts, advantage, present)


def _share_of_sets(part, whole, k: int):
    """C(part, k) / C(whole, k) as a product of k shares."""
    share = jnp.ones_like(part)
    for taken in range(k):
        share *= jnp.maximum(safe_divide(part - taken, whole - taken), 0.0)
    return share
