"""Trust regions: `(log_ratio, scores, batch) -> token loss` [B, T], each the negative of what is maximised."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.types import Batch, Scores


def clipped_loss(ratio, advantage, lower, upper, dual: float | None = None):
    """-min(r A, clip(r, `lower`, `upper`) A) under the dual clip. Bounds may differ by token."""
    return dual_clipped_loss(jnp.minimum(ratio * advantage, jnp.clip(ratio, lower, upper) * advantage), advantage, dual)


def dual_clipped_loss(surrogate, advantage, dual: float | None):
    """-`surrogate`; with `dual` = c, at most -c A where A < 0.

    Raises:
      ValueError: `dual` is 1 or less.
    """
    if dual is None:
        return -surrogate
    if dual <= 1:
        raise ValueError(f"dual is {dual}; it must be above 1, or None for no dual clip")
    return -jnp.where(advantage < 0, jnp.maximum(surrogate, dual * advantage), surrogate)


@composable
def clip(log_ratio, scores: Scores, batch: Batch, *, low: float = 0.2, high: float = 0.2, dual: float | None = None):
    """-min(r A, clip(r, 1 - low, 1 + high) A); with `dual` = c > 1, at most -c A where A < 0.

    The "two-sided clip" of INTELLECT-2 and of TRL's `delta`, -min(min(r, d) A, clip(r) A) with d above 1 + `high`, is the
    dual clip with c = d.

    Raises:
      ValueError: `dual` is 1 or less.

    Source: PPO, https://arxiv.org/abs/1707.06347; dual clip, https://arxiv.org/abs/1912.09729; asymmetric bounds
      ("clip-higher"), DAPO, https://arxiv.org/abs/2503.14476; INTELLECT-2, https://arxiv.org/abs/2505.07291
    """
    del scores
    return clipped_loss(jnp.exp(log_ratio), batch.advantage, 1.0 - low, 1.0 + high, dual)


@composable
def unclipped(log_ratio, scores: Scores, batch: Batch):
    """-r A, the importance-weighted surrogate without any bound."""
    del scores
    return -jnp.exp(log_ratio) * batch.advantage


@composable
def score_function(log_ratio, scores: Scores, batch: Batch):
    """-A log pi: the likelihood-ratio gradient of an on-policy sample; the ratio has no part in it.

    Source: REINFORCE, https://doi.org/10.1007/BF00992696
    """
    del log_ratio
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

    Raises:
      ValueError: `cap` is 1 or less.

    Source: ASPO, https://arxiv.org/abs/2510.06062
    """
    if cap <= 1:
        raise ValueError(f"cap is {cap}; it must be above 1")
    ratio, advantage = jnp.exp(log_ratio), batch.advantage
    bounded = jnp.minimum(ratio, 1.0 + high)
    held = jax.lax.stop_gradient(bounded)
    surrogate = jnp.where(advantage > 0, bounded / held**2, jnp.maximum(ratio, 1.0 - low)) * advantage
    weight = jnp.where(advantage > 0, 1.0 / held, ratio)
    return -jnp.where(weight > cap, cap * advantage * scores.logp, surrogate)
