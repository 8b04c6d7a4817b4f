"""Slots of `group_advantage`: baselines, what a row's score is compared with, and scales, what the difference is divided by.

A baseline is a function `(score [N], present [N], rollouts) -> baseline [N]`, where `present` marks the rows that count. Those
relative to a pool of rows give a row of a uniform pool, or of a pool of its own, exactly its own score: its advantage is 0.
With `alone="none"` a row in a pool of its own has a baseline of 0 instead, as in verl: it keeps its score.

A scale is a function `(score [N], present [N], rollouts) -> divisor [N]`, epsilon included; a divisor of 0 gives advantage 0.
"""

import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.estimators import pools
from jaxrl_llm.estimators.pools import alone_in, group_mean, group_quantile, group_range, group_sum, pool_annotations, pool_of
from jaxrl_llm.numerics import masked, safe_divide


def _unless_alone(baseline, present, pool, alone: str):
    """The baseline, or with `alone="none"` 0 where a row has no others."""
    lonely = alone_in(present, pool, alone)
    return baseline if lonely is None else jnp.where(lonely, 0.0, baseline)


@composable(annotations=pool_annotations)
def mean_baseline(score, present, rollouts, *, over: str = "group", virtual: tuple[float, ...] = (), alone: str = "own"):
    """Mean score of the present rows of the pool.

    Args:
      virtual: scores of samples that nobody drew, added to each pool: with (1.0,), groups of wrong answers learn too.

    Raises ValueError: an unknown kind of baseline for rows alone, or "none" beside virtual samples, with which no row is alone.
    Source: GRPO, https://arxiv.org/abs/2402.03300; virtual samples: NGRPO, https://arxiv.org/abs/2509.18851
    """
    if virtual and alone == "none":
        raise ValueError(f"alone='none' with virtual={virtual}: no row is alone beside virtual samples; leave one of them out")
    pool = pool_of(rollouts, over)
    return _unless_alone(group_mean(score, present, pool, virtual), present, pool, alone)


@composable(annotations=pool_annotations)
def leave_one_out_baseline(score, present, rollouts, *, over: str = "group", alone: str = "own"):
    """Mean score of the other present rows of the pool.

    Raises ValueError: an unknown kind of baseline for rows alone.
    Source: RLOO, https://arxiv.org/abs/2402.14740; rows alone have "none" in verl's "rloo", "own" in its "rloo_vectorized"
    """
    pool = pool_of(rollouts, over)
    kept, others = masked(score, present), group_sum(present, pool) - present
    mean = safe_divide(group_sum(kept, pool) - kept, others)
    baseline = jnp.where(group_range(score, present, pool) > 0, mean, score)
    return _unless_alone(baseline, present, pool, alone)


@composable(annotations=pool_annotations)
def length_weighted_baseline(score, present, rollouts, *, over: str = "group", alone: str = "own"):
    """Mean score of the pool, each row weighted by its number of actions l: sum(l r) / sum(l).

    It is the baseline of least variance where squared gradients of log-probabilities grow like the length.

    Raises ValueError: an unknown kind of baseline for rows alone.
    Source: OPO, https://arxiv.org/abs/2505.23585
    """
    pool = pool_of(rollouts, over)
    length = rollouts.mask.sum(axis=1) * present
    mean = safe_divide(group_sum(masked(score, present) * length, pool), group_sum(length, pool))
    return _unless_alone(jnp.where(group_range(score, present, pool) > 0, mean, score), present, pool, alone)


@composable(annotations=pool_annotations)
def median_baseline(score, present, rollouts, *, over: str = "group", alone: str = "own"):
    """Median score of the present rows of the pool; the mean of the middle two where their number is even.

    Raises ValueError: an unknown kind of baseline for rows alone.
    """
    pool = pool_of(rollouts, over)
    return _unless_alone(group_quantile(score, present, pool, 0.5), present, pool, alone)


@composable
def constant_baseline(score, present, rollouts, *, value: float):
    """`value` for all rows. It is not relative to the group: rows of uniform groups learn too.

    On samples of another policy it decides how much right answers count against wrong ones.

    Source: TOPR, https://arxiv.org/abs/2503.14286
    """
    return jnp.full_like(score, value)


@composable(annotations=lambda options: (options["annotation"],))
def given_baseline(score, present, rollouts, *, annotation: str = "greedy_reward"):
    """A score [N] that somebody else has annotated, `rollouts.extras[annotation]`.

    "greedy_reward" is that of the greedy answer to the same prompt (ReMax), "anchor_reward" the mean one of answers that a
    fixed reference policy gave (PVPO). It is not relative to the group: rows of uniform groups learn too. A missing one (NaN)
    leaves the row its own score as baseline.

    Source: ReMax, https://arxiv.org/abs/2310.10505; PVPO, https://arxiv.org/abs/2508.21104
    """
    given = rollouts.extras[annotation]
    return jnp.where(jnp.isnan(given), score, given)


@composable(annotations=pool_annotations)
def std_scale(
    score, present, rollouts, *, over: str = "group", degrees_of_freedom: int = 0, epsilon: float = 1e-6,
    placement: str = "outside", virtual: tuple[float, ...] = (), others: bool = False, alone: str = "own",
):  # fmt: skip
    """Standard deviation of the scores of the pool.

    Args:
      degrees_of_freedom: 0 for the population, 1 for Bessel's standard deviation.
      placement: of epsilon: "outside" of the root, "inside" it, as a "floor" of the deviation, or outside "where_positive",
        with no division elsewhere.
      virtual: as in `mean_baseline`.
      others: whether it is that of the other rows of the pool, as beside a leave-one-out baseline in NeMo-RL.

    Raises ValueError: an unknown placement or word for rows alone, or virtual samples beside `others` or `alone="none"`.
    Source: GRPO, https://arxiv.org/abs/2402.03300; over the batch: Lite-PPO, https://arxiv.org/abs/2508.08221
    """
    if virtual and (others or alone == "none"):
        raise ValueError(
            f"virtual={virtual} with others={others}, alone={alone!r}: virtual samples are in the whole pool; leave one out"
        )
    pool = pool_of(rollouts, over)
    if others:
        variance = pools.others_variance(score, present, pool, degrees_of_freedom)
    else:
        variance = pools.group_variance(score, present, pool, degrees_of_freedom, virtual)
    lonely = alone_in(present, pool, alone)
    divided = pools.divisor(variance, epsilon, placement)
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
