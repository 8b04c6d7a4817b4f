"""Scales: what a difference from the baseline is divided by. Slots of `group_advantage`.

A scale is a function `(score [N], present [N], rollouts) -> divisor [N]`, epsilon included; a divisor of 0 gives advantage 0.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.estimators.pools import (
    divisor,
    group_mean,
    group_quantile,
    group_variance,
    pool_annotations,
    pool_of,
)


@composable(annotations=pool_annotations)
def std_scale(
    score,
    present,
    rollouts,
    *,
    over: str = "group",
    degrees_of_freedom: int = 0,
    epsilon: float = 1e-6,
    placement: str = "outside",
    virtual: tuple[float, ...] = (),
):
    """Standard deviation of the scores of the pool.

    Args:
      over: the pool: "group", "batch", or the name of integers [N] in `rollouts.extras`: rows of the group that share it.
      degrees_of_freedom: 0 for the population, 1 for Bessel's standard deviation.
      epsilon: keeps the division finite.
      placement: of epsilon: "outside" of the root, "inside" it, as a "floor" of the deviation, or outside "where_positive",
        with no division elsewhere.
      virtual: as in `mean_baseline`.

    Raises:
      ValueError: an unknown placement.

    Source: GRPO, https://arxiv.org/abs/2402.03300; over the batch: Lite-PPO, https://arxiv.org/abs/2508.08221
    """
    variance = group_variance(score, present, pool_of(rollouts, over), degrees_of_freedom, virtual)
    return divisor(variance, epsilon, placement)


@composable(annotations=pool_annotations)
def mean_scale(score, present, rollouts, *, over: str = "group", epsilon: float = 1e-6):
    """Mean score of the pool + epsilon, for scores that are not negative: rare successes count most.

    Source: MaxRL, https://arxiv.org/abs/2602.02710
    """
    return group_mean(score, present, pool_of(rollouts, over)) + epsilon


@composable(annotations=pool_annotations)
def mad_scale(score, present, rollouts, *, over: str = "group", epsilon: float = 1e-6, factor: float = 1.0):
    """`factor` * median(|score - median|) of the pool + epsilon; 1.4826 makes it the deviation of a normal distribution."""
    pool = pool_of(rollouts, over)
    distance = jnp.abs(score - group_quantile(score, present, pool, 0.5))
    return factor * group_quantile(distance, present, pool, 0.5) + epsilon
