"""The estimator: a pair `(init, update)` in the manner of optax, and its combinator `chain`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Concatenate, overload

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, Factory, Names, Options, declared, factory_of, outstanding
from jaxrl_llm.numerics import keep_finite
from jaxrl_llm.types import Rollouts, missing


def no_steps(**options):
    """State of an estimator that counts the steps."""
    return jnp.zeros((), jnp.int32)


@dataclasses.dataclass(frozen=True)
class Estimator:
    """A transformation of rollouts with explicit state."""

    init: Callable[[], Any]  # `init() -> state`, a pytree of arrays
    # `update(rollouts, state, key) -> (rollouts, state)`, pure and jittable; it sees the whole step
    update: Callable[[Rollouts, Any, jax.Array], tuple[Rollouts, Any]]
    parts: tuple[Any, ...] = ()  # the functions it is made of, for printing and for what they need

    @property
    def annotations(self) -> frozenset[str]:
        """Arrays in `rollouts.extras` that must be there before `update`, such as "reference_logp"."""
        return outstanding(self.parts)

    @property
    def provides(self) -> frozenset[str]:
        """Arrays in `rollouts.extras` that `update` adds, such as "returns"."""
        return declared(self.parts, "provides")

    def __repr__(self) -> str:
        inner = ", ".join(repr(part) for part in self.parts)
        return inner if len(self.parts) == 1 else f"chain({inner})"


_Function = Callable[Concatenate[Rollouts, Options], Rollouts]


@overload
def stateless(function: _Function[Options], /) -> Factory[Options, Estimator]: ...
@overload
def stateless(
    *, annotations: Names = (), provides: Names = ()
) -> Callable[[_Function[Options]], Factory[Options, Estimator]]: ...
def stateless(function: Any = None, *, annotations: Names = (), provides: Names = ()) -> Any:
    """Decorator: a pure function `f(rollouts, **options) -> rollouts` becomes a factory of estimators."""
    if function is None:
        return functools.partial(stateless, annotations=annotations, provides=provides)

    def build(bound: Composable) -> Estimator:
        return Estimator(init=tuple, update=Composable(_keeping_nothing, (("function", bound),)), parts=(bound,))

    return factory_of(function, build, annotations=annotations, provides=provides)


_Stepping = Callable[Concatenate[Rollouts, Any, Any, Options], tuple[Rollouts, Any]]


def stateful(
    init: Callable[..., Any] = lambda **options: (), *, annotations: Names = (), provides: Names = ()
) -> Callable[[_Stepping[Options]], Factory[Options, Estimator]]:
    """Decorator: `f(rollouts, state, key, **options) -> (rollouts, state)` becomes a factory of estimators.

    Args:
      init: `init(**options) -> state` before the first step, a pytree of arrays; no state by default, for functions that
        only draw from the key.
      annotations, provides: as in `composable`.
    """

    def build(bound: Composable) -> Estimator:
        update = Composable(_keeping_finite, (("function", bound),))
        return Estimator(init=Composable(init, bound.options), update=update, parts=(bound,))

    return lambda function: factory_of(function, build, annotations=annotations, provides=provides)


# Updates are hashable, as composables of these functions, so that equal estimators share one compiled program.


def _keeping_nothing(rollouts, state, key, *, function: Composable):
    return _with_inputs(function, rollouts), state


def _keeping_finite(rollouts, state, key, *, function: Composable):
    """No step makes a state NaN or infinite: it stays what it was."""
    rollouts, new_state = _with_inputs(function, rollouts, state, key)
    return rollouts, keep_finite(new_state, state)


def _with_inputs(function: Composable, rollouts: Rollouts, *arguments):
    """What the function says, which first refuses impossible options; where its inputs are missing, the refusal of that."""
    try:
        found = function(rollouts, *arguments)
    except (KeyError, TypeError, AttributeError):
        _refuse_missing(rollouts, function)
        raise
    _refuse_missing(rollouts, function)
    return found


def _refuse_missing(rollouts: Rollouts, function: Composable) -> None:
    for name in missing(rollouts, function.annotations):
        place = f"rollouts.{name}" if hasattr(rollouts, name) else f"rollouts.extras[{name!r}]"
        raise ValueError(f"{function!r} needs {place}, which is missing; fill it before the estimator runs")


def states_of(*estimators: Estimator) -> Composable:
    """The `init` of an estimator that is made of others: the tuple of their states."""
    return Composable(_states, (("estimators", estimators),))


def _states(*, estimators: tuple[Estimator, ...]):
    return tuple(estimator.init() for estimator in estimators)


def _in_turn(rollouts, state, key, *, estimators: tuple[Estimator, ...]):
    states = []
    for number, (estimator, inner) in enumerate(zip(estimators, state, strict=True)):
        rollouts, inner = estimator.update(rollouts, inner, jax.random.fold_in(key, number))
        states.append(inner)
    return rollouts, tuple(states)


def chain(*estimators: Estimator) -> Estimator:
    """Applies estimators in order; the state is the tuple of their states.

    Example:
      >>> chain(group_advantage(scale=std_scale()), token_mean())
      chain(group_advantage(), token_mean())
    """
    parts = tuple(part for estimator in estimators for part in estimator.parts)
    return Estimator(states_of(*estimators), Composable(_in_turn, (("estimators", estimators),)), parts)
