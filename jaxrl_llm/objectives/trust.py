"""Trust regions: `(log_ratio, scores, batch) -> token loss` [B, T], each the negative of what is maximised."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.types import Batch, Scores


@composable
def clip(log_ratio, scores: Scores, batch: Batch, *, low: float = 0.2, high: float = 0.2, dual: float | None = None):
    """-min(r A, clip(r, 1 - low, 1 + high) A); with `dual` = c > 1, at most -c A where A < 0.

    Raises:
      ValueError: `dual` is 1 or less.

    Source: PPO, https://arxiv.org/abs/1707.06347; dual clip, https://arxiv.org/abs/1912.09729; asymmetric bounds
      ("clip-higher"), DAPO, https://arxiv.org/abs/2503.14476
    """
    del scores
    if dual is not None and dual <= 1:
        raise ValueError(f"dual is {dual}; it must be above 1, or None for no dual clip")
    ratio, advantage = jnp.exp(log_ratio), batch.advantage
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - low, 1.0 + high) * advantage)
    if dual is not None:
        surrogate = jnp.where(advantage < 0, jnp.maximum(surrogate, dual * advantage), surrogate)
    return -surrogate


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

    Args:
      high: the weight is at most 1 + high (an offset from 1, not the bound itself).
      low: the weight is at least 1 - low; no lower bound by default, as in the paper's experiments.

    Source: MiniMax-M1, equations 4 and 5, https://arxiv.org/abs/2506.13585
    """
    lower = None if low is None else 1.0 - low
    weight = jax.lax.stop_gradient(jnp.clip(jnp.exp(log_ratio), lower, 1.0 + high))
    return -weight * batch.advantage * scores.logp
