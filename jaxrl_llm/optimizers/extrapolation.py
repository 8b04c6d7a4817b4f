"""Accelerated preference optimisation: Nesterov's extrapolation between iterations of an iterated method."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class ExtrapolationState(NamedTuple):
    """State of the extrapolation.

    Attributes:
      earlier: parameters at the end of the iteration before, before their extrapolation.
      count: int32 [], steps done.
    """

    earlier: Any
    count: jax.Array


def extrapolate_every(every: int, *, share: float = 0.3) -> optax.GradientTransformation:
    """Every `every` steps, params <- new + share (new - new of the iteration before); to be chained last.

    An iteration is `every` steps against one reference policy; after it the extrapolated policy is the next reference and
    the next sampler. Share 0 is the plain iterated method.

    Args:
      every: steps of an iteration.
      share: alpha.

    Raises:
      ValueError: `every` is below 1.

    Source: https://arxiv.org/abs/2410.06293; that the practical step is one on parameters could not be confirmed
    """
    if every < 1:
        raise ValueError(f"every is {every} steps; it must be at least 1")

    def init(params):
        return ExtrapolationState(jax.tree.map(jnp.array, params), jnp.zeros((), jnp.int32))

    def update(updates, state: ExtrapolationState, params=None):
        if params is None:
            raise ValueError("extrapolate_every needs the parameters: call update(updates, state, params)")
        count = state.count + 1
        ends = count % every == 0
        reached = optax.apply_updates(params, updates)
        beyond = jax.tree.map(lambda new, old: jnp.where(ends, share * (new - old), 0.0), reached, state.earlier)
        earlier = jax.tree.map(lambda new, old: jnp.where(ends, new, old), reached, state.earlier)
        return jax.tree.map(jnp.add, updates, beyond), ExtrapolationState(earlier, count)

    return optax.GradientTransformation(init, update)
