"""Slow-fast policy optimisation: several steps on one batch, a step back towards the start, one more step from there."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def slow_fast(update: Callable, *, fast_steps: int = 3, reposition: float | str = 0.5) -> Callable:
    """Wraps `update(state, batch, frozen=None) -> (state, metrics)`, such as one of `training.make_update`.

    theta_1..K by K = `fast_steps` updates on the batch; theta' = theta_0 + a (theta_K - theta_0); then one update at theta'.
    The optimizer's state goes through all of them. With a = 0 the step is the plain update, but for the optimizer's
    state, which has seen the fast steps.

    Args:
      update: pure function; its state has `params` and `step` and can be rebuilt by `replace`.
      fast_steps: K, at least 1.
      reposition: a, or the name of a scalar in `batch.coefficients` that a controller sets.

    Returns:
      An update of the same form that counts as one step; its metrics are those of the last update, at theta', and
      "fast/loss" of the first.

    Raises:
      ValueError: `fast_steps` is below 1.

    Source: SFPO, https://arxiv.org/abs/2510.04072
    """
    if fast_steps < 1:
        raise ValueError(f"fast_steps is {fast_steps}; it must be at least 1")

    def wrapped(state, batch, frozen=None):
        fast, first = update(state, batch, frozen)
        if fast_steps > 1:
            fast = jax.lax.fori_loop(1, fast_steps, lambda _, fast: update(fast, batch, frozen)[0], fast)
        back = batch.coefficients[reposition] if isinstance(reposition, str) else reposition
        moved = jax.tree.map(lambda end, start: (start + back * (end - start)).astype(start.dtype), fast.params, state.params)
        slow, metrics = update(fast.replace(params=moved), batch, frozen)
        return slow.replace(step=jnp.asarray(state.step) + 1), metrics | {"fast/loss": first["loss"]}

    return wrapped
