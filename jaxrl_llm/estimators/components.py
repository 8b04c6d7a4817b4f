"""One component of the rewards, read and changed by itself, so that what weighs it later still does."""

import jax.numpy as jnp

from jaxrl_llm.types import Rollouts


def component_of(rollouts: Rollouts, component: int):
    """Values [N] of a reward component, 0 where it is missing, and where it is there and the row valid, [N].

    Raises:
      ValueError: there is no such component.
    """
    count = rollouts.rewards.shape[1]
    if not 0 <= component < count:
        raise ValueError(f"component is {component}; the rollouts have {count} reward components, numbered from 0")
    values = rollouts.rewards[:, component].astype(jnp.float32)
    known = ~jnp.isnan(values)
    return jnp.where(known, values, 0.0), (known & (rollouts.valid > 0)).astype(jnp.float32)


def with_component(rollouts: Rollouts, component: int, values) -> Rollouts:
    """The rollouts with `values` [N] in the place of a reward component; missing ones stay missing."""
    rewards = jnp.asarray(rollouts.rewards, jnp.float32)
    values = jnp.where(jnp.isnan(rewards[:, component]), jnp.nan, values)
    return rollouts.replace(rewards=rewards.at[:, component].set(values))
