"""Trust regions without an edge: the gradient of a token fades or stays bounded where a clip would remove it."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.objectives.trust import dual_clipped_loss
from jaxrl_llm.types import Batch, Scores


@composable
def sapo(log_ratio, scores: Scores, batch: Batch, *, positive: float = 1.0, negative: float = 1.05):
    """-A (4 / tau) sigmoid(tau (r - 1)): a gate whose gradient is that of r A at r = 1 and fades away from it.

    Args:
      positive: tau where A > 0, above 0; the larger, the narrower.
      negative: tau elsewhere.

    Raises:
      ValueError: a tau of 0 or less.

    Source: SAPO, https://arxiv.org/abs/2511.20347
    """
    del scores
    if positive <= 0 or negative <= 0:
        raise ValueError(f"positive={positive}, negative={negative}: both temperatures must be above 0")
    temperature = jnp.where(batch.advantage > 0, positive, negative)
    return -batch.advantage * (4.0 / temperature) * jax.nn.sigmoid(temperature * (jnp.exp(log_ratio) - 1.0))


@composable
def vespo(
    log_ratio,
    scores: Scores,
    batch: Batch,
    *,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
):
    """-sg(exp(lambda + k w - lambda e^w)) A log pi with the log-ratio w of the whole sequence (`sequence_total_ratio`).

    The weight is 1 at w = 0 and falls to 0 on both sides, as the density of a gamma distribution does.

    Args:
      positive: (k, lambda) where A >= 0.
      negative: (k, lambda) where A < 0.

    Source: VESPO, https://arxiv.org/abs/2602.10693
    """
    shape, rate = (jnp.where(batch.advantage >= 0, a, b) for a, b in zip(positive, negative, strict=True))
    weight = jnp.exp(rate + shape * log_ratio - rate * jnp.exp(log_ratio))
    return -jax.lax.stop_gradient(weight) * batch.advantage * scores.logp


@composable
def gradient_preserving_clip(
    log_ratio,
    scores: Scores,
    batch: Batch,
    *,
    low: float = 0.2,
    high: float = 0.2,
    low_gradient: float = 1.0,
    high_gradient: float = 1.0,
    dual: float | None = None,
):
    """The clip whose clipped tokens keep a gradient, as large as at the bound times a factor.

    The loss is -f r A with f = `low_gradient` (1 - low) / sg(r) where A < 0 and r < 1 - low, `high_gradient` (1 + high) / sg(r)
    where A > 0 and r > 1 + high, and 1 elsewhere. With both factors 0 the gradient is that of `clip`.

    Args:
      low: 1 - low is the lower bound.
      high: 1 + high is the upper bound.
      low_gradient: beta_1, what is left at clipped tokens of negative advantage: more of it lowers the entropy.
      high_gradient: beta_2, what is left at clipped tokens of positive advantage: more of it raises the entropy.
      dual: as in `clip`; beyond it there is no gradient.

    Raises:
      ValueError: `dual` is 1 or less.

    Source: GPPO, https://arxiv.org/abs/2508.07629 (both factors 1); CE-GPPO, https://arxiv.org/abs/2509.20712
    """
    del scores
    ratio, advantage = jnp.exp(log_ratio), batch.advantage
    held = jax.lax.stop_gradient(ratio)
    below, above = (advantage < 0) & (ratio < 1.0 - low), (advantage > 0) & (ratio > 1.0 + high)
    factor = jnp.where(below, low_gradient * (1.0 - low) / held, jnp.where(above, high_gradient * (1.0 + high) / held, 1.0))
    return dual_clipped_loss(factor * ratio * advantage, advantage, dual)


@composable
def shaped(log_ratio, scores: Scores, batch: Batch, *, gamma: float = 0.1):
    """-A r / (r + `gamma`): a bounded ratio whose gradient is largest at tokens of small probability.

    Raises:
      ValueError: `gamma` is 0 or less.

    Source: LUFFY, https://arxiv.org/abs/2504.14945, for demonstrations, with the ratio `likelihood`; also ICPO,
      https://arxiv.org/abs/2510.26519
    """
    del scores
    if gamma <= 0:
        raise ValueError(f"gamma is {gamma}; it must be above 0")
    ratio = jnp.exp(log_ratio)
    return -batch.advantage * ratio / (ratio + gamma)
