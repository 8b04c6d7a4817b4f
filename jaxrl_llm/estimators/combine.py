"""Estimators made of others: sums of advantages, and estimators that see the rows of one source alone."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import declared
from jaxrl_llm.estimators.base import ChainInit, Estimator
from jaxrl_llm.types import Rollouts


@dataclasses.dataclass(frozen=True)
class _Blend:
    """Hashable `update` of a blend, which prints it and says what it needs."""

    terms: tuple[tuple[float, Estimator], ...]

    def __call__(self, rollouts: Rollouts, state, key):
        found, states, advantage, valid, extras = rollouts, [], 0.0, rollouts.valid, {}
        for number, ((weight, estimator), inner) in enumerate(zip(self.terms, state, strict=True)):
            found, inner = estimator.update(rollouts, inner, jax.random.fold_in(key, number))
            advantage, valid, extras = advantage + weight * found.advantage, valid * (found.valid > 0), extras | found.extras
            states.append(inner)
        return rollouts.replace(advantage=advantage, valid=valid, extras=extras), tuple(states)

    @property
    def annotations(self) -> frozenset[str]:
        return declared(self.terms, "annotations")

    @property
    def provides(self) -> frozenset[str]:
        return declared(self.terms, "provides")

    def __repr__(self) -> str:
        return f"blend({', '.join(map(repr, self.terms))})"


def blend(*terms: tuple[float, Estimator]) -> Estimator:
    """Sum of the advantages that several estimators give to the same rollouts, each with a weight.

    A row must be valid for all of them; the state is the tuple of their states.

    Example:
      >>> blend((0.5, group_advantage()), (0.5, group_advantage(scale=None)))
      blend((0.5, group_advantage()), (0.5, group_advantage(scale=None)))
    """
    update = _Blend(terms)
    return Estimator(ChainInit(tuple(estimator for _, estimator in terms)), update, (update,))


@dataclasses.dataclass(frozen=True)
class _Among:
    """Hashable `update` of `among`, which prints it and says what it needs."""

    source: int
    inner: Estimator

    def __call__(self, rollouts: Rollouts, state, key):
        own = jnp.asarray(rollouts.source) == self.source
        found, state = self.inner.update(rollouts.replace(valid=rollouts.valid * own), state, key)
        rows = own[:, None]
        merged = rollouts.replace(
            advantage=jnp.where(rows, found.advantage, rollouts.advantage),
            weight=jnp.where(rows, found.weight, rollouts.weight),
            valid=jnp.where(own, found.valid, rollouts.valid),
            extras=rollouts.extras | found.extras,
        )
        return merged, state

    @property
    def annotations(self) -> frozenset[str]:
        return self.inner.annotations

    @property
    def provides(self) -> frozenset[str]:
        return self.inner.provides

    def __repr__(self) -> str:
        return f"among({self.source}, {self.inner!r})"


def among(source: int, inner: Estimator) -> Estimator:
    """Runs an estimator as if the step had the rows of one source alone; advantages and weights of other rows stay.

    So demonstrations may stand in a group without moving its baseline, and each source has an aggregation of its own, whose
    weights sum to 1 over its rows.

    Args:
      source: number in `rollouts.source`, 0 for the policy's own samples.
      inner: any estimator; rewards and token rewards that it changes are not kept.

    Example:
      >>> chain(among(0, chain(group_advantage(), sequence_mean())), among(1, token_mean()))
      chain(among(0, chain(group_advantage(), sequence_mean())), among(1, token_mean()))
    """
    update = _Among(source, inner)
    return Estimator(inner.init, update, (update,))
