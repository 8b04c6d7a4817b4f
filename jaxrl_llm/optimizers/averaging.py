"""Averages of parameters over training: moving reference policies, and policies that are better than the last iterate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Average(NamedTuple):
    """A pair in the manner of optax.

    Attributes:
      init: `init(params) -> state`.
      update: `update(params, state) -> (average, state)`, after each step.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any], tuple[Any, Any]]


def polyak(*, share: float, every: int = 1) -> Average:
    """average <- share * params + (1 - share) * average at every `every`-th step; share 1 is a periodic copy.

    Args:
      share: of the current parameters, in (0, 1].
      every: steps between two changes.

    Raises:
      ValueError: an impossible share or number of steps.

    Source: TR-DPO, https://arxiv.org/abs/2404.09656, which has share 0.6 every 512 steps
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must be above 0 and at most 1")
    if every < 1:
        raise ValueError(f"every is {every} steps; it must be at least 1")

    def init(params):
        # A copy, as parameters are donated to updates.
        return {"average": jax.tree.map(jnp.array, params), "count": jnp.zeros((), jnp.int32)}

    def update(params, state):
        count = state["count"] + 1
        moved = optax.incremental_update(params, state["average"], share)
        average = optax.periodic_update(moved, state["average"], count, every)
        return average, {"average": average, "count": count}

    return Average(init, update)


def bema(*, power: float = 0.5, bias_power: float = 0.2, lag: float = 1.0, scale: float = 1.0) -> Average:
    """Bias-corrected exponential moving average: EMA + (lag + scale t)^-bias_power (theta - theta_0).

    EMA <- (1 - b) EMA + b theta with b = (lag + scale t)^-power, t = 0 at the first step, whose b is at most 1.

    Args:
      power: kappa; how fast the average grows slower.
      bias_power: eta; how fast the correction fades.
      lag: rho.
      scale: gamma.

    Source: BEMA, https://arxiv.org/abs/2508.00180, algorithm 1
    """

    def init(params):
        def copy():
            return jax.tree.map(jnp.array, params)

        return {"start": copy(), "average": copy(), "count": jnp.zeros((), jnp.int32)}

    def update(params, state):
        time = lag + scale * state["count"].astype(jnp.float32)
        share = jnp.minimum(time**-power, 1.0)
        average = jax.tree.map(lambda old, new: (1.0 - share) * old + share * new, state["average"], params)
        corrected = jax.tree.map(
            lambda mean, new, start: (mean + time**-bias_power * (new - start)).astype(new.dtype),
            average,
            params,
            state["start"],
        )
        average = jax.tree.map(lambda mean, new: mean.astype(new.dtype), average, params)
        return corrected, state | {"average": average, "count": state["count"] + 1}

    return Average(init, update)
