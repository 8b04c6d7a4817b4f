"""Advantages from comparing the answers to one prompt."""

import jax.numpy as jnp

from jaxrl_llm.compose import Composable, require
from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.baselines import length_weighted_baseline, mean_baseline
from jaxrl_llm.estimators.pools import group_bounds, group_sum
from jaxrl_llm.estimators.scales import std_scale
from jaxrl_llm.estimators.scores import component_weights, row_scores, set_row_advantage
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts

MEAN, STD = mean_baseline(), std_scale()


@stateless
def group_advantage(
    rollouts: Rollouts,
    *,
    baseline: Composable | None = MEAN,
    scale: Composable | None = STD,
    reward_weights: tuple[float, ...] | None = None,
) -> Rollouts:
    """Advantage of a row = (its score - baseline) / scale, given to each of its actions.

    Degenerate groups: where all scores are equal, and in groups of one, the advantage is exactly 0 under every baseline that
    is relative to the group. Rows without any reward leave statistics and training.

    Args:
      rollouts: N rows; groups may differ in size.
      baseline: see `baselines`; None for none.
      scale: see `scales`; None for none.
      reward_weights: factor of each reward component; 1 by default.

    Raises:
      ValueError: a baseline or scale that is no function.

    Source: GRPO, https://arxiv.org/abs/2402.03300; Dr. GRPO (no scale), https://arxiv.org/abs/2503.20783.
    """
    score, present = row_scores(rollouts, reward_weights)
    return set_row_advantage(rollouts, _standardised(score, present, rollouts, baseline, scale), present)


@stateless
def component_advantage(
    rollouts: Rollouts,
    *,
    baseline: Composable | None = MEAN,
    scale: Composable | None = STD,
    reward_weights: tuple[float, ...] | None = None,
) -> Rollouts:
    """Each reward component is made an advantage by itself, and these are summed: A = sum_k w_k (r_k - b_k) / s_k.

    So a component with small differences counts as much as one with large differences. Rows that lack a component are left out
    of its statistics, and get none of it. Token rewards have no part here.

    Args:
      rollouts: N rows with K reward components.
      baseline: as in `group_advantage`, of each component.
      scale: as in `group_advantage`, of each component.
      reward_weights: factor w_k of each component; 1 by default.

    Source: GDPO, https://arxiv.org/abs/2601.05242, whose second step is `whiten(over="rows")`.
    """
    weights = component_weights(rollouts, reward_weights)
    _, present = row_scores(rollouts, reward_weights)
    total = jnp.zeros(present.shape)
    for component, weight in enumerate(weights):
        value = rollouts.rewards[:, component].astype(jnp.float32)
        known = present * ~jnp.isnan(value)
        share = _standardised(jnp.nan_to_num(value), known, rollouts, baseline, scale)
        total += weight * known * share
    return set_row_advantage(rollouts, total, present)


@stateless
def token_group_advantage(
    rollouts: Rollouts, *, limit: float = 5.0, epsilon: float = 1e-6, reward_weights: tuple[float, ...] | None = None
) -> Rollouts:
    """A = (score - mean) / (std + epsilon) with statistics over the actions of the group, each with the score of its row.

    A long answer so counts as often as it has tokens. The deviation is the population's. A group in which a size of `limit` is
    reached has the advantages of GRPO in place of these, with statistics over rows and Bessel's deviation.

    Args:
      rollouts: N rows.
      limit: of |A|.
      epsilon: added to the deviations.
      reward_weights: factor of each reward component; 1 by default.

    Raises:
      ValueError: a limit that is not positive.

    Source: HAPO, https://arxiv.org/abs/2509.16591, section 3.2, with the limit of https://github.com/starriver030515/HAPO
    """
    require(limit > 0, "limit", limit, "positive")
    score, present = row_scores(rollouts, reward_weights)
    length, group = rollouts.mask.sum(axis=1) * present, rollouts.group
    mean = length_weighted_baseline.function(score, present, rollouts)
    squares = group_sum(length * jnp.square(masked(score - mean, present)), group)
    spread = jnp.sqrt(safe_divide(squares, group_sum(length, group))) + epsilon
    by_token = (score - mean) / spread
    by_row = _standardised(score, present, rollouts, MEAN, std_scale(degrees_of_freedom=1, epsilon=epsilon))
    _, largest = group_bounds(jnp.abs(by_token), present * (length > 0), group)
    return set_row_advantage(rollouts, jnp.where(largest >= limit, by_row, by_token), present)


def _standardised(score, present, rollouts, baseline, scale):
    for name, slot, example in (("baseline", baseline, "mean_baseline()"), ("scale", scale, "std_scale()")):
        if slot is not None and not callable(slot):
            raise ValueError(f"{name} is {slot!r}; it must be a function such as {example}, or None for none")
    difference = score if baseline is None else score - baseline(score, present, rollouts)
    return difference if scale is None else safe_divide(difference, scale(score, present, rollouts))
