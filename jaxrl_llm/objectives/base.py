"""The objective: a frozen, hashable sum of per-token terms."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, any_coupled, composable, declared
from jaxrl_llm.numerics import masked
from jaxrl_llm.types import ROWS_OF, Batch, Scores, missing, own_weight


@dataclasses.dataclass(frozen=True)
class Objective:
    """`objective(scores, batch) -> (loss, metrics)`, with loss = sum over tokens of weight * sum of terms.

    A term is a composable `term(scores, batch) -> (token_loss [B, T], metrics)`. The loss is additive over rows, as
    weights are fixed before any split, unless a term is coupled.
    """

    terms: tuple[Composable, ...]  # what is added up
    coupled: bool = False  # whether a token's loss depends on other rows

    @property
    def needs(self) -> frozenset[str]:
        """Statistics beyond `logp` that the scorer must return."""
        return declared(self.terms, "needs")

    @property
    def annotations(self) -> frozenset[str]:
        """Arrays that the batch must carry: its own optional fields or keys of its `extras`."""
        return declared(self.terms, "annotations")

    @property
    def reads_logp(self) -> bool:
        """Whether some term reads `scores.logp`; where none does, no logits need to be computed."""
        return any(getattr(_innermost(term).function, "reads_logp", True) for term in self.terms)

    def __call__(self, scores: Scores, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        self._check(scores, batch)
        loss, metrics = jnp.float32(0.0), {}
        for term in self.terms:
            inner, seen = _with_own_weights(term, batch)
            token_loss, term_metrics = _with_inputs(inner, scores, seen)
            value = weighted_sum(token_loss, seen)
            loss += value
            metrics |= _apart({f"loss/{inner.function.__name__}": value} | term_metrics, metrics)
        return loss, metrics

    def _check(self, scores: Scores, batch: Batch) -> None:
        for name in sorted(self.needs):
            if getattr(scores, name.partition(":")[0]) is None:
                raise ValueError(f"{self!r} needs scores.{name}, which is None; ask the scorer for it")
        for name in missing(batch, self.annotations):
            place = f"batch.{name}" if hasattr(batch, name) else f"batch.extras[{name!r}]"
            raise ValueError(f"{self!r} needs {place}, which is missing; fill it before the update")

    def __repr__(self) -> str:
        return f"objective({', '.join(map(repr, self.terms))})"


# Fields of a batch that no plain case could stand for: the loss would be 0, and so would what is learned.
_WITHOUT_DEFAULT = {
    "advantage": "give it [B, T], as an estimator makes it (data.batch_from lays out its rollouts)",
    "group": "number the two rows of a pair, or the answers to a prompt, alike, [B, T] (data.batch_of_pairs does)",
}


def _with_inputs(term: Composable, scores: Scores, batch: Batch):
    """What the term says; where it reads what the batch does not have, the refusal of that."""
    try:
        return term(scores, batch)
    except (TypeError, AttributeError) as error:
        absent = [name for name in _WITHOUT_DEFAULT if getattr(batch, name) is None]
        if not absent or not _runs(term, scores, batch, absent):
            raise
        name = next(name for name in absent if not _runs(term, scores, batch, [other for other in absent if other != name]))
        raise ValueError(f"{term!r} needs batch.{name}, which is missing; {_WITHOUT_DEFAULT[name]}") from error


def _runs(term: Composable, scores: Scores, batch: Batch, filled: list[str]) -> bool:
    """Whether the term can be computed once the fields of these names are there."""
    fields = {name: jnp.zeros(batch.tokens.shape, jnp.int32 if name == "group" else jnp.float32) for name in filled}
    try:
        jax.eval_shape(term, scores, batch.replace(**fields))
    except (TypeError, AttributeError):
        return False
    return True


def _innermost(term: Composable) -> Composable:
    """The term within `weighted`; others as they are."""
    return dict(term.options)["term"] if term.function is weighted.function else term


def _with_own_weights(term: Composable, batch: Batch) -> tuple[Composable, Batch]:
    """The term within `weighted`, and the batch with its weights, which say what its actions are; others as they are."""
    inner = _innermost(term)
    if inner is term:
        return term, batch
    weight = batch.extras[own_weight(dict(term.options)["name"])]
    return inner, batch.replace(weight=weight, mask=(weight != 0).astype(batch.mask.dtype))


def _apart(found: dict, earlier: dict) -> dict:
    """The metrics of a term, those that an earlier term has too under names of their own: "loss/preference_2"..."""
    named = {}
    for name, value in found.items():
        number = 1 + sum(re.fullmatch(rf"{re.escape(name)}(_\d+)?", other) is not None for other in earlier)
        named[name if number == 1 else f"{name}_{number}"] = value
    return named


def objective(*terms: Composable) -> Objective:
    """Sum of per-token terms, such as `objective(policy(trust=clip()), kl(coefficient=0.04))`; coupled if one of them is."""
    return Objective(tuple(terms), any_coupled(terms))


_Marked = TypeVar("_Marked", bound=Callable[..., Any])


def traits(*, coupled: bool = False, reads_logp: bool = True, level: str = "token") -> Callable[[_Marked], _Marked]:
    """Decorator, below `composable`, of a term, ratio or factor that is unlike most.

    Args:
      coupled: its token losses depend on other rows, as those of pairs do.
      reads_logp: it reads `scores.logp`.
      level: "sequence" where it says one thing of a whole sequence, or "rollout" of a term that takes each rollout by itself
        and needs no pairs.
    """

    def mark(function):
        function.coupled, function.reads_logp, function.level = coupled, reads_logp, level
        return function

    return mark


def _rows_of(options: dict) -> tuple[str, ...]:
    foreign = any(source for source, _ in options["terms"])
    return ("source", f"{ROWS_OF}{options['others']}") if foreign else ("source",)


@composable(annotations=_rows_of)
def by_source(scores: Scores, batch: Batch, *, terms: tuple[tuple[int, Composable], ...], others: str = "demonstrations"):
    """Each row by the term of its own source: the policy's samples by one loss, demonstrations by another.

    Rows of a source without a term contribute 0. A term sees weights of 0 at the rows of other sources, so that its metrics
    and its sums over the batch are of its own rows.

    Args:
      terms: pairs of a number in `batch.extras["source"]` (0 for the policy's own samples) and a term.
      others: what rows of other sources than 0 are. It computes nothing: a program that has no such rows must refuse the
        method rather than leave their term at 0, so they are a need of it, "rows_of_demonstrations".
    """
    total, metrics = jnp.zeros_like(batch.weight), {}
    for source, term in terms:
        own = batch.extras["source"] == source
        token_loss, found = term(scores, batch.replace(weight=jnp.where(own, batch.weight, 0.0), mask=batch.mask * own))
        total += jnp.where(own, token_loss, 0.0)
        metrics |= {f"source_{source}/{name}": value for name, value in found.items()}
    return total, metrics


@composable
def scaled(scores: Scores, batch: Batch, *, term: Composable, coefficient: float | str):
    """`coefficient` times a `term`, any one of an objective."""
    token_loss, metrics = term(scores, batch)
    return coefficient_value(coefficient, batch) * token_loss, metrics


@composable(annotations=lambda options: (own_weight(options["name"]),))
def weighted(scores: Scores, batch: Batch, *, term: Composable, name: str):
    """A `term` of an objective with shares of its own, those that `estimators.named_weighting(name=...)` has written.

    It stands in the objective itself, and what changes a term, such as `scaled`, within it.

    Raises ValueError: it stands within another term, which would take the shares of all.
    """
    raise ValueError(f"weighted(name={name!r}) stands within another term; make it a term of the objective, around {term!r}")


def weighted_sum(per_token: jax.Array, batch: Batch) -> jax.Array:
    """`sum(weight * per_token)` over the actions of the batch; what stands at other tokens has no influence."""
    weight = masked(batch.weight, batch.mask)
    return jnp.sum(weight * masked(per_token, jnp.abs(weight)))


def with_factors(per_token, factors: tuple[Composable, ...], scores: Scores, batch: Batch):
    """`per_token` [B, T] times factors `(scores, batch) -> factor` [B, T], without gradient and 0 where no action is."""
    for factor in factors:
        per_token *= jax.lax.stop_gradient(masked(factor(scores, batch), batch.mask))
    return per_token


def coefficient_value(coefficient: float | str, batch: Batch):
    """A number as it is, or the scalar of that name in `batch.coefficients`."""
    if not isinstance(coefficient, str):
        return coefficient
    if coefficient not in batch.coefficients:
        known = sorted(batch.coefficients)
        raise ValueError(f"batch.coefficients has no {coefficient!r}; it has {known}: fill it from a schedule or give a number")
    return batch.coefficients[coefficient]


def logp_of(who: str, batch: Batch):
    """Log-probabilities [B, T] (nats) that the batch carries of another policy than the one that trains.

    Args:
      who: "behavior" (the sampler), "proximal" (the policy before the updates of this step), "reference" or "teacher".
    """
    name = f"{who}_logp"
    return getattr(batch, name) if hasattr(batch, name) else batch.extras[name]


def logp_name(options: dict) -> tuple[str, ...]:
    """Annotation that a function with an option `against` reads, such as "proximal_logp"."""
    return (f"{options['against']}_logp",)
