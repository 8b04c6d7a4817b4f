"""Losses of a critic."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from jaxrl_llm.compose import composable
from jaxrl_llm.numerics import masked
from jaxrl_llm.types import Batch, Scores


@composable(needs=("value",), annotations=("returns", "behavior_value"))
def value_loss(
    scores: Scores,
    batch: Batch,
    *,
    coefficient: float = 0.5,
    clip: float | None = 0.2,
    huber: float | None = None,
):
    """`coefficient` times the error of the critic at each action.

    The error is (V - R)^2, or with `huber` = d the Huber loss of V - R with threshold d (which is half the square near
    0). With `clip` = c it is the larger of the errors of V and of V_old + clip(V - V_old, -c, c).

    Args:
      coefficient: factor of the whole term.
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
