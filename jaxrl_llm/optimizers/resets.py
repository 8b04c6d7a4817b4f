"""Soft resets: from time to time parameters go a part of the way back to where they began."""

import jax
import jax.numpy as jnp
import optax


def soft_reset(
    transform: optax.GradientTransformation, *, every: int, largest: float = 0.5, threshold: float = 0.025
) -> optax.GradientTransformationExtraArgs:
    """Every `every` steps, behind the step of `transform`: params <- params + eta (start - params).

    eta = min(share of dormant entries, `largest`); an entry is dormant where its gradient is at most `threshold` times the mean
    size of its leaf's. A gradient of 0 everywhere resets as much as is allowed.

    Args:
      transform: any.
      every: steps between two resets.
      largest: part of the way, from 0 to 1.
      threshold: as above.

    Raises ValueError: an impossible number.
    Source: ACE, https://arxiv.org/abs/2402.14528, whose resets go towards newly drawn parameters and look at gradients too;
      here they go towards those with which the phase began
    """
    if every < 1 or not 0 <= largest <= 1:
        raise ValueError(f"every={every}, largest={largest}: give a step of at least 1 and a part from 0 to 1")
    inner = optax.with_extra_args_support(transform)

    def init(params):
        start = jax.tree.map(jnp.array, params)
        return {"inner": inner.init(params), "start": start, "count": jnp.zeros((), jnp.int32)}

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("soft_reset needs the parameters: call update(updates, state, params)")
        dormant, entries = 0.0, 0
        for leaf in jax.tree.leaves(updates):
            size = jnp.abs(leaf.astype(jnp.float32))
            dormant += jnp.sum(size <= threshold * size.mean(), dtype=jnp.float32)
            entries += leaf.size
        count = state["count"] + 1
        part = jnp.where(count % every == 0, jnp.minimum(dormant / entries, largest), 0.0)
        found, inner_state = inner.update(updates, state["inner"], params, **extra)
        reached = optax.apply_updates(params, found)
        found = jax.tree.map(
            lambda move, start, end: (move + part * (start - end)).astype(move.dtype), found, state["start"], reached
        )
        return found, {"inner": inner_state, "start": state["start"], "count": count}

    return optax.GradientTransformationExtraArgs(init, update)
