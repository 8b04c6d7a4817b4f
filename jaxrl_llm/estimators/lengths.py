"""Rewards for the length of an answer, in actions of its row (tokens).

Each changes one reward component, `component`, which says how right the answer is: right where it is above `threshold`.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import require
from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.pools import group_bounds, group_mean, group_rank, group_sum, group_variance, one_each
from jaxrl_llm.estimators.scores import component_of, with_component
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts


@stateless
def length_penalty(rollouts: Rollouts, *, coefficient: float = 1e-3, component: int = 0) -> Rollouts:
    """Takes `coefficient` off the reward for each token of the answer."""
    value, _ = component_of(rollouts, component)
    return with_component(rollouts, component, value - coefficient * rollouts.mask.sum(axis=1))


@stateless
def relative_length_reward(rollouts: Rollouts, *, weight: float = 1.0, threshold: float = 0.5, component: int = 0) -> Rollouts:
    """Adds `weight` * (0.5 - (l - l_min) / (l_max - l_min)), from the shortest and longest answer of the group.

    Wrong answers get it only where it is negative. Where all are of one length, nothing is added.

    Source: Kimi k1.5, section 2.3.3, https://arxiv.org/abs/2501.12599
    """
    value, present = component_of(rollouts, component)
    length = rollouts.mask.sum(axis=1)
    low, high = group_bounds(length, present, rollouts.group)
    differ = high > low
    bonus = 0.5 - safe_divide(length - jnp.where(differ, low, 0.0), jnp.where(differ, high - low, 0.0))
    bonus = jnp.where(value > threshold, bonus, jnp.minimum(bonus, 0.0))
    return with_component(rollouts, component, value + weight * masked(bonus, differ))


@stateless
def shortest_correct_penalty(
    rollouts: Rollouts, *, coefficient: float = 1e-3, threshold: float = 0.5, component: int = 0
) -> Rollouts:
    """Takes `coefficient` * |l - l*| off the reward; l* is the length of the shortest right answer of the group.

    Without any right answer, l* is the mean length.

    Source: ShorterBetter, https://arxiv.org/abs/2504.21370
    """
    value, present = component_of(rollouts, component)
    length = rollouts.mask.sum(axis=1)
    shortest, _ = group_bounds(length, present * (value > threshold), rollouts.group)
    mean = group_mean(length, present, rollouts.group)
    best = jnp.where(jnp.isfinite(shortest), shortest, mean)
    return with_component(rollouts, component, value - coefficient * jnp.abs(length - best))


@stateless
def cosine_length_reward(
    rollouts: Rollouts,
    *,
    max_length: int,
    right: tuple[float, float] = (1.0, 0.5),
    wrong: tuple[float, float] = (0.0, -0.5),
    threshold: float = 0.5,
    component: int = 0,
) -> Rollouts:
    """Replaces the reward by one that goes along half a cosine from length 0 to `max_length`, and stays there beyond.

    Args:
      rollouts: N rows.
      max_length: in tokens.
      right: the reward of right answers at length 0 and at `max_length`.
      wrong: that of wrong answers; by default they are punished for their length, as the authors' program does when it is run.
      threshold: rewards above it are right.
      component: the reward component that is replaced.

    Raises:
      ValueError: `max_length` is below 1.

    Source: Open-RS, https://arxiv.org/abs/2503.16219; the shape is that of https://arxiv.org/abs/2502.03373
    """
    require(max_length >= 1, "max_length", max_length, "at least 1 token")
    value, _ = component_of(rollouts, component)
    way = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(rollouts.mask.sum(axis=1) / max_length, 1.0)))
    ends = [jnp.where(value > threshold, of_right, of_wrong) for of_right, of_wrong in zip(right, wrong, strict=True)]
    return with_component(rollouts, component, ends[1] + (ends[0] - ends[1]) * way)


@stateless
def efficient_length_reward(
    rollouts: Rollouts, *, share: float = 0.2, strength: float = 0.6, threshold: float = 0.5, component: int = 0
) -> Rollouts:
    """Rewards short right answers, only in the groups of the step that have the most of them.

    In the best `share` of the groups by accuracy, a right answer gets 1 - strength * sigmoid((l - mean) / std), with mean and
    population's deviation of the lengths of the right answers of its group; in all others it gets 1. Wrong answers get 0.
    Groups that tie with the last of the best are among them.

    Raises:
      ValueError: a share that is not from 0 to 1.

    Source: GRPO-lambda, https://arxiv.org/abs/2505.18086
    """
    require(0 <= share <= 1, "share", share, "from 0 to 1")
    value, present = component_of(rollouts, component)
    group, length = rollouts.group, rollouts.mask.sum(axis=1)
    right = present * (value > threshold)
    accuracy = group_mean(right, present, group)
    counted = one_each(present, group)
    better = group_rank(-accuracy, counted, jnp.zeros_like(group))
    among_best = group_sum(counted * (better < jnp.ceil(share * counted.sum())), group) > 0
    longer = safe_divide(length - group_mean(length, right, group), jnp.sqrt(group_variance(length, right, group)))
    reward = jnp.where(among_best, 1.0 - strength * jax.nn.sigmoid(longer), 1.0)
    return with_component(rollouts, component, masked(reward, right))
