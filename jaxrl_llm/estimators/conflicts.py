"""Tokens that good and bad answers share."""

import jax
import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.pools import classes, group_sum
from jaxrl_llm.estimators.scores import by_action
from jaxrl_llm.estimators.weighting import sequence_mean
from jaxrl_llm.numerics import masked
from jaxrl_llm.types import Rollouts


@stateless(provides=("conflicts",))
def conflict_weighting(rollouts: Rollouts, *, bad: float = 0.0, good: float = 2.0) -> Rollouts:
    """Spares tokens of bad answers that good ones have at the same place, and counts those of good ones twice.

    A conflict is one token as the t-th action of two rows of the group with advantages of opposite signs, in a run of
    conflicts that begins with the first action; and likewise, counted from the end, in a run that ends with the last
    action. Each time the advantage is multiplied by `good` where it is positive and by `bad` where it is negative. Which
    tokens are conflicts stands in `extras["conflicts"]` [N, T], 1 or 0.

    Source: GTPO, https://arxiv.org/abs/2508.03772 and https://github.com/winstonsmith1897/GTPO
    """
    taken = rollouts.mask * rollouts.valid[:, None]
    advantage = masked(rollouts.advantage, taken)
    (there, tokens, values), back = by_action(rollouts.mask, taken, rollouts.tokens, advantage)
    forward = _runs(there, tokens, values, rollouts.group)
    # From the end: the last action of every row in the first column.
    turned = [_flipped(array, there) for array in (tokens, values)]
    backward = _flipped(_runs(there, *turned, rollouts.group), there)
    once = jnp.where(values > 0, good, bad)
    factor = jnp.where(forward > 0, once, 1.0) * jnp.where(backward > 0, once, 1.0)
    conflicts = masked(back(jnp.maximum(forward, backward)), taken)
    extras = {**rollouts.extras, "conflicts": conflicts}
    return rollouts.replace(advantage=masked(advantage * back(factor), taken), extras=extras)


@stateless(annotations=("conflicts",))
def conflict_mean(rollouts: Rollouts) -> Rollouts:
    """Mean over rows of the mean over each row's actions, divided by the number of its conflicts, where it has any.

    Source: the authors' code of GTPO, https://github.com/winstonsmith1897/GTPO, which sums over the rows
    """
    rollouts = sequence_mean.function(rollouts)
    return rollouts.replace(weight=rollouts.weight / jnp.maximum(rollouts.extras["conflicts"].sum(axis=1), 1.0)[:, None])


def _flipped(array, there):
    """The entries [N, T] of each row that are there in the other direction, from the first column on."""
    place = there.sum(axis=1, keepdims=True).astype(jnp.int32) - 1 - jnp.arange(there.shape[1])
    return masked(jnp.take_along_axis(array, jnp.maximum(place, 0), axis=1), there)


def _runs(there, tokens, values, group):
    """One [N, T] for the conflicts of a run that begins in the first column."""

    def conflict(token, value, present):
        alike = classes(group, token.astype(jnp.int32))
        positive, negative = (group_sum(present * side, alike) > 0 for side in (value > 0, value < 0))
        return positive & negative & (value != 0) & (present > 0)

    return jnp.cumprod(jax.vmap(conflict, 1, 1)(tokens, values, there).astype(jnp.float32), axis=1)
