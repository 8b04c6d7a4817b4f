"""Policy gradients of rewards with a KL penalty, corrected for samples of an older policy."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.objectives.trust import clipped_loss
from jaxrl_llm.types import Batch, Scores

DIRECTIONS, STYLES = ("reverse", "forward"), ("reinforce", "differentiable")


@composable
def rpg(
    log_ratio,
    scores: Scores,
    batch: Batch,
    *,
    beta: float = 1e-4,
    direction: str = "reverse",
    normalised: bool = False,
    style: str = "reinforce",
    low: float = 0.2,
    high: float = 0.28,
    dual: float | None = 10.0,
):
    """Clipped surrogate of A and of `beta` times a KL divergence to the old policy, with the importance weight on both.

    With w = pi / mu the divergence is, reverse: w log w; reverse of unnormalised measures: w log w - w; forward: -log pi;
    forward of unnormalised measures: w - log w - 1.

    Args:
      beta: of the divergence.
      direction: "reverse" KL(pi || mu) or "forward" KL(mu || pi).
      normalised: False for the KL of unnormalised measures.
      style: "reinforce" clips w times the regularised advantage, A less `beta` times the derivative of the divergence by w
        (times w, by log pi), without gradient; "differentiable" clips w A and adds the divergence itself. Inside of the
        bounds the gradients are equal.
      low: as in `clip`.
      high: as in `clip`.
      dual: as in `clip`.

    Raises:
      ValueError: an unknown direction or style, or a bad `dual`.

    Source: RPG, https://arxiv.org/abs/2505.17508, tables 1 and 2, section 3.3
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is {direction!r}; it must be one of {DIRECTIONS}")
    if style not in STYLES:
        raise ValueError(f"style is {style!r}; it must be one of {STYLES}")
    weight, bounds = jnp.exp(log_ratio), (1.0 - low, 1.0 + high, dual)
    if style == "differentiable":
        divergence = _divergence(log_ratio, weight, scores, direction, normalised)
        return clipped_loss(weight, batch.advantage, *bounds) + beta * divergence
    advantage = batch.advantage - beta * _slope(log_ratio, direction, normalised)
    return clipped_loss(weight, jax.lax.stop_gradient(advantage), *bounds)


def _divergence(log_ratio, weight, scores: Scores, direction: str, normalised: bool):
    if direction == "reverse":
        return weight * log_ratio - (0.0 if normalised else weight)
    return -scores.logp if normalised else weight - log_ratio - 1.0


def _slope(log_ratio, direction: str, normalised: bool):
    """Derivative of the divergence by log pi, divided by w."""
    if direction == "reverse":
        return log_ratio + (1.0 if normalised else 0.0)
    return -jnp.exp(-log_ratio) if normalised else 1.0 - jnp.exp(-log_ratio)
