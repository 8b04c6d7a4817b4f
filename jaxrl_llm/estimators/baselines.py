"""Baselines: what a row's score is compared with. Slots of `group_advantage`.

A baseline is a function `(score [N], present [N], rollouts) -> baseline [N]`, where `present` marks the rows that count. Those
relative to a pool of rows give a row of a uniform pool, or of a pool of its own, exactly its own score: its advantage is 0.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.estimators.pools import (
    group_mean,
    group_quantile,
    group_range,
    group_sum,
    pool_annotations,
    pool_of,
)
from jaxrl_llm.numerics import masked, safe_divide

# What a row that has nobody to be compared with may have for a baseline.
ALONE = ("own", "none")


@composable(annotations=pool_annotations)
def mean_baseline(score, present, rollouts, *, over: str = "group", virtual: tuple[float, ...] = ()):
    """Mean score of the present rows of the pool.

    Args:
      over: the pool: "group", "batch", or the name of integers [N] in `rollouts.extras`: rows of the group that share it.
      virtual: scores of samples that nobody drew, added to each pool: with (1.0,), groups of wrong answers learn too.

    Source: GRPO, https://arxiv.org/abs/2402.03300; virtual samples: NGRPO, https://arxiv.org/abs/2509.18851
    """
    return group_mean(score, present, pool_of(rollouts, over), virtual)


@composable(annotations=pool_annotations)
def leave_one_out_baseline(score, present, rollouts, *, over: str = "group", alone: str = "own"):
    """Mean score of the other present rows of the pool.

    Args:
      over: the pool, as in `mean_baseline`.
      alone: the baseline of a row without others: "own", its own score, so that it learns nothing, or "none" (verl's "rloo";
        its "rloo_vectorized" is the first).

    Raises:
      ValueError: an unknown kind of baseline for rows alone.

    Source: RLOO, https://arxiv.org/abs/2402.14740
    """
    if alone not in ALONE:
        raise ValueError(f"alone is {alone!r}; it must be one of {ALONE}")
    pool = pool_of(rollouts, over)
    kept, others = masked(score, present), group_sum(present, pool) - present
    mean = safe_divide(group_sum(kept, pool) - kept, others)
    baseline = jnp.where(group_range(score, present, pool) > 0, mean, score)
    return baseline if alone == "own" else jnp.where(others > 0, baseline, 0.0)


@composable(annotations=pool_annotations)
def length_weighted_baseline(score, present, rollouts, *, over: str = "group"):
    """Mean score of the pool, each row weighted by its number of actions l: sum(l r) / sum(l).

    It is the baseline of least variance where squared gradients of log-probabilities grow like the length.

    Source: OPO, https://arxiv.org/abs/2505.23585
    """
    pool = pool_of(rollouts, over)
    length = rollouts.mask.sum(axis=1) * present
    mean = safe_divide(group_sum(masked(score, present) * length, pool), group_sum(length, pool))
    return jnp.where(group_range(score, present, pool) > 0, mean, score)


@composable(annotations=pool_annotations)
def median_baseline(score, present, rollouts, *, over: str = "group"):
    """Median score of the present rows of the pool; the mean of the middle two where their number is even."""
    return group_quantile(score, present, pool_of(rollouts, over), 0.5)


@composable
def constant_baseline(score, present, rollouts, *, value: float):
    """The same number for all rows. It is not relative to the group: rows of uniform groups learn too.

    On samples of another policy it decides how much right answers count against wrong ones.

    Args:
      value: the number.

    Source: TOPR, https://arxiv.org/abs/2503.14286
    """
    del present, rollouts
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
