"""What a named method is, and the table of all of them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from jaxrl_llm.compose import Composable, keyword_defaults
from jaxrl_llm.estimators import Estimator
from jaxrl_llm.objectives import Objective


@dataclasses.dataclass(frozen=True)
class Method:
    """A policy-optimisation method as a composition.

    Attributes:
      name: as in `get(name)`.
      paper: title.
      url: of the paper.
      strategy: which prompts are sampled and what is kept; None for methods that learn from given text.
      estimator: rollouts -> rollouts with advantages and weights.
      objective: scores and batch -> loss.
      options: those the method was made with, as pairs.
      schedules: pairs of a name in `batch.coefficients` and a function of the step.
    """

    name: str
    paper: str
    url: str
    strategy: Composable | None
    estimator: Estimator
    objective: Objective
    options: tuple[tuple[str, Any], ...] = ()
    schedules: tuple[tuple[str, Callable[[int], float]], ...] = ()

    @property
    def needs(self) -> frozenset[str]:
        """What somebody must compute before the update: "reference_logp", "behavior_value"... and score statistics."""
        return self.estimator.annotations | self.objective.annotations | self.objective.needs

    @property
    def needs_reference(self) -> bool:
        return "reference_logp" in self.needs

    @property
    def needs_critic(self) -> bool:
        return "behavior_value" in self.needs

    @property
    def needs_value_head(self) -> bool:
        """Whether the trained network itself gives the values, as reward models do, rather than a critic beside it."""
        return "value" in self.needs and not self.needs_critic

    @property
    def learns_from(self) -> str:
        """ "samples" of the policy, or, where nothing is sampled, given "pairs" or "completions"."""
        if self.strategy is not None:
            return "samples"
        return "pairs" if "preference" in self.needs else "completions"

    def composition(self) -> str:
        """The method printed as the code that composes it."""
        return f"strategy  = {self.strategy!r}\nestimator = {self.estimator!r}\nobjective = {self.objective!r}"


_BUILDERS: dict[str, Callable[..., Method]] = {}


def method(*, paper: str, url: str):
    """Decorator: a function of keyword options that returns (strategy, estimator, objective) becomes a named method."""

    def register(build):
        name = build.__name__

        @functools.wraps(build)
        def make(**options) -> Method:
            strategy, estimator, objective = build(**options)
            chosen = tuple((keyword_defaults(build) | options).items())
            return Method(name, paper, url, strategy, estimator, objective, chosen)

        _BUILDERS[name] = make
        return make

    return register


def get(name: str, **options) -> Method:
    """The method of that name.

    Args:
      name: see `names()`.
      **options: of the method; see `options_of(name)`.

    Raises:
      ValueError: an unknown name, an option that the method does not have, or one that would change nothing.

    Example:
      >>> get("dapo", clip_high=0.3).objective
      objective(policy(trust=clip(high=0.3)))
    """
    if name not in _BUILDERS:
        raise ValueError(f"method {name!r} is unknown; known are {', '.join(names())}")
    known = options_of(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"method {name!r} has no option {unknown[0]!r}; it takes {', '.join(known) or 'no options'}")
    return _BUILDERS[name](**options)


def names() -> tuple[str, ...]:
    """Names of all methods."""
    return tuple(sorted(_BUILDERS))


def options_of(name: str) -> dict[str, Any]:
    """Options of a method with their defaults."""
    return keyword_defaults(inspect.unwrap(_BUILDERS[name]))


def table() -> list[dict[str, Any]]:
    """One record for each method: name, paper, url, what it is, options, what it needs, and its composition."""
    return [_describe(name) for name in names()]


def _describe(name: str) -> dict[str, Any]:
    built = get(name)
    return {
        "name": name,
        "paper": built.paper,
        "url": built.url,
        "summary": inspect.getdoc(_BUILDERS[name]).splitlines()[0],
        "options": options_of(name),
        "needs": sorted(built.needs),
        "composition": built.composition(),
    }


def reject_inert(condition: bool, name: str, value, reason: str) -> None:
    """Raises ValueError where an option is set that the composition would not read."""
    if condition:
        raise ValueError(f"option {name}={value!r} would change nothing: {reason}; leave it out")
