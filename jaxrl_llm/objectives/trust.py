"""Trust regions: `(log_ratio, scores, batch) -> token loss` [B, T], each the negative of what is maximised.

Beside clips there are those without an edge, where the gradient of a token fades or stays bounded; weights bounded by the sign
of the advantage; drifts that are taken off the surrogate; and policy gradients of rewards with a KL penalty.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import composable, require
from jaxrl_llm.types import Batch, Scores


def clipped_loss(ratio, advantage, lower, upper, dual: float | None = None):
    """-min(r A, clip(r, `lower`, `upper`) A) under the dual clip. Bounds may differ by token."""
    return dual_clipped_loss(jnp.minimum(ratio * advantage, jnp.clip(ratio, lower, upper) * advantage), advantage, dual)


def dual_clipped_loss(surrogate, advantage, dual: float | None):
    """-`surrogate`; with `dual` = c, at most -c A where A < 0.

    Raises ValueError: `dual` is 1 or less.
    """
    if dual is None:
        return -surrogate
    require(dual > 1, "dual", dual, "above 1, or None for no dual clip")
    return -jnp.where(advantage < 0, jnp.maximum(surrogate, dual * advantage), surrogate)


@composable
def clip(log_ratio, scores: Scores, batch: Batch, *, low: float = 0.2, high: float = 0.2, dual: float | None = None):
    """-min(r A, clip(r, 1 - low, 1 + high) A); with `dual` = c > 1, at most -c A where A < 0.

    The "two-sided clip" of INTELLECT-2 and of TRL's `delta`, -min(min(r, d) A, clip(r) A) with d above 1 + `high`, is the
    dual clip with c = d.

    Raises ValueError: `dual` is 1 or less.
    Source: PPO, https://arxiv.org/abs/1707.06347; dual clip, https://arxiv.org/abs/1912.09729; asymmetric bounds
      ("clip-higher"), DAPO, https://arxiv.org/abs/2503.14476; INTELLECT-2, https://arxiv.org/abs/2505.07291
    """
    return clipped_loss(jnp.exp(log_ratio), batch.advantage, 1.0 - low, 1.0 + high, dual)


@composable
def unclipped(log_ratio, scores: Scores, batch: Batch):
    """-r A, the importance-weighted surrogate without any bound."""
    return -jnp.exp(log_ratio) * batch.advantage


@composable
def score_function(log_ratio, scores: Scores, batch: Batch):
    """-A log pi: the likelihood-ratio gradient of an on-policy sample; the ratio has no part in it.

    Source: REINFORCE, https://doi.org/10.1007/BF00992696
    """
    return -batch.advantage * scores.logp


@composable
def cispo(log_ratio, scores: Scores, batch: Batch, *, high: float, low: float | None = None):
    """-stop_gradient(clip(r, 1 - low, 1 + high)) A log pi: every token keeps a gradient, only its weight is bounded.

    Libraries differ under this name: verl, slime and NeMo-RL bound the weight on both sides, open-instruct from above only,
    and TRL's `epsilon_high` is the bound itself, `high` = epsilon_high - 1, so that its default 0.2 makes on-policy tokens
    count one fifth.

    Args:
      high: the weight is at most 1 + high (an offset from 1, not the bound itself).
      low: the weight is at least 1 - low; no lower bound by default, as in the paper's experiments.

    Source: MiniMax-M1, equations 4 and 5, https://arxiv.org/abs/2506.13585
    """
    lower = None if low is None else 1.0 - low
    weight = jax.lax.stop_gradient(jnp.clip(jnp.exp(log_ratio), lower, 1.0 + high))
    return -weight * batch.advantage * scores.logp


@composable
def flipped(log_ratio, scores: Scores, batch: Batch, *, low: float = 0.2, high: float = 0.2, cap: float = 3.0):
    """The clip with the weight 1 / r instead of r where A > 0: tokens that lost probability count more, not less.

    Where A > 0: -A c / sg(c)^2, c = min(r, 1 + `high`). Elsewhere: -A max(r, 1 - `low`). Where a weight is above `cap`, the
    loss is -A `cap` log pi: the weight is bounded, the gradient stays.

    Raises ValueError: `cap` is 1 or less.
    Source: ASPO, https://arxiv.org/abs/2510.06062
    """
    require(cap > 1, "cap", cap, "above 1")
    ratio, advantage = jnp.exp(log_ratio), batch.advantage
    bounded = jnp.minimum(ratio, 1.0 + high)
    held = jax.lax.stop_gradient(bounded)
    surrogate = jnp.where(advantage > 0, bounded / held**2, jnp.maximum(ratio, 1.0 - low)) * advantage
    weight = jnp.where(advantage > 0, 1.0 / held, ratio)
    return -jnp.where(weight > cap, cap * advantage * scores.logp, surrogate)


@composable
def sapo(log_ratio, scores: Scores, batch: Batch, *, positive: float = 1.0, negative: float = 1.05):
    """-A (4 / tau) sigmoid(tau (r - 1)): a gate whose gradient is that of r A at r = 1 and fades away from it.

    Args:
      positive: tau where A > 0, above 0; the larger, the narrower.
      negative: tau elsewhere.

    Raises ValueError: a tau of 0 or less.
    Source: SAPO, https://arxiv.org/abs/2511.20347
    """
    if positive <= 0 or negative <= 0:
        raise ValueError(f"positive={positive}, negative={negative}: both temperatures must be above 0")
    temperature = jnp.where(batch.advantage > 0, positive, negative)
    return -batch.advantage * (4.0 / temperature) * jax.nn.sigmoid(temperature * (jnp.exp(log_ratio) - 1.0))


@composable
def vespo(
    log_ratio, scores: Scores, batch: Batch, *, positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
):  # fmt: skip
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
    log_ratio, scores: Scores, batch: Batch, *, low: float = 0.2, high: float = 0.2, low_gradient: float = 1.0,
    high_gradient: float = 1.0, dual: float | None = None,
):  # fmt: skip
    """The clip whose clipped tokens keep a gradient, as large as at the bound times a factor.

    The loss is -f r A with f = `low_gradient` (1 - low) / sg(r) where A < 0 and r < 1 - low, `high_gradient` (1 + high) / sg(r)
    where A > 0 and r > 1 + high, and 1 elsewhere. With both factors 0 the gradient is that of `clip`.

    Args:
      low_gradient: beta_1, what is left at clipped tokens of negative advantage: more of it lowers the entropy.
      high_gradient: beta_2, what is left at clipped tokens of positive advantage: more of it raises the entropy.
      dual: as in `clip`; beyond it there is no gradient.

    Raises ValueError: `dual` is 1 or less.
    Source: GPPO, https://arxiv.org/abs/2508.07629 (both factors 1); CE-GPPO, https://arxiv.org/abs/2509.20712
    """
    ratio, advantage = jnp.exp(log_ratio), batch.advantage
    held = jax.lax.stop_gradient(ratio)
    below, above = (advantage < 0) & (ratio < 1.0 - low), (advantage > 0) & (ratio > 1.0 + high)
    factor = jnp.where(below, low_gradient * (1.0 - low) / held, jnp.where(above, high_gradient * (1.0 + high) / held, 1.0))
    return dual_clipped_loss(factor * ratio * advantage, advantage, dual)


@composable
def shaped(log_ratio, scores: Scores, batch: Batch, *, gamma: float = 0.1):
    """-A r / (r + `gamma`): a bounded ratio whose gradient is largest at tokens of small probability.

    Raises ValueError: `gamma` is 0 or less.
    Source: LUFFY, https://arxiv.org/abs/2504.14945, for demonstrations, with the ratio `likelihood`; also ICPO,
      https://arxiv.org/abs/2510.26519
    """
    require(gamma > 0, "gamma", gamma, "above 0")
    ratio = jnp.exp(log_ratio)
    return -batch.advantage * ratio / (ratio + gamma)


@composable
def tapered(
    log_ratio, scores: Scores, batch: Batch, *, positive: tuple[float, float] = (1.0, 1.0),
    negative: tuple[float, float] = (0.0, 1.0),
):  # fmt: skip
    """-stop_gradient(clip(r, low, high)) A log pi, with bounds of their own for A >= 0 and for A < 0.

    By default the weight of what is good is 1, however unlikely it has become, so that it is imitated; that of what is bad is r
    and at most 1, so that what the policy has left behind is not pushed away for ever.

    Args:
      positive: lower and upper bound of the weight where A >= 0.
      negative: likewise where A < 0.

    Raises ValueError: a lower bound that is negative or above the upper one.
    Source: TOPR, https://arxiv.org/abs/2503.14286, with the ratio of whole answers
    """
    for name, (low, high) in (("positive", positive), ("negative", negative)):
        require(0 <= low <= high, name, (low, high), "two bounds of a weight, 0 or more and in order")
    ratio, good = jnp.exp(log_ratio), batch.advantage >= 0
    weight = jnp.where(good, jnp.clip(ratio, *positive), jnp.clip(ratio, *negative))
    return -jax.lax.stop_gradient(weight) * batch.advantage * scores.logp


@composable
def discovered_drift(log_ratio, scores: Scores, batch: Batch, *, alpha: float = 2.0, beta: float = 0.6):
    """-(r A - f), with the drift f(r, A) that was found by meta-learning and written down in closed form.

    With x = (r - 1) A and y = A log r: f = max(x - alpha tanh(x / alpha), 0) where A >= 0, and
    max(y - beta tanh(y / beta), 0) elsewhere. At r = 1 the gradient is that of r A.

    Args:
      alpha: where A >= 0; r A - f is at most A + alpha.
      beta: where A < 0.

    Raises ValueError: `alpha` or `beta` is not above 0.
    Source: Discovered Policy Optimisation, https://arxiv.org/abs/2210.05639
    """
    if alpha <= 0 or beta <= 0:
        raise ValueError(f"alpha={alpha}, beta={beta}: both must be above 0")
    ratio, advantage = jnp.exp(log_ratio), batch.advantage
    change, fall = (ratio - 1.0) * advantage, log_ratio * advantage
    # r A - f, without the difference of two numbers that may be as large as exp(20).
    rising = advantage + jnp.minimum(change, alpha * jnp.tanh(change / alpha))
    falling = ratio * advantage - jnp.maximum(fall - beta * jnp.tanh(fall / beta), 0.0)
    return -jnp.where(advantage >= 0, rising, falling)


DIRECTIONS, STYLES = ("reverse", "forward"), ("reinforce", "differentiable")


@composable
def rpg(
    log_ratio, scores: Scores, batch: Batch, *, beta: float = 1e-4, direction: str = "reverse", normalised: bool = False,
    style: str = "reinforce", low: float = 0.2, high: float = 0.28, dual: float | None = 10.0,
):  # fmt: skip
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

    Raises ValueError: an unknown direction or style, or a bad `dual`.
    Source: RPG, https://arxiv.org/abs/2505.17508, tables 1 and 2, section 3.3
    """
    require(direction in DIRECTIONS, "direction", direction, f"one of {DIRECTIONS}")
    require(style in STYLES, "style", style, f"one of {STYLES}")
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
