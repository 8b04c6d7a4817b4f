"""Scales: what a difference from the baseline is divided by. Slots of `group_advantage`.

A scale is a function `(score [N], present [N], rollouts) -> divisor [N]`, epsilon included; a divisor of 0 gives advantage 0.
"""

import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.estimators.pools import (
    alone_in,
    divisor,
    group_mean,
    group_quantile,
    group_variance,
    others_variance,
    pool_annotations,
    pool_of,
)
from jaxrl_llm.numerics import safe_divide


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
    others: bool = False,
    alone: str = "own",
):
    """Standard deviation of the scores of the pool.

    Args:
      over: the pool: "group", "batch", or the name of integers [N] in `rollouts.extras`: rows of the group that share it.
      degrees_of_freedom: 0 for the population, 1 for Bessel's standard deviation.
      epsilon: keeps the division finite.
      placement: of epsilon: "outside" of the root, "inside" it, as a "floor" of the deviation, or outside "where_positive",
        with no division elsewhere.
      virtual: as in `mean_baseline`.
      others: whether it is that of the other rows of the pool, as beside a leave-one-out baseline in NeMo-RL.
      alone: for a row without others "own", the deviation of one number, or "none": it is divided by 1 (verl).

    Raises:
      ValueError: an unknown placement or word for rows alone, or virtual samples beside `others` or `alone="none"`.

    Source: GRPO, https://arxiv.org/abs/2402.03300; over the batch: Lite-PPO, https://arxiv.org/abs/2508.08221
    """
    if virtual and (others or alone == "none"):
        raise ValueError(
            f"virtual={virtual} with others={others}, alone={alone!r}: virtual samples are in the whole pool; leave one out"
        )
    pool = pool_of(rollouts, over)
    if others:
        variance = others_variance(score, present, pool, degrees_of_freedom)
    else:
        variance = group_variance(score, present, pool, degrees_of_freedom, virtual)
    lonely = alone_in(present, pool, alone)
    divided = divisor(variance, epsilon, placement)
    return divided if lonely is None else jnp.where(lonely, 1.0, divided)


@composable(annotations=pool_annotations)
def mean_scale(score, present, rollouts, *, over: str = "group", epsilon: float = 1e-6):
    """Mean score of the pool + epsilon, for scores that are not negative: rare successes count most.

    Source: MaxRL, https://arxiv.org/abs/2602.02710
    """
    return group_mean(score, present, pool_of(rollouts, over)) + epsilon


@composable
def constant_scale(score, present, rollouts, *, value: float):
    """`value`, whatever the scores."""
    return jnp.full_like(score, value)


@composable
def nonzero_share_scale(score, present, rollouts, *, factor: float = 1.0):
    """`factor` times the share of the present rows of the step whose score is not 0; of one row where there is none.

    Source: "gpg" of verl, for https://arxiv.org/abs/2504.02546
    """
    nonzero = jnp.maximum((present * (score != 0)).sum(), 1.0)
    return jnp.full_like(score, factor) * safe_divide(nonzero, present.sum())


@composable(annotations=pool_annotations)
def mad_scale(score, present, rollouts, *, over: str = "group", epsilon: float = 1e-6, factor: float = 1.0):
    """`factor` * median(|score - median|) of the pool + epsilon; 1.4826 makes it the deviation of a normal distribution."""
    pool = pool_of(rollouts, over)
    distance = jnp.abs(score - group_quantile(score, present, pool, 0.5))
    return factor * group_quantile(distance, present, pool, 0.5) + epsilon
