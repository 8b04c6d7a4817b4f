"""Importance weights that are bounded by the sign of the advantage."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.types import Batch, Scores


@composable
def tapered(
    log_ratio,
    scores: Scores,
    batch: Batch,
    *,
    positive: tuple[float, float] = (1.0, 1.0),
    negative: tuple[float, float] = (0.0, 1.0),
):
    """-stop_gradient(clip(r, low, high)) A log pi, with bounds of their own for A >= 0 and for A < 0.

    By default the weight of what is good is 1, however unlikely it has become, so that it is imitated; that of what is bad is r
    and at most 1, so that what the policy has left behind is not pushed away for ever.

    Args:
      positive: lower and upper bound of the weight where A >= 0.
      negative: likewise where A < 0.

    Raises:
      ValueError: a lower bound that is negative or above the upper one.

    Source: TOPR, https://arxiv.org/abs/2503.14286, with the ratio of whole answers
    """
    for name, (low, high) in (("positive", positive), ("negative", negative)):
        if not 0 <= low <= high:
            raise ValueError(f"{name} is {(low, high)}; it must be two bounds of a weight, 0 or more and in order")
    ratio, good = jnp.exp(log_ratio), batch.advantage >= 0
    weight = jnp.where(good, jnp.clip(ratio, *positive), jnp.clip(ratio, *negative))
    return -jax.lax.stop_gradient(weight) * batch.advantage * scores.logp
