"""The state of a method in training: that of its strategy, of its estimator and of each of its controllers."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.methods import Method
from jaxrl_llm.numerics import keep_finite
from jaxrl_llm.optimizers import Average, polyak
from jaxrl_llm.types import Rollouts

MethodState = dict[str, Any]


def initial_method_state(method: Method) -> MethodState:
    """State before the first step."""
    controllers = {name: controller.init() for name, controller in method.controllers}
    strategy = () if method.strategy is None else method.strategy.init()
    return jax.tree.map(jnp.asarray, {"strategy": strategy, "estimator": method.estimator.init(), "controllers": controllers})


def make_estimate(method: Method) -> Callable[[Rollouts, MethodState, jax.Array], tuple[Rollouts, MethodState]]:
    """Builds `estimate(rollouts, state, key) -> (rollouts, state)`, compiled."""
    update = jax.jit(method.estimator.update)

    def estimate(rollouts: Rollouts, state: MethodState, key):
        rollouts, estimator = update(rollouts, state["estimator"], key)
        return rollouts, state | {"estimator": estimator}

    return estimate


def coefficients(method: Method, state: MethodState, step: int) -> dict[str, np.ndarray]:
    """The scalars of `batch.coefficients` at a step."""
    found = {name: controller.value(state["controllers"][name], step) for name, controller in method.controllers}
    return {name: np.float32(value) for name, value in found.items()}


def with_strategy_state(method: Method, state: MethodState, found: Any) -> MethodState:
    """The state with what the strategy remembers, host arrays.

    Raises ValueError: the strategy changed the names or shapes of its state, which a checkpoint could not follow.
    """
    before = jax.tree.map(jnp.shape, state["strategy"])
    if (now := jax.tree.map(np.shape, found)) != before:
        raise ValueError(
            f"the state of {method.strategy!r} has become {now}; it must keep the shapes that it began with, {before}"
        )
    return state | {"strategy": jax.tree.map(jnp.asarray, found)}


def after_step(method: Method, before: Any, after: MethodState, metrics: Mapping[str, float]) -> MethodState:
    """The state after a step: with what the controllers saw, or, where no update of the step was finite, that of before it.

    Args:
      method: of the phase.
      before: the state of the estimator before the step, on the host, as updates take buffers over.
      after: the state with which the step was made.
      metrics: of the step.
    """
    if metrics.get("skipped") == 1.0:
        return after | {"estimator": before}
    return observe(method, after, metrics)


def observe(method: Method, state: MethodState, metrics: Mapping[str, float]) -> MethodState:
    """The state after the controllers have seen the metrics of a step; one that would not stay finite stays as it is."""
    own = state["controllers"]
    seen = {name: keep_finite(controller.update(own[name], metrics), own[name]) for name, controller in method.controllers}
    return state | {"controllers": seen}


def moving_reference(method: Method, settings) -> Average | None:
    """How the reference policy follows the policy; None where it stays, or where nobody needs it.

    Args:
      method: of the phase.
      settings: its section "reference", with `every` and `share`.
    """
    return polyak(share=settings.share, every=settings.every) if settings.every and method.needs_reference else None


def reference_params(state, reference):
    """The reference policy: the one of the beginning, or the average in the state where it moves.

    Args:
      state: a `TrainState`; of a policy that is only measured, its parameters.
      reference: the parameters of the beginning.
    """
    moving = getattr(state, "method_state", {}).get("reference")
    return reference if moving is None else moving["average"]
