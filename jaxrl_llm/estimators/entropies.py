"""Advantages and rewards shaped by the policy's entropy, and tokens that good and bad answers share.

The entropy is `extras["proximal_entropy"]` [N, T] in nats, that of the policy before this step's updates.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.pools import classes, group_bounds, group_sum
from jaxrl_llm.estimators.scores import by_action, component_of, row_mean, with_component
from jaxrl_llm.estimators.weighting import sequence_mean
from jaxrl_llm.numerics import masked, materialised, safe_divide
from jaxrl_llm.types import Rollouts

EPSILON = 1e-8


@stateless(annotations=("proximal_entropy",))
def entropy_shaped_advantage(
    rollouts: Rollouts, *, base: float = 1.0, bonus: float = 0.1, threshold: float = 0.5, component: int = 0
) -> Rollouts:
    """Token rewards from outcome and entropy, standardised over the tokens of the right and of the wrong rows by themselves.

    The t-th action of a right row gets base + bonus * n_t H / sum(H), over the n_t right rows of the group with a t-th
    action, that of a wrong row -base - bonus * n_t (1/H) / sum(1/H), over the wrong ones: uncertain right tokens win
    most, certain wrong ones lose most. Then A = (r - mean) / (std + 1e-8) over all actions of right rows of the group,
    and over those of wrong rows.

    Source: GTPO, https://arxiv.org/abs/2508.04349
    """
    value, present = component_of(rollouts, component)
    right = value > threshold
    verdict = classes(rollouts.group, right.astype(jnp.int32))
    taken = rollouts.mask * present[:, None]
    (there, entropy), back = by_action(rollouts.mask, taken, jnp.nan_to_num(rollouts.extras["proximal_entropy"]))
    strength = there * jnp.where(right[:, None], entropy, 1.0 / (entropy + EPSILON))
    share = strength / (group_sum(strength, verdict) + EPSILON) * group_sum(there, verdict)
    reward = there * jnp.where(right[:, None], 1.0, -1.0) * (base + bonus * share)
    advantage = masked(back(_standardised(reward, there, verdict)), taken)
    return rollouts.replace(advantage=advantage, valid=rollouts.valid * present)


def _standardised(values, there, group):
    """(x - mean) / (std + 1e-8) over all entries [N, T] of the rows of a group; 0 where all are equal."""
    values = materialised(values)
    total, count = group_sum((there * values).sum(axis=1), group), group_sum(there.sum(axis=1), group)
    centred = there * (values - safe_divide(total, count)[:, None])
    variance = safe_divide(group_sum(jnp.square(centred).sum(axis=1), group), count)
    lows = jnp.where(there > 0, values, jnp.inf).min(axis=1, initial=jnp.inf)
    highs = jnp.where(there > 0, values, -jnp.inf).max(axis=1, initial=-jnp.inf)
    everywhere = jnp.ones_like(lows)
    differ = group_bounds(highs, everywhere, group)[1] > group_bounds(lows, everywhere, group)[0]
    return jnp.where(differ[:, None], centred / (jnp.sqrt(variance) + EPSILON)[:, None], 0.0)


@stateless(annotations=("proximal_entropy",))
def sequence_entropy_reward(
    rollouts: Rollouts, *, base: float = 1.0, bonus: float = 0.1, threshold: float = 0.5, component: int = 0
) -> Rollouts:
    """Replaces the reward by base + bonus * n H / sum(H) for right rows, -base - bonus * n (1/H) / sum(1/H) for wrong ones.

    H is the mean entropy of the row, and the sums are over the n right, or wrong, rows of the group.

    Source: GRPO-S, https://arxiv.org/abs/2508.04349
    """
    value, present = component_of(rollouts, component)
    right = value > threshold
    verdict = classes(rollouts.group, right.astype(jnp.int32))
    entropy = row_mean(rollouts.extras["proximal_entropy"], rollouts.mask)
    strength = present * jnp.where(right, entropy, 1.0 / (entropy + EPSILON))
    share = strength / (group_sum(strength, verdict) + EPSILON) * group_sum(present, verdict)
    return with_component(rollouts, component, jnp.where(right, 1.0, -1.0) * (base + bonus * share))


@stateless(annotations=("proximal_entropy",))
def entropy_penalty(rollouts: Rollouts, *, coefficient: float = 0.1, ceiling: float = 0.7) -> Rollouts:
    """Takes coefficient * H off the advantages of each row, and all of them from rows with H above `ceiling`.

    H is the mean entropy of the row, in nats.

    Source: GTPO, https://github.com/winstonsmith1897/GTPO
    """
    entropy = row_mean(rollouts.extras["proximal_entropy"], rollouts.mask)[:, None]
    kept = rollouts.mask * (entropy <= ceiling)
    return rollouts.replace(advantage=masked(rollouts.advantage - coefficient * entropy, kept))


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
