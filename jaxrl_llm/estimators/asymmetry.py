"""Changes to the advantages of wrong answers alone."""

import math

import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.pools import group_mean, group_sum
from jaxrl_llm.numerics import masked
from jaxrl_llm.types import Rollouts


@stateless(annotations=("correct",))
def long_wrong_penalty(rollouts: Rollouts, *, base: float = 1.00001) -> Rollouts:
    """Multiplies the advantages of wrong answers by 2 - `base`^-(l - m), m the mean length of the right ones of the group.

    That is for lengths l (in actions) above m, and in groups with a right answer; all other advantages stay.

    Args:
      rollouts: with `extras["correct"]` [N].
      base: above 1; the larger, the sooner the factor nears 2.

    Raises:
      ValueError: `base` is 1 or less.

    Source: suboptimal trajectory complexity regularisation, https://arxiv.org/abs/2506.21655
    """
    if base <= 1:
        raise ValueError(f"base is {base}; it must be above 1")
    length, present = rollouts.mask.sum(axis=1), (rollouts.valid > 0).astype(jnp.float32)
    right = present * (rollouts.extras["correct"] > 0)
    longer = length - group_mean(length, right, rollouts.group)
    counts = (rollouts.extras["correct"] <= 0) & (longer > 0) & (group_sum(right, rollouts.group) > 0)
    factor = jnp.where(counts, 1.0 - jnp.expm1(-math.log(base) * jnp.maximum(longer, 0.0)), 1.0)
    return rollouts.replace(advantage=masked(rollouts.advantage, rollouts.mask) * factor[:, None])
