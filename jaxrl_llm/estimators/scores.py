"""From reward components to one score a row, and reductions over ragged groups."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts


def row_scores(rollouts: Rollouts, reward_weights: tuple[float, ...] | None = None):
    """Total reward of each row and whether the row takes part.

    A missing component (NaN) counts as 0; a row without any component is missing as a whole.

    Args:
      rollouts: N rows.
      reward_weights: one factor for each of the K components; 1 by default.

    Returns:
      score [N] (weighted sum of components plus the masked sum of token rewards) and present [N] (1 where the row is
      valid and has at least one component).

    Raises:
      ValueError: the number of weights is not K.
    """
    rewards = rollouts.rewards.astype(jnp.float32)
    components = rewards.shape[1]
    if reward_weights is not None and len(reward_weights) != components:
        raise ValueError(f"reward_weights has {len(reward_weights)} entries; the rollouts have {components} reward components")
    weights = jnp.ones(components) if reward_weights is None else jnp.asarray(reward_weights, jnp.float32)
    known = ~jnp.isnan(rewards)
    score = jnp.sum(jnp.where(known, rewards, 0.0) * weights, axis=1)
    if rollouts.token_rewards is not None:
        score += jnp.sum(masked(rollouts.token_rewards, rollouts.mask), axis=1)
    present = (rollouts.valid > 0) & known.any(axis=1)
    return score, present.astype(jnp.float32)


def group_sum(values, group):
    """Sum of `values` [N] over the rows of each row's own group, [N]."""
    return jax.ops.segment_sum(values, group, num_segments=values.shape[0])[group]


def group_mean(values, present, group):
    """Mean of `values` [N] over the present rows of each row's own group, [N]; 0 where there are none."""
    return safe_divide(group_sum(masked(values, present), group), group_sum(present, group))


def group_range(values, present, group):
    """Largest minus smallest of the present `values` [N] of each row's own group, [N]; 0 where there are none."""
    rows = values.shape[0]
    high = jax.ops.segment_max(jnp.where(present > 0, values, -jnp.inf), group, num_segments=rows)[group]
    low = jax.ops.segment_min(jnp.where(present > 0, values, jnp.inf), group, num_segments=rows)[group]
    return jnp.where(high >= low, high - low, 0.0)


def set_row_advantage(rollouts: Rollouts, advantage, present) -> Rollouts:
    """Gives every action of a row the row's advantage [N]; rows that are not present leave the training."""
    per_token = masked(masked(advantage, present)[:, None], rollouts.mask)
    return rollouts.replace(advantage=per_token, valid=rollouts.valid * present)


def last_action(mask):
    """One-hot [N, T] of the last action of each row; all zero for a row without actions."""
    width = mask.shape[1]
    position = jnp.where(mask > 0, jnp.arange(width), -1).max(axis=1)
    return (jnp.arange(width) == position[:, None]).astype(jnp.float32)
