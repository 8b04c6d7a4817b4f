"""Advantages that look at the worst answers of a group."""

import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.pools import group_bounds, group_mean, group_rank, group_sum
from jaxrl_llm.estimators.scores import row_scores, set_row_advantage
from jaxrl_llm.types import Rollouts


@stateless
def cvar_advantage(
    rollouts: Rollouts, *, share: float = 0.5, level: float = 0.25, reward_weights: tuple[float, ...] | None = None
) -> Rollouts:
    """A = u - mean u of the group, u = (1 - `share`) r + `share` (q - max(q - r, 0) / `level`).

    The mean of u over the group is the mix (1 - `share`) mean + `share` CVaR of its scores: the conditional value at risk
    (expected shortfall) at the `level` is the mean of so large a share of the worst of them. q is their `level`-quantile, the
    smallest score that at least this share of the rows do not exceed, which is where the CVaR, a maximum over q, lies. Groups
    of one and groups whose scores are equal have advantage 0.

    Args:
      rollouts: N rows.
      share: lambda, from 0 (the mean alone) to 1 (the worst rows alone).
      level: alpha, above 0 and up to 1.
      reward_weights: factor of each reward component; 1 by default.

    Raises:
      ValueError: a share that is not from 0 to 1, or a level out of (0, 1].

    Source: expected conditional risk measures, https://arxiv.org/abs/2301.10932
    """
    if not 0 <= share <= 1 or not 0 < level <= 1:
        raise ValueError(f"share={share}, level={level}: the share must be from 0 to 1, the level above 0 and at most 1")
    score, present = row_scores(rollouts, reward_weights)
    group = rollouts.group
    members = group_sum(present, group)
    not_above = members - group_rank(-score, present, group)
    # Rounding shall not make 0.3 * 10 a little more than 3.
    quantile, _ = group_bounds(score, present * (not_above >= level * members - 1e-4), group)
    quantile = jnp.where(jnp.isfinite(quantile), quantile, 0.0)
    utility = (1.0 - share) * score + share * (quantile - jnp.maximum(quantile - score, 0.0) / level)
    return set_row_advantage(rollouts, utility - group_mean(utility, present, group), present)
