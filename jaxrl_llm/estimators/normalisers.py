"""Normalisation of advantages over the whole step."""

from __future__ import annotations

import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts


@stateless
def whiten(rollouts: Rollouts, *, shift_mean: bool = True, degrees_of_freedom: int = 1, epsilon: float = 1e-8) -> Rollouts:
    """Scales the advantages of all actions of valid rows to mean 0 and variance 1.

    A = (A - mean) / sqrt(variance + epsilon); with `shift_mean=False` the mean is added back. Fewer actions than
    degrees of freedom, or equal advantages, give 0 (or the mean).

    Source: REINFORCE++ "global advantage normalisation", https://arxiv.org/abs/2501.03262; PPO practice,
      https://arxiv.org/abs/2006.05990.
    """
    taken = rollouts.mask * rollouts.valid[:, None]
    count = taken.sum()
    lowest = jnp.where(taken > 0, rollouts.advantage, jnp.inf).min(initial=jnp.inf)
    highest = jnp.where(taken > 0, rollouts.advantage, -jnp.inf).max(initial=-jnp.inf)
    # The float32 mean of equal numbers may miss them by a bit, which the division would blow up.
    mean = jnp.where(lowest < highest, safe_divide(masked(rollouts.advantage, taken).sum(), count), lowest)
    centred = masked(rollouts.advantage - mean, taken)
    variance = safe_divide(jnp.square(centred).sum(), jnp.maximum(count - degrees_of_freedom, 0.0))
    scaled = centred / jnp.sqrt(variance + epsilon)
    return rollouts.replace(advantage=masked(scaled if shift_mean else scaled + mean, taken))
