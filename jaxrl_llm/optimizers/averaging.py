"""Averages of parameters, extrapolation between iterations, and several fast steps on one batch with a step back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_llm.compose import require


class Average(NamedTuple):
    """A pair in the manner of optax."""

    init: Callable[[Any], Any]  # `init(params) -> state`
    update: Callable[[Any, Any], tuple[Any, Any]]  # `update(params, state) -> (average, state)`, after each step


def polyak(*, share: float, every: int = 1) -> Average:
    """average <- share * params + (1 - share) * average at every `every`-th step; share 1 is a periodic copy.

    Args:
      share: of the current parameters, in (0, 1].
      every: steps between two changes.

    Raises ValueError: an impossible share or number of steps.
    Source: TR-DPO, https://arxiv.org/abs/2404.09656, which has share 0.6 every 512 steps
    """
    require(0 < share <= 1, "share", share, "above 0 and at most 1")
    require(every >= 1, "every", every, "at least 1 step")

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
        start, average = (jax.tree.map(jnp.array, params) for _ in range(2))
        return {"start": start, "average": average, "count": jnp.zeros((), jnp.int32)}

    def update(params, state):
        def towards(mean, new, start):
            return (mean + time**-bias_power * (new - start)).astype(new.dtype)

        time = lag + scale * state["count"].astype(jnp.float32)
        share = jnp.minimum(time**-power, 1.0)
        average = jax.tree.map(lambda old, new: (1.0 - share) * old + share * new, state["average"], params)
        corrected = jax.tree.map(towards, average, params, state["start"])
        average = jax.tree.map(lambda mean, new: mean.astype(new.dtype), average, params)
        return corrected, state | {"average": average, "count": state["count"] + 1}

    return Average(init, update)


class ExtrapolationState(NamedTuple):
    """State of the extrapolation."""

    earlier: Any  # parameters at the end of the iteration before, before their extrapolation
    count: jax.Array  # int32 [], steps done


def extrapolate_every(every: int, *, share: float = 0.3) -> optax.GradientTransformation:
    """Every `every` steps, params <- new + share (new - new of the iteration before); to be chained last.

    An iteration is `every` steps against one reference policy; after it the extrapolated policy is the next reference and
    the next sampler. Share 0 is the plain iterated method.

    Raises ValueError: `every` is below 1.
    Source: https://arxiv.org/abs/2410.06293; that the practical step is one on parameters could not be confirmed
    """
    require(every >= 1, "every", every, "at least 1 step")

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


def slow_fast(update: Callable, *, fast_steps: int = 3, reposition: float | str = 0.5) -> Callable:
    """Wraps `update(state, batch, frozen=None) -> (state, metrics)`, such as one of `training.make_update`.

    theta_1..K by K = `fast_steps` updates on the batch; theta' = theta_0 + a (theta_K - theta_0); then one update at theta'.
    The optimizer's state goes through all of them. With a = 0 the step is the plain update, but for the optimizer's
    state, which has seen the fast steps.

    Args:
      update: pure function; its state has `params` and `step` and can be rebuilt by `replace`.
      fast_steps: K, at least 1.
      reposition: a, or the name of a scalar in `batch.coefficients` that a controller sets.

    Returns: An update of the same form that counts as one step; its metrics are those of the last update, at theta', and
      "fast/loss" of the first.
    Raises ValueError: `fast_steps` is below 1.
    Source: SFPO, https://arxiv.org/abs/2510.04072
    """
    require(fast_steps >= 1, "fast_steps", fast_steps, "at least 1")

    def wrapped(state, batch, frozen=None):
        fast, first = update(state, batch, frozen)
        if fast_steps > 1:
            fast = jax.lax.fori_loop(1, fast_steps, lambda _, fast: update(fast, batch, frozen)[0], fast)
        back = batch.coefficients[reposition] if isinstance(reposition, str) else reposition
        moved = jax.tree.map(lambda end, start: (start + back * (end - start)).astype(start.dtype), fast.params, state.params)
        slow, metrics = update(fast.replace(params=moved), batch, frozen)
        return slow.replace(step=jnp.asarray(state.step) + 1), metrics | {"fast/loss": first["loss"]}

    return wrapped
