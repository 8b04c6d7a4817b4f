"""Estimators made of others: sums of advantages, and estimators that see the rows of one source alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, declared
from jaxrl_llm.estimators.base import Estimator, states_of
from jaxrl_llm.types import Rollouts


class _Combination(Composable):
    """`update` of an estimator that is made of others, which prints the call that makes it and says what they need."""

    def __repr__(self) -> str:
        return f"{self.function.__name__[1:]}({', '.join(map(repr, dict(self.options)['arguments']))})"


def _combined(function: Callable, init: Callable, *arguments) -> Estimator:
    needed, given = (declared(arguments, attribute) for attribute in ("annotations", "provides"))
    update = _Combination(function, (("arguments", arguments),), annotations=needed, provides=given)
    return Estimator(init, update, (update,))


def _blend(rollouts: Rollouts, state, key, *, arguments: tuple[tuple[float, Estimator], ...]):
    found, states, advantage, valid, extras = rollouts, [], 0.0, rollouts.valid, {}
    for number, ((weight, estimator), inner) in enumerate(zip(arguments, state, strict=True)):
        found, inner = estimator.update(rollouts, inner, jax.random.fold_in(key, number))
        advantage, valid, extras = advantage + weight * found.advantage, valid * (found.valid > 0), extras | found.extras
        states.append(inner)
    return rollouts.replace(advantage=advantage, valid=valid, extras=extras), tuple(states)


def blend(*terms: tuple[float, Estimator]) -> Estimator:
    """Sum of the advantages that several estimators give to the same rollouts, each with a weight.

    A row must be valid for all of them; the state is the tuple of their states.

    Example:
      >>> blend((0.5, group_advantage()), (0.5, group_advantage(scale=None)))
      blend((0.5, group_advantage()), (0.5, group_advantage(scale=None)))
    """
    return _combined(_blend, states_of(*(estimator for _, estimator in terms)), *terms)


def _among(rollouts: Rollouts, state, key, *, arguments: tuple[int, Estimator]):
    source, inner = arguments
    own = jnp.asarray(rollouts.source) == source
    found, state = inner.update(rollouts.replace(valid=rollouts.valid * own), state, key)
    rows = own[:, None]
    merged = rollouts.replace(
        advantage=jnp.where(rows, found.advantage, rollouts.advantage),
        weight=jnp.where(rows, found.weight, rollouts.weight),
        valid=jnp.where(own, found.valid, rollouts.valid),
        extras=rollouts.extras | found.extras,
    )
    return merged, state


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
    return _combined(_among, inner.init, source, inner)
