"""Sums of advantages from several estimators."""

from __future__ import annotations

import dataclasses
import functools
import operator

import jax

from jaxrl_llm.estimators.base import Estimator
from jaxrl_llm.types import Rollouts


@dataclasses.dataclass(frozen=True)
class _BlendInit:
    terms: tuple[tuple[float, Estimator], ...]

    def __call__(self):
        return tuple(estimator.init() for _, estimator in self.terms)


@dataclasses.dataclass(frozen=True)
class _BlendUpdate:
    terms: tuple[tuple[float, Estimator], ...]

    def __call__(self, rollouts: Rollouts, state, key):
        found, states, advantage, valid, extras = rollouts, [], 0.0, rollouts.valid, {}
        for number, ((weight, estimator), inner) in enumerate(zip(self.terms, state, strict=True)):
            found, inner = estimator.update(rollouts, inner, jax.random.fold_in(key, number))
            advantage, valid, extras = advantage + weight * found.advantage, valid * (found.valid > 0), extras | found.extras
            states.append(inner)
        return rollouts.replace(advantage=advantage, valid=valid, extras=extras), tuple(states)


@dataclasses.dataclass(frozen=True)
class _Blended:
    """What a blend is made of, for printing and for what it needs."""

    terms: tuple[tuple[float, Estimator], ...]

    @property
    def annotations(self) -> frozenset[str]:
        return functools.reduce(operator.or_, (estimator.annotations for _, estimator in self.terms), frozenset())

    @property
    def provides(self) -> frozenset[str]:
        return functools.reduce(operator.or_, (estimator.provides for _, estimator in self.terms), frozenset())

    def __repr__(self) -> str:
        return f"blend({', '.join(map(repr, self.terms))})"


def blend(*terms: tuple[float, Estimator]) -> Estimator:
    """Sum of the advantages that several estimators give to the same rollouts, each with a weight.

    A row must be valid for all of them; the state is the tuple of their states.

    Example:
      >>> blend((0.5, group_advantage()), (0.5, group_advantage(scale=None)))
      blend((0.5, group_advantage()), (0.5, group_advantage(scale=None)))
    """
    return Estimator(_BlendInit(terms), _BlendUpdate(terms), (_Blended(terms),))
