"""Mirror learning: what keeps the policy near is a drift that is taken off the surrogate, not a clip of the ratio."""

import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.types import Batch, Scores


@composable
def discovered_drift(log_ratio, scores: Scores, batch: Batch, *, alpha: float = 2.0, beta: float = 0.6):
    """-(r A - f), with the drift f(r, A) that was found by meta-learning and written down in closed form.

    With x = (r - 1) A and y = A log r: f = max(x - alpha tanh(x / alpha), 0) where A >= 0, and
    max(y - beta tanh(y / beta), 0) elsewhere. At r = 1 the gradient is that of r A.

    Args:
      alpha: where A >= 0; r A - f is at most A + alpha.
      beta: where A < 0.

    Raises:
      ValueError: `alpha` or `beta` is not above 0.

    Source: Discovered Policy Optimisation, https://arxiv.org/abs/2210.05639
    """
    del scores
    if alpha <= 0 or beta <= 0:
        raise ValueError(f"alpha={alpha}, beta={beta}: both must be above 0")
    ratio, advantage = jnp.exp(log_ratio), batch.advantage
    change, fall = (ratio - 1.0) * advantage, log_ratio * advantage
    # r A - f, without the difference of two numbers that may be as large as exp(20).
    rising = advantage + jnp.minimum(change, alpha * jnp.tanh(change / alpha))
    falling = ratio * advantage - jnp.maximum(fall - beta * jnp.tanh(fall / beta), 0.0)
    return -jnp.where(advantage >= 0, rising, falling)
