"""Weights that follow how hard a prompt is for the policy: factors `(scores, batch) -> factor` [B, T]."""

import math

import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.numerics import masked
from jaxrl_llm.types import Batch, Scores


@composable(annotations=("accuracy",))
def difficulty_weight(scores: Scores, batch: Batch, *, steepness: float = math.e):
    """1 - exp(-`steepness` a) where A > 0 and the share a of right answers to the prompt is neither 0 nor 1; 1 elsewhere.

    As a factor of a KL term it lets the policy go further from the reference on what it does well at hard prompts.

    Args:
      steepness: above 0; the larger, the fewer prompts count as hard.

    Raises:
      ValueError: `steepness` is not above 0.

    Source: difficulty-adaptive divergence shaping, https://arxiv.org/abs/2506.21655
    """
    del scores
    if steepness <= 0:
        raise ValueError(f"steepness is {steepness}; it must be above 0")
    accuracy = masked(batch.extras["accuracy"], batch.mask)
    eased = (batch.advantage > 0) & (accuracy > 0) & (accuracy < 1)
    return jnp.where(eased, -jnp.expm1(-steepness * accuracy), 1.0)
