"""The strategy: a pair `(init, run)`, as an estimator is one, that says what is sampled and what of it is kept."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Concatenate, overload

from jaxrl_llm.compose import Composable, Factory, Names, Options, bind, factory_of

Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A way to fill a step, with explicit state."""

    init: Callable[[], Any]  # `init() -> state`, a pytree of arrays of fixed size; it stands in the checkpoint
    # `run(io, state, prompts) -> (Collection, state, metrics)`, see `rollouts.Io`; the state comes and goes as arrays of the
    # host
    run: Callable[..., tuple[Any, Any, Metrics]]
    function: Composable  # what it is made of, for printing, its options and what it needs

    @property
    def annotations(self) -> frozenset[str]:
        """What it asks for: "reference_samples" for answers of the reference policy, "behavior_entropy" of the sampler..."""
        return self.function.annotations

    @property
    def provides(self) -> frozenset[str]:
        """Arrays in `rollouts.extras` that it adds, and kinds of rows."""
        return self.function.provides

    @property
    def options(self) -> dict[str, Any]:
        """Its options by name."""
        return dict(self.function.options)

    def __repr__(self) -> str:
        return repr(self.function)


def _keeping_nothing(io, state, prompts: int, *, function: Composable):
    collection, metrics = function(io, prompts)
    return collection, state, metrics


_Function = Callable[Concatenate[Any, Any, Options], tuple[Any, Metrics]]


@overload
def stateless_strategy(function: _Function[Options], /) -> Factory[Options, Strategy]: ...
@overload
def stateless_strategy(
    *, annotations: Names = (), provides: Names = ()
) -> Callable[[_Function[Options]], Factory[Options, Strategy]]: ...
def stateless_strategy(function: Any = None, *, annotations: Names = (), provides: Names = ()) -> Any:
    """Decorator: `f(io, prompts, **options) -> (Collection, metrics)` becomes a factory of strategies."""
    if function is None:
        return functools.partial(stateless_strategy, annotations=annotations, provides=provides)

    def build(bound: Composable) -> Strategy:
        return Strategy(init=tuple, run=bind(_keeping_nothing, {"function": bound}), function=bound)

    return factory_of(function, build, annotations=annotations, provides=provides)


_Stepping = Callable[Concatenate[Any, Any, Any, Options], tuple[Any, Any, Metrics]]


def stateful_strategy(
    init: Callable[..., Any], *, annotations: Names = (), provides: Names = ()
) -> Callable[[_Stepping[Options]], Factory[Options, Strategy]]:
    """Decorator: `f(io, state, prompts, **options) -> (Collection, state, metrics)` becomes a factory of strategies.

    Args:
      init: `init(**options) -> state` before the first step, a pytree of arrays whose sizes never change.
      annotations, provides: as in `composable`.
    """

    def build(bound: Composable) -> Strategy:
        return Strategy(init=Composable(init, bound.options), run=bound, function=bound)

    return lambda function: factory_of(function, build, annotations=annotations, provides=provides)
