"""Losses of a critic: squares, cross-entropies, distributions, ensembles, asymmetric errors; log-probabilities as values."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from jaxrl_llm.compose import composable, require
from jaxrl_llm.numerics import masked, without_infinities
from jaxrl_llm.objectives.base import coefficient_value, traits
from jaxrl_llm.objectives.batch_statistics import masked_mean
from jaxrl_llm.objectives.groups import find_pairs, pair_statistics, pair_to_tokens, rollout_mean, rollout_sum, two_sides
from jaxrl_llm.types import Batch, Scores


@composable(needs=("value",), annotations=("returns", "behavior_value"))
def value_loss(scores: Scores, batch: Batch, *, coefficient: float = 0.5, clip: float | None = 0.2, huber: float | None = None):
    """`coefficient` times the error of the critic at each action.

    The error is (V - R)^2, or with `huber` = d the Huber loss of V - R with threshold d (which is half the square near
    0). With `clip` = c it is the larger of the errors of V and of V_old + clip(V - V_old, -c, c).

    Args:
      clip: largest change of the value that is not penalised again; None for none.

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
      low, high: values of the first and of the last bin, as in `heads.bins`.
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


@composable(needs=("value_outputs",), annotations=("returns",))
def ensemble_value_loss(scores: Scores, batch: Batch, *, coefficient: float = 0.5, huber: float | None = None):
    """`coefficient` times the mean over the members of a critic of (V_i - R)^2, or of a Huber loss.

    Source: https://arxiv.org/abs/1802.09477
    """
    error = masked(scores.value_outputs, batch.mask[..., None]) - masked(batch.returns, batch.mask)[..., None]
    each = jnp.square(error) if huber is None else optax.losses.huber_loss(error, delta=huber)
    return coefficient * each.mean(axis=-1), {}


def _targets(options: dict) -> tuple[str, ...]:
    return ("returns",) if options["samples"] is None else ("returns", options["samples"])


@composable(needs=("value_outputs",), annotations=_targets)
def gaussian_value_loss(
    scores: Scores, batch: Batch, *, coefficient: float = 0.5, least_deviation: float = 0.1, bound: float | str | None = None,
    scale: float | str | None = None, samples: str | None = None,
):  # fmt: skip
    """`coefficient` times the mean over pairs of outputs (q, s) of -log N(R; q, sigma^2).

    sigma = softplus(s) + `least_deviation`.

    Args:
      least_deviation: keeps the scale away from 0, above 0.
      bound: for the deviation R is kept within q +- `bound`, which then stands for its mean; a number, or the name of a scalar
        in `batch.coefficients` (0 for none yet); None for no bound.
      scale: factor of both gradients beside 1 / sigma^2 and 1 / sigma^3, as a number or the name of a scalar, here the average
        variance; 0 for none yet, and None for 1. With it the whole does not depend on the size of rewards.
      samples: name of `batch.extras` [B, T, m] whose first is a draw of the return, from which the deviation learns.

    Returns: The loss, whose gradients are exact with neither bound nor scale; with a bound the value is that of R kept within
      it, and the mean learns from R itself. Metrics: "critic/deviation" and "critic/variance", means of sigma and sigma^2.
    Raises ValueError: `least_deviation` is 0 or less.
    Source: DSAC, https://arxiv.org/abs/2001.02811; bound and scale: DSAC-T, https://arxiv.org/abs/2310.05858
    """
    require(least_deviation > 0, "least_deviation", least_deviation, "above 0")
    outputs = masked(scores.value_outputs, batch.mask[..., None])
    mean, deviation = outputs[..., ::2], jax.nn.softplus(outputs[..., 1::2]) + least_deviation
    target = masked(batch.returns, batch.mask)[..., None]
    still_mean, still = jax.lax.stop_gradient((mean, deviation))
    kept = target if samples is None else masked(batch.extras[samples][..., :1], batch.mask[..., None])
    if bound is not None:
        limit = coefficient_value(bound, batch)
        kept = jnp.where(limit > 0, jnp.clip(kept, still_mean - limit, still_mean + limit), kept)
    of_scale = jnp.log(deviation) + jnp.square(kept - still_mean) / (2.0 * jnp.square(deviation))
    # Of the value 0: it carries the gradient of the mean, which sees R and not what is kept of it.
    of_mean = (mean - still_mean) * (still_mean - target) / jnp.square(still)
    factor = 1.0
    if scale is not None:
        found = coefficient_value(scale, batch)
        factor = jnp.where(found > 0, found, 1.0)
    loss = factor * (of_scale + of_mean + 0.5 * jnp.log(2.0 * jnp.pi))
    counted = batch.mask * (batch.weight > 0)
    measures = {"deviation": still, "variance": jnp.square(still)}
    means = {f"critic/{name}": masked_mean(value.mean(axis=-1), counted) for name, value in measures.items()}
    return coefficient * loss.mean(axis=-1), means


@composable(needs=("value",), annotations=("returns",))
def expectile_value_loss(scores: Scores, batch: Batch, *, coefficient: float = 0.5, level: float = 0.7):
    """`coefficient` times |`level` - [R < V]| (R - V)^2: V becomes the expectile of that level of the returns.

    Args:
      level: 1/2 for the mean; towards 1 for the best that the samples reach.

    Raises ValueError: the level is not between 0 and 1.
    Source: IQL, https://arxiv.org/abs/2110.06169, equation 5
    """
    require(0 < level < 1, "level", level, "above 0 and below 1")
    error = masked(batch.returns - scores.value, batch.mask)
    return coefficient * jnp.abs(level - (error < 0)) * jnp.square(error), {}


@composable(needs=("value",), annotations=("returns",))
def dual_value_loss(
    scores: Scores, batch: Batch, *, coefficient: float = 0.5, share: float = 0.7,
    divergence: Literal["chi2", "total_variation", "gumbel"] = "chi2", bound: float = 5.0,
):  # fmt: skip
    """`coefficient` times (1 - `share`) V + `share` f(R - V): V becomes an upper value of the samples, as in a linear program.

    f is the conjugate of a divergence between the occupancies of the learnt and of the sampling policy: z^2 / 4 + z from z = -2
    on and -1 before ("chi2"), max(z, 0) ("total_variation"), exp(z) - z - 1 ("gumbel", extreme Q-learning, in which `share`
    weighs nothing: its loss is f alone).

    Args:
      share: lambda, between 0 and 1; the larger, the nearer to the best return.
      bound: of z, beyond which "gumbel" goes on along its tangent.

    Raises ValueError: an unknown divergence, or a share that is not between 0 and 1.
    Source: f-DVL, https://arxiv.org/abs/2302.08560, equation 14; "gumbel": XQL, https://arxiv.org/abs/2301.02328
    """
    require(0 < share < 1, "share", share, "above 0 and below 1")
    value = masked(scores.value, batch.mask)
    gap = masked(batch.returns, batch.mask) - value
    if divergence == "gumbel":
        inner = jnp.minimum(gap, bound)
        return coefficient * (jnp.exp(inner) * (1.0 + gap - inner) - gap - 1.0), {}
    conjugate = jnp.square(jnp.maximum(gap, -2.0) / 2.0 + 1.0) - 1.0 if divergence == "chi2" else jnp.maximum(gap, 0.0)
    return coefficient * ((1.0 - share) * value + share * conjugate), {}


@composable(needs=("value", "max_logp"), annotations=("returns",))
def dueling_value_loss(scores: Scores, batch: Batch, *, alpha: float = 0.1, coefficient: float = 1.0):
    """`coefficient` (Q - R)^2 with Q = V + `alpha` (log pi(token) - log pi(likeliest token)).

    Args:
      alpha: size of a nat in values.

    Source: B-Coder, https://arxiv.org/abs/2310.03173
    """
    lead = masked(without_infinities(scores.logp) - jax.lax.stop_gradient(scores.max_logp), batch.mask)
    value, target = masked(scores.value, batch.mask), masked(batch.returns, batch.mask)
    return coefficient * jnp.square(value + alpha * lead - target), {}


def value_of_next_action(value, batch: Batch):
    """Of values [B, T] that of the next action of the same rollout, [B, T]; 0 behind the last."""
    columns = value.shape[1]
    places = jax.lax.cummin(jnp.where(batch.mask > 0, jnp.arange(columns), columns), axis=1, reverse=True)
    following = jnp.pad(places[:, 1:], ((0, 0), (0, 1)), constant_values=columns)

    def taken(row, places):
        return row[jnp.minimum(places, columns - 1)]

    own = (following < columns) & (jax.vmap(taken)(batch.rollout, following) == batch.rollout)
    return jnp.where(own, jax.vmap(taken)(masked(value, batch.mask), following), 0.0)


@composable(needs=("value",), annotations=("preference",))
@traits(coupled=True)
def inverse_preference(scores: Scores, batch: Batch, *, beta: float = 0.1, discount: float = 0.99, regularisation: float = 0.5):
    """-log sigmoid(sum r_chosen - sum r_rejected) + `regularisation` times the mean over both of the mean of r^2.

    r = `beta` log pi(token) + V - `discount` V', with the value V of the state before the token and V' of that before the next
    action, 0 behind the last: the reward under which `beta` log pi + V are the soft values of tokens.

    Args:
      beta: temperature of the values.
      discount: gamma.

    Source: Inverse preference learning, https://arxiv.org/abs/2305.15363, equation 5
    """
    pairs = find_pairs(batch)
    value = masked(scores.value, batch.mask)
    reward = beta * without_infinities(scores.logp) + value - discount * value_of_next_action(value, batch)
    chosen, rejected = two_sides(rollout_sum(reward, batch.mask, pairs.rollout), pairs)
    sizes = two_sides(rollout_mean(jnp.square(masked(reward, batch.mask)), batch.mask, pairs.rollout), pairs)
    loss = jax.nn.softplus(rejected - chosen) + regularisation * 0.5 * sum(sizes)
    return pair_to_tokens(loss, pairs), pair_statistics(chosen, rejected, pairs)
