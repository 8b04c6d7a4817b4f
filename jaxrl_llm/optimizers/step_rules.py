"""Rules in place of Adam: step sizes from the distance to the best reward, and momentum of gradients at a look-ahead."""

import jax
import jax.numpy as jnp
import optax

from jaxrl_llm.compose import require
from jaxrl_llm.numerics import safe_divide


def polyak_step(largest: optax.Schedule, *, best: float = 1.0, epsilon: float = 1e-8) -> optax.GradientTransformationExtraArgs:
    """Gradient steps of size min((best - J)_+ / (|g|^2 + epsilon), largest), J being the mean reward of the step.

    Args:
      largest: bound of the step size, by the number of the step.
      best: the reward that is within reach, 1 where answers are right or wrong.
      epsilon: keeps the division finite, above 0.

    Raises ValueError: `epsilon` is 0 or less; in `update`, the batch does not say the reward, `batch.coefficients["reward"]`.
    Source: https://arxiv.org/abs/2404.07525
    """
    require(epsilon > 0, "epsilon", epsilon, "above 0")

    def init(params):
        return {"count": jnp.zeros((), jnp.int32)}

    def update(updates, state, params=None, *, batch=None, **extra):
        del params, extra
        if batch is None or "reward" not in batch.coefficients:
            raise ValueError("polyak_step needs batch.coefficients['reward'], the mean reward of the step")
        gap = jnp.maximum(best - batch.coefficients["reward"], 0.0)
        size = jnp.minimum(gap / (optax.tree.norm(updates, squared=True) + epsilon), largest(state["count"]))
        return jax.tree.map(lambda leaf: (-size * leaf).astype(leaf.dtype), updates), {"count": state["count"] + 1}

    return optax.GradientTransformationExtraArgs(init, update)


def implicit_transport(size: optax.Schedule, *, share: float = 0.1) -> optax.GradientTransformation:
    """Normalised momentum whose gradients are those of a look-ahead, so that old ones need no correction.

    d <- (1 - share) d + share g(theta'), theta_next = theta - size d / |d|,
    theta'_next = theta_next + (1 - share) / share (theta_next - theta).

    The parameters of the run are the look-ahead theta', which therefore samples, is measured and is what a run ends with.

    Args:
      size: of a step, by its number.
      share: eta, of the new gradient, in (0, 1]; 1 is normalised gradient descent.

    Raises ValueError: an impossible share.
    Source: N-PG-IGT, https://arxiv.org/abs/2302.01734, algorithm 1, with a share and a size that do not depend on the step
    """
    require(0 < share <= 1, "share", share, "above 0 and at most 1")
    ahead = (1.0 - share) / share

    def init(params):
        momentum = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.promote_types(leaf.dtype, jnp.float32)), params)
        start = jax.tree.map(jnp.array, params)
        return {"momentum": momentum, "start": start, "count": jnp.zeros((), jnp.int32)}

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("implicit_transport needs the parameters: call update(updates, state, params)")
        own = jnp.where(state["count"] == 0, 1.0, share)
        momentum = jax.tree.map(lambda old, new: (1.0 - own) * old + own * new, state["momentum"], updates)
        factor = -safe_divide(size(state["count"]), optax.tree.norm(momentum))
        moved = jax.tree.map(lambda leaf: factor * leaf, momentum)
        start = jax.tree.map(lambda leaf, move: (leaf + move).astype(leaf.dtype), state["start"], moved)
        found = jax.tree.map(lambda leaf, move, now: (leaf + ahead * move - now).astype(now.dtype), start, moved, params)
        return found, {"momentum": momentum, "start": start, "count": state["count"] + 1}

    return optax.GradientTransformation(init, update)
