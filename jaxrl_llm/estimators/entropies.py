"""Advantages and rewards shaped by the policy's entropy.

It is `extras["proximal_entropy"]` [N, T] in nats, that of the policy before this step's updates.
"""

import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.components import component_of, with_component
from jaxrl_llm.estimators.pools import classes, group_bounds, group_sum
from jaxrl_llm.estimators.scores import by_action
from jaxrl_llm.numerics import masked, materialised, safe_divide
from jaxrl_llm.types import Rollouts

EPSILON = 1e-8


def mean_entropy(rollouts: Rollouts):
    """Mean entropy (nats) over the actions of each row, [N]; 0 for a row without actions."""
    return safe_divide(masked(rollouts.extras["proximal_entropy"], rollouts.mask).sum(axis=1), rollouts.mask.sum(axis=1))


@stateless(annotations=("proximal_entropy",))
def entropy_shaped_advantage(
    rollouts: Rollouts, *, base: float = 1.0, bonus: float = 0.1, threshold: float = 0.5, component: int = 0
) -> Rollouts:
    """Token rewards from outcome and entropy, standardised over the tokens of the right and of the wrong rows by themselves.

    The t-th action of a right row gets base + bonus * n_t H / sum(H), over the n_t right rows of the group with a t-th
    action, that of a wrong row -base - bonus * n_t (1/H) / sum(1/H), over the wrong ones: uncertain right tokens win
    most, certain wrong ones lose most. Then A = (r - mean) / (std + 1e-8) over all actions of right rows of the group,
    and over those of wrong rows.

    Args:
      rollouts: with entropies.
      base: a1.
      bonus: a2.
      threshold: rewards above it are right.
      component: the reward component that says what is right.

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
    return rollouts.replace(
        advantage=masked(back(_standardised(reward, there, verdict)), taken), valid=rollouts.valid * present
    )


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
    entropy = mean_entropy(rollouts)
    strength = present * jnp.where(right, entropy, 1.0 / (entropy + EPSILON))
    share = strength / (group_sum(strength, verdict) + EPSILON) * group_sum(present, verdict)
    return with_component(rollouts, component, jnp.where(right, 1.0, -1.0) * (base + bonus * share))


@stateless(annotations=("proximal_entropy",))
def entropy_penalty(rollouts: Rollouts, *, coefficient: float = 0.1, ceiling: float = 0.7) -> Rollouts:
    """Takes coefficient * H off the advantages of each row, and all of them from rows with H above `ceiling`.

    H is the mean entropy of the row, in nats.

    Source: GTPO, https://github.com/winstonsmith1897/GTPO
    """
    entropy = mean_entropy(rollouts)[:, None]
    kept = rollouts.mask * (entropy <= ceiling)
    return rollouts.replace(advantage=masked(rollouts.advantage - coefficient * entropy, kept))
