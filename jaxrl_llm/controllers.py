"""Controllers: scalars that change from step to step, by a schedule or by what was measured, with explicit state.

A controller is a pair of functions around a small state, which is part of the method's state in the checkpoint:
`value(state, step)` is the scalar that stands in `batch.coefficients` at a step, and `update(state, metrics)` takes in what
the step measured. All of it is pure; a changed scalar never recompiles the update.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from jaxrl_llm.compose import Composable, bind


@dataclasses.dataclass(frozen=True)
class Controller:
    """One scalar of `batch.coefficients`.

    Attributes:
      init: `init() -> state`, a pytree of arrays.
      value: `value(state, step) -> float32 []`.
      update: `update(state, metrics) -> state`, from the metrics of a step.
      made_by: the function and options it comes from, for printing.
    """

    init: Callable[[], Any]
    value: Callable[[Any, Any], Any]
    update: Callable[[Any, Mapping[str, Any]], Any]
    made_by: Composable

    def __repr__(self) -> str:
        return repr(self.made_by)


def controlled(*, init=None, update=None):
    """Decorator: `value(state, step, **options)` becomes a factory of controllers.

    Args:
      init: `init(**options) -> state`; no state by default.
      update: `update(state, metrics, **options) -> state`; the state stays as it is by default.
    """

    def decorate(value):
        def factory(**options) -> Controller:
            bound = bind(value, options)
            return Controller(
                init=Composable(init or _no_state, bound.options),
                value=bound,
                update=Composable(update or _unchanged, bound.options),
                made_by=bound,
            )

        factory.__name__, factory.__doc__, factory.function = value.__name__, value.__doc__, value
        return factory

    return decorate


def _no_state(**options) -> tuple:
    return ()


def _unchanged(state, metrics, **options):
    return state


@controlled()
def scheduled(state, step, *, schedule: Callable[[Any], Any]):
    """The value of a schedule, such as those of optax, at the step.

    Args:
      schedule: step -> number; a composable one, so that equal methods stay equal.
    """
    return jnp.asarray(schedule(step), jnp.float32)
