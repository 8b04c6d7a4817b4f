"""Advantages from comparing the answers to one prompt."""

from __future__ import annotations

import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.scores import group_mean, group_range, group_sum, row_scores, set_row_advantage
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts

BASELINES = ("mean", "leave_one_out", "none")
SCALES = ("std", "batch_std", "none")


@stateless
def group_advantage(
    rollouts: Rollouts,
    *,
    baseline: str = "mean",
    scale: str = "std",
    degrees_of_freedom: int = 0,
    epsilon: float = 1e-6,
    reward_weights: tuple[float, ...] | None = None,
) -> Rollouts:
    """Advantage of a row = (its score - baseline of its group) / (scale + epsilon), given to each of its actions.

    Degenerate groups: where all scores are equal, and in groups of one, the advantage is exactly 0 (with
    `baseline="none"`, the scaled score itself). Rows without any reward leave statistics and training.

    Args:
      rollouts: N rows; groups may differ in size.
      baseline: "mean" of the group, "leave_one_out" (mean of the others), or "none".
      scale: "std" of the group, "batch_std" of all scores of the step, or "none".
      degrees_of_freedom: 0 for the population, 1 for Bessel's standard deviation; without effect for scale "none".
      epsilon: added to the standard deviation.
      reward_weights: factor of each reward component; 1 by default.

    Raises:
      ValueError: an unknown baseline or scale.

    Source: GRPO, https://arxiv.org/abs/2402.03300; RLOO, https://arxiv.org/abs/2402.14740;
      Dr. GRPO (scale "none"), https://arxiv.org/abs/2503.20783.
    """
    if baseline not in BASELINES:
        raise ValueError(f"baseline is {baseline!r}; it must be one of {BASELINES}")
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}; it must be one of {SCALES}")
    score, present = row_scores(rollouts, reward_weights)
    group = rollouts.group
    advantage = score - _baseline(baseline, score, present, group)
    if scale != "none":
        pool = group if scale == "std" else jnp.zeros_like(group)
        advantage /= _deviation(score, present, pool, degrees_of_freedom) + epsilon
    if baseline != "none":
        advantage = jnp.where(group_range(score, present, group) > 0, advantage, 0.0)
    return set_row_advantage(rollouts, advantage, present)


def _baseline(kind: str, score, present, group):
    if kind == "none":
        return jnp.zeros_like(score)
    if kind == "mean":
        return group_mean(score, present, group)
    others = group_sum(present, group) - present
    return safe_divide(group_sum(masked(score, present), group) - masked(score, present), others)


def _deviation(score, present, group, degrees_of_freedom: int):
    centred = masked(score - group_mean(score, present, group), present)
    freedom = jnp.maximum(group_sum(present, group) - degrees_of_freedom, 0.0)
    return jnp.sqrt(safe_divide(group_sum(jnp.square(centred), group), freedom))
