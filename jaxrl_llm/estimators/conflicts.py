"""Tokens that good and bad answers share."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.pools import classes, group_sum
from jaxrl_llm.estimators.scores import by_action
from jaxrl_llm.numerics import masked
from jaxrl_llm.types import Rollouts


@stateless
def conflict_weighting(rollouts: Rollouts, *, bad: float = 0.0, good: float = 2.0) -> Rollouts:
    """Spares tokens of bad answers that good ones have at the same place, and counts those of good ones twice.

    A conflict is one token as the t-th action of two rows of the group with advantages of opposite signs, in a run of
    conflicts that begins with the first action; and likewise, counted from the end, in a run that ends with the last
    action. Each time the advantage is multiplied by `good` where it is positive and by `bad` where it is negative.

    Source: GTPO, https://arxiv.org/abs/2508.03772 and https://github.com/winstonsmith1897/GTPO
    """
    taken = rollouts.mask * rollouts.valid[:, None]
    advantage = masked(rollouts.advantage, taken)
    (there, tokens, values), back = by_action(rollouts.mask, taken, rollouts.tokens, advantage)
    factor = _factors(there, tokens, values, rollouts.group, bad, good)
    # From the end: the last action of every row in the first column.
    turned = [_flipped(array, there) for array in (tokens, values)]
    factor *= _flipped(_factors(there, *turned, rollouts.group, bad, good), there)
    return rollouts.replace(advantage=masked(advantage * back(factor), taken))


def _flipped(array, there):
    """The entries [N, T] of each row that are there in the other direction, from the first column on."""
    place = there.sum(axis=1, keepdims=True).astype(jnp.int32) - 1 - jnp.arange(there.shape[1])
    return masked(jnp.take_along_axis(array, jnp.maximum(place, 0), axis=1), there)


def _factors(there, tokens, values, group, bad: float, good: float):
    def conflict(token, value, present):
        alike = classes(group, token.astype(jnp.int32))
        positive, negative = (group_sum(present * side, alike) > 0 for side in (value > 0, value < 0))
        return positive & negative & (value != 0) & (present > 0)

    run = jnp.cumprod(jax.vmap(conflict, 1, 1)(tokens, values, there).astype(jnp.int32), axis=1)
    return jnp.where(run > 0, jnp.where(values > 0, good, bad), 1.0)
