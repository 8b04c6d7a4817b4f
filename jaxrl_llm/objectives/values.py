"""Losses of a critic."""

import jax
import jax.numpy as jnp
import optax

from jaxrl_llm.compose import composable, require
from jaxrl_llm.numerics import masked
from jaxrl_llm.types import Batch, Scores


@composable(needs=("value",), annotations=("returns", "behavior_value"))
def value_loss(scores: Scores, batch: Batch, *, coefficient: float = 0.5, clip: float | None = 0.2, huber: float | None = None):
    """`coefficient` times the error of the critic at each action.

    The error is (V - R)^2, or with `huber` = d the Huber loss of V - R with threshold d (which is half the square near
    0). With `clip` = c it is the larger of the errors of V and of V_old + clip(V - V_old, -c, c).

    Args:
      clip: largest change of the value that is not penalised again; None for none.
      huber: threshold of the Huber loss; None for squares.

    Source: PPO, https://arxiv.org/abs/1707.06347, with value clipping as in https://arxiv.org/abs/2005.12729
    """
    value, target, old = (masked(x, batch.mask) for x in (scores.value, batch.returns, batch.extras["behavior_value"]))

    def error(prediction):
        difference = prediction - target
        return jnp.square(difference) if huber is None else optax.losses.huber_loss(difference, delta=huber)

    loss = error(value)
    if clip is not None:
        loss = jnp.maximum(loss, error(old + jnp.clip(value - old, -clip, clip)))
    return coefficient * loss, {}


@composable(needs=("value_outputs",), annotations=("returns",))
def categorical_value_loss(
    scores: Scores, batch: Batch, *, low: float, high: float, coefficient: float = 0.5, smoothing: float | None = 0.75
):
    """`coefficient` times the cross-entropy of a critic of bins with the return R, spread over the bins around it.

    A bin's share of the target is the mass of a normal distribution around R, of standard deviation `smoothing` times the
    distance of two bins, within half a distance of the bin; shares sum to 1. Returns beyond the range count as its ends.

    Args:
      low: value of the first bin, as in `heads.bins`.
      high: value of the last bin.
      smoothing: above 0; None shares the return out between the two bins beside it, so that their mean is the return.

    Raises ValueError: `high` is not above `low`, or `smoothing` not above 0.
    Source: HL-Gauss, https://arxiv.org/abs/2403.03950, section 3.1; two bins: https://arxiv.org/abs/1707.06887, equation 7
    """
    if not low < high or (smoothing is not None and smoothing <= 0):
        raise ValueError(f"low={low}, high={high}, smoothing={smoothing}: the range must rise and smoothing be above 0")
    outputs = masked(scores.value_outputs, batch.mask[..., None])
    count = outputs.shape[-1]
    distance = (high - low) / (count - 1)
    target = jnp.clip(masked(batch.returns, batch.mask), low, high)[..., None]
    if smoothing is None:
        share = jnp.maximum(1.0 - jnp.abs((target - low) / distance - jnp.arange(count)), 0.0)
    else:
        edges = low + distance * (jnp.arange(count + 1) - 0.5)
        below = jax.scipy.special.erf((edges - target) / (smoothing * distance * 2**0.5))
        share = (below[..., 1:] - below[..., :-1]) / (below[..., -1:] - below[..., :1])
    return -coefficient * jnp.sum(share * jax.nn.log_softmax(outputs), axis=-1), {}


@composable(needs=("value_outputs",), annotations=lambda options: (options["samples"],))
def quantile_value_loss(
    scores: Scores, batch: Batch, *, coefficient: float = 0.5, huber: float = 1.0, samples: str = "returns"
):
    """`coefficient` times the mean over quantiles of |tau_i - [R < q_i]| Huber(R - q_i) / `huber`, tau_i = (i + 1/2) / n.

    Args:
      huber: threshold of the Huber loss, above 0.
      samples: "returns", or the name of `batch.extras` [B, T, m] with samples of the return, over which the mean is taken too.

    Raises ValueError: `huber` is not above 0.
    Source: QR-DQN, https://arxiv.org/abs/1710.10044, equations 9 and 10
    """
    require(huber > 0, "huber", huber, "above 0")
    quantiles = masked(scores.value_outputs, batch.mask[..., None])[..., None]
    targets = batch.returns[..., None] if samples == "returns" else batch.extras[samples]
    error = masked(targets, batch.mask[..., None])[..., None, :] - quantiles
    level = ((jnp.arange(quantiles.shape[-2]) + 0.5) / quantiles.shape[-2])[:, None]
    tilted = jnp.abs(level - (error < 0)) * optax.losses.huber_loss(error, delta=huber) / huber
    return coefficient * tilted.mean(axis=(-2, -1)), {}
