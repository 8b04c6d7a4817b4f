"""Functions with options as named, hashable, printable values.

Every slot of a method (a trust region, a ratio, a baseline) is a plain function of arrays with keyword-only
options. `composable` turns such a function into a factory: calling it with options gives a value that can be
compared, hashed (so that it may be a static argument of `jax.jit`), printed as the code that makes it, and called.
"""

import dataclasses
import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

Options = ParamSpec("Options")  # keyword-only, and what a factory takes
Made = TypeVar("Made", covariant=True)
Names = Iterable[str] | Callable[[dict[str, Any]], Iterable[str]]  # of arrays, or what says them of the options


@dataclasses.dataclass(frozen=True)
class Composable:
    """A function together with its options; equal when function and options are equal."""

    function: Callable[..., Any]  # a pure function of arrays with keyword-only options
    # every keyword-only option with its value, defaults included, in the order of the signature
    options: tuple[tuple[str, Any], ...] = ()
    needs: frozenset[str] = frozenset()  # statistics that a scorer must return for this function, such as "entropy"
    annotations: frozenset[str] = frozenset()  # arrays that the batch or the rollouts must carry, such as "reference_logp"
    provides: frozenset[str] = frozenset()  # arrays that it adds for what comes after it, such as "returns"
    coupled: bool = False  # whether what it says of a row depends on other rows

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments, **dict(self.options))

    def __repr__(self) -> str:
        defaults = keyword_defaults(self.function)
        shown = [f"{name}={value!r}" for name, value in self.options if value != defaults.get(name, inspect.Parameter.empty)]
        return f"{self.function.__name__}({', '.join(shown)})"


class Factory(Protocol[Options, Made]):
    """What makes a value of options, `clip(high=0.3)`, of the function `f.function`."""

    function: Callable[..., Any]
    __name__: str

    def __call__(self, *nothing: Options.args, **options: Options.kwargs) -> Made: ...


# Functions of one to four arrays: what stands behind them are the options.
_Of1 = Callable[Concatenate[Any, Options], Any]
_Of2 = Callable[Concatenate[Any, Any, Options], Any]
_Of3 = Callable[Concatenate[Any, Any, Any, Options], Any]
_Of4 = Callable[Concatenate[Any, Any, Any, Any, Options], Any]


class _Composing(Protocol):
    @overload
    def __call__(self, function: _Of4[Options], /) -> Factory[Options, Composable]: ...
    @overload
    def __call__(self, function: _Of3[Options], /) -> Factory[Options, Composable]: ...
    @overload
    def __call__(self, function: _Of2[Options], /) -> Factory[Options, Composable]: ...
    @overload
    def __call__(self, function: _Of1[Options], /) -> Factory[Options, Composable]: ...


def keyword_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only options of `function` with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def declared(values: Iterable[Any], attribute: str) -> frozenset[str]:
    """Union of `attribute` ("needs" or "annotations") over those `values`, nested tuples included, that declare it."""
    found = frozenset()
    for value in values:
        nested = declared(value, attribute) if isinstance(value, tuple) else getattr(value, attribute, frozenset())
        found |= nested
    return found


def outstanding(parts: Iterable[Any], attribute: str = "annotations") -> frozenset[str]:
    """Union of `attribute` over `parts` that are run in order, without what an earlier part provides."""
    found, provided = frozenset(), frozenset()
    for part in parts:
        found |= declared((part,), attribute) - provided
        provided |= declared((part,), "provides")
    return found


def any_coupled(values: Iterable[Any]) -> bool:
    """Whether one of `values`, nested tuples included, is coupled."""
    return any(any_coupled(value) if isinstance(value, tuple) else getattr(value, "coupled", False) for value in values)


def bind(
    function: Callable[..., Any], options: dict[str, Any], needs: Names = (), annotations: Names = (), provides: Names = ()
) -> Composable:
    """Binds `options` to `function`, with its defaults filled in.

    `needs`, `annotations` and `provides` are names, or functions from the options to names, as in `composable`.

    Raises:
      TypeError: an option that `function` does not have; the message lists those it has.
      ValueError: a value that is none of those of the option's `Literal`.
    """
    defaults = keyword_defaults(function)
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise TypeError(f"{function.__name__}: unknown option {unknown[0]!r}; it takes {sorted(defaults) or 'no options'}")
    bound = tuple((name, options.get(name, default)) for name, default in defaults.items())
    missing = [name for name, value in bound if value is inspect.Parameter.empty]
    if missing:
        raise TypeError(f"{function.__name__}: option {missing[0]!r} has no default and must be given")
    for name, value in bound:
        choices = typing.get_args(function.__annotations__.get(name))
        if typing.get_origin(function.__annotations__.get(name)) is typing.Literal and value not in choices:
            raise ValueError(f"{function.__name__}: {name} is {value!r}; it must be one of {choices}")
    values = [value for _, value in bound]

    def named(names: Names) -> frozenset[str]:
        return frozenset(names(dict(bound)) if callable(names) else names)

    return Composable(
        function,
        bound,
        named(needs) | declared(values, "needs"),
        named(annotations) | declared(values, "annotations"),
        named(provides),
        getattr(function, "coupled", False) or any_coupled(values),
    )


@overload
def composable(function: _Of4[Options], /) -> Factory[Options, Composable]: ...
@overload
def composable(function: _Of3[Options], /) -> Factory[Options, Composable]: ...
@overload
def composable(function: _Of2[Options], /) -> Factory[Options, Composable]: ...
@overload
def composable(function: _Of1[Options], /) -> Factory[Options, Composable]: ...
@overload
def composable(*, needs: Names = (), annotations: Names = (), provides: Names = (), coupled: bool = False) -> _Composing: ...
def composable(
    function: Any = None, *, needs: Names = (), annotations: Names = (), provides: Names = (), coupled: bool = False
) -> Any:
    """Decorator: `f(*arrays, **options)` becomes a factory `f(**options) -> Composable`.

    The undecorated function stays at hand as `f.function`. Where `needs`, `annotations` or `provides` depend on the options,
    they are functions: `annotations=lambda options: (options["against"] + "_logp",)`. With `coupled`, what it says of a row
    depends on other rows.

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
        return functools.partial(composable, needs=needs, annotations=annotations, provides=provides, coupled=coupled)
    if coupled:
        function.coupled = True
    return factory_of(function, lambda bound: bound, needs=needs, annotations=annotations, provides=provides)


def factory_of(
    function: Callable[..., Any],
    build: Callable[[Composable], Made],
    *,
    needs: Names = (),
    annotations: Names = (),
    provides: Names = (),
) -> Factory[..., Made]:
    """The factory `f(**options) -> build(Composable)` of a function; the function stays at hand as `f.function`."""

    @functools.wraps(function)
    def factory(**options):
        return build(bind(function, options, needs, annotations, provides))

    factory.function = function
    return factory


def near(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" of the known names that are spelled like this one; "" where none is."""
    found = difflib.get_close_matches(name, list(known), 3, 0.6)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def require(condition: bool, name: str, value: Any, wanted: str) -> None:
    """Refuses an option of this name and value unless `condition` holds; `wanted` says what it must be."""
    if not condition:
        raise ValueError(f"{name} is {repr(value) if isinstance(value, str) else value}; it must be {wanted}")
