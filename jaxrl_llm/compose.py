"""Functions with options as named, hashable, printable values.

Every slot of a method (a trust region, a ratio, a baseline) is a plain function of arrays with keyword-only
options. `composable` turns such a function into a factory: calling it with options gives a value that can be
compared, hashed (so that it may be a static argument of `jax.jit`), printed as the code that makes it, and called.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Composable:
    """A function together with its options; equal when function and options are equal.

    Attributes:
      function: a pure function of arrays with keyword-only options.
      options: every keyword-only option with its value, defaults included, in the order of the signature.
      needs: statistics that a scorer must return for this function, such as "entropy".
      annotations: per-token arrays that the batch must carry, such as "reference_logp".
    """

    function: Callable[..., Any]
    options: tuple[tuple[str, Any], ...] = ()
    needs: frozenset[str] = frozenset()
    annotations: frozenset[str] = frozenset()

    def __call__(self, *arguments):
        return self.function(*arguments, **dict(self.options))

    def __repr__(self) -> str:
        defaults = keyword_defaults(self.function)
        shown = [f"{name}={value!r}" for name, value in self.options if value != defaults.get(name, inspect.Parameter.empty)]
        return f"{self.function.__name__}({', '.join(shown)})"


def keyword_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only options of `function` with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def declared(values, attribute: str) -> frozenset[str]:
    """Union of `attribute` ("needs" or "annotations") over those `values`, nested tuples included, that declare it."""
    found = frozenset()
    for value in values:
        nested = declared(value, attribute) if isinstance(value, tuple) else getattr(value, attribute, frozenset())
        found |= nested
    return found


def bind(function: Callable[..., Any], options: dict[str, Any], needs=(), annotations=()) -> Composable:
    """Binds `options` to `function`, with its defaults filled in.

    Raises:
      TypeError: an option that `function` does not have; the message lists those it has.
    """
    defaults = keyword_defaults(function)
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise TypeError(f"{function.__name__}: unknown option {unknown[0]!r}; it takes {sorted(defaults) or 'no options'}")
    bound = tuple((name, options.get(name, default)) for name, default in defaults.items())
    missing = [name for name, value in bound if value is inspect.Parameter.empty]
    if missing:
        raise TypeError(f"{function.__name__}: option {missing[0]!r} has no default and must be given")
    values = [value for _, value in bound]
    return Composable(
        function,
        bound,
        frozenset(needs) | declared(values, "needs"),
        frozenset(annotations) | declared(values, "annotations"),
    )


def composable(function=None, *, needs=(), annotations=()):
    """Decorator: `f(*arrays, **options)` becomes a factory `f(**options) -> Composable`.

    The undecorated function stays at hand as `f.function`.

    Example:
      >>> @composable
      ... def scaled(x, *, factor=2.0):
      ...     return factor * x
      >>> scaled(factor=3.0)
      scaled(factor=3.0)
      >>> scaled(factor=3.0)(2.0)
      6.0
    """
    if function is None:
        return functools.partial(composable, needs=needs, annotations=annotations)

    @functools.wraps(function)
    def factory(**options):
        return bind(function, options, needs, annotations)

    factory.function = function
    return factory
