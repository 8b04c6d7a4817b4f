"""The records that flow: `Rollouts`, `Batch` with the `Forest` that networks read, and `Scores`.

Position `t` always describes token `t`: `logp[b, t] = log p(tokens[b, t] | tokens[b, :t])`, and the first token of a
sequence has log-probability 0. The records are frozen pytrees of arrays. Building one checks every shape; transforms
of JAX, which rebuild records from leaves of other ranks, are not checked.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, Self, dataclass_transform

import chex
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
# Shapes in the annotations below: N rollouts of T tokens with K reward components; B packed rows of T tokens.
FloatNT = Array
IntNT = Array
FloatBT = Array
IntBT = Array
# Begins the names of needs that are no arrays but rows of a kind, "rows_of_demonstrations": who gives them, says so.
ROWS_OF = "rows_of_"


@dataclass_transform(eq_default=False, kw_only_default=True, frozen_default=True)
class Record:
    """A class of it is a frozen dataclass, registered as a pytree whose unflattening skips the checks of the constructor.

    `flax.struct.dataclass` runs `__post_init__` on every unflattening, where leaves may be tracers of another rank,
    shardings or sentinels; shape checks there would break `vmap` and `tree.map`.
    """

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, eq=False, kw_only=True)(cls)
        names = tuple(f.name for f in dataclasses.fields(cls))

        def flatten_with_keys(node):
            return [(jax.tree_util.GetAttrKey(name), getattr(node, name)) for name in names], None

        def flatten(node):
            return [getattr(node, name) for name in names], None

        def unflatten(_, leaves):
            node = object.__new__(cls)
            for name, leaf in zip(names, leaves, strict=True):
                object.__setattr__(node, name, leaf)
            return node

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)

    def replace(self, **fields: Any) -> Self:
        """The record with some fields changed, and checked again."""
        return dataclasses.replace(self, **fields)


# Of fields that the constructor fills where nobody gives them, so that nobody reads a None.
FILLED: Any = None


def missing(node: Any, names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that a record has neither as a field nor among its `extras`, sorted; "rows_of_..." name no array."""
    arrays = sorted(name for name in names if not name.startswith(ROWS_OF))
    found = {name: getattr(node, name) if hasattr(node, name) else node.extras.get(name) for name in arrays}
    return tuple(name for name, value in found.items() if value is None)


def _fill(node, name: str, value) -> None:
    if getattr(node, name) is None:
        object.__setattr__(node, name, value() if callable(value) else value)


def _check(node, names, shape) -> None:
    for name in names:
        value = getattr(node, name)
        if value is None:
            continue
        try:
            chex.assert_shape(value, shape)
        except AssertionError as error:
            found = getattr(value, "shape", type(value).__name__)
            message = f"{type(node).__name__}.{name} has shape {found}; it must be {shape}"
            raise ValueError(message) from error


def _check_extras(node, *shapes) -> None:
    for name, value in node.extras.items():
        if not any(tuple(value.shape[: len(shape)]) == shape for shape in shapes):
            place = f"{type(node).__name__}.extras[{name!r}]"
            raise ValueError(f"{place} has shape {value.shape}; it must begin with one of {shapes}")


def _numpy_for(tokens):
    return np if isinstance(tokens, np.ndarray) else jnp


class Rollouts(Record):
    """Sampled sequences, one a row: N rows of T tokens.

    Only `tokens`, `length`, `mask` and `rewards` must be given; the rest is filled with the plain case.
    """

    tokens: IntNT  # int [N, T], prompt and completion
    length: Array  # int [N], tokens of the row that are real
    mask: FloatNT  # float [N, T], 1 where the token is an action of the policy that trains
    rewards: Array  # float [N, K], named components kept apart until an estimator combines them; NaN marks a missing value
    group: Array = FILLED  # int [N], rows that answer the same prompt share a number in [0, N); groups may differ in size
    prompt_id: Array = FILLED  # int [N], number of the prompt in its data set
    token_rewards: FloatNT | None = None  # float [N, T] or None, rewards that belong to a token
    # float [N, T] or None, log-probability (nats) of each token under the policy that sampled it
    behavior_logp: FloatNT | None = None
    turn: IntNT = FILLED  # int [N, T], number of the turn that the token belongs to
    source: Array = FILLED  # int [N], who wrote the row (0 = the policy)
    version: IntNT = FILLED  # int [N, T], training step of the parameters that sampled the token
    valid: Array = FILLED  # float [N], 1 where the row takes part in training
    advantage: FloatNT = FILLED  # float [N, T]
    weight: FloatNT = FILLED  # float [N, T], share of the token in the loss
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)  # arrays that methods add, of shape [N, ...]

    def __post_init__(self) -> None:
        _check_rank(self, self.tokens)
        rows, width = self.tokens.shape
        xp = _numpy_for(self.tokens)
        _fill(self, "group", lambda: xp.arange(rows, dtype=np.int32))
        _fill(self, "prompt_id", self.group)
        for name in ("turn", "version"):
            _fill(self, name, lambda: xp.zeros((rows, width), np.int32))
        _fill(self, "source", lambda: xp.zeros((rows,), np.int32))
        _fill(self, "valid", lambda: xp.ones((rows,), np.float32))
        for name in ("advantage", "weight"):
            _fill(self, name, lambda: xp.zeros((rows, width), np.float32))
        per_token = ("mask", "token_rewards", "behavior_logp", "turn", "version", "advantage", "weight")
        _check(self, per_token, (rows, width))
        _check(self, ("length", "group", "prompt_id", "source", "valid"), (rows,))
        _check(self, ("rewards",), (rows, None))
        _check_groups(self.group, rows)
        _check_extras(self, (rows,))


class Forest(Record):
    """What networks read of a batch: sequences of tokens, what they begin with in common once, in B rows of W columns.

    Such sequences are trees of tokens, laid out depth first, so that what goes on from a token stands in the columns up to its
    `reach`: query q sees key k where k <= q < reach[k].
    """

    tokens: Array  # int [B, W]
    positions: Array  # int [B, W], place of the token in the sequences that it belongs to
    reach: Array  # int [B, W], first column behind all that goes on from the token, more than its own; 0 for padding
    routes: Array | None = None  # int [B, W, layers, k] or None, experts that the sampler sent the token to

    def __post_init__(self) -> None:
        _check_rank(self, self.tokens)
        _check(self, ("positions", "reach"), self.tokens.shape)


class Batch(Record):
    """Packed rows of tokens with everything per token: B rows of T tokens.

    Only `tokens` and `mask` must be given; the rest is filled with the plain case of one sequence a row. What has no plain
    case, None, is refused by the objectives that read it. Without a `forest`, networks read the batch's own tokens, a segment
    for a sequence. With one, the batch holds actions alone, and row r of the forest feeds row r of the batch.
    """

    tokens: IntBT  # int [B, T]
    mask: FloatBT  # float [B, T], 1 where the token is an action of the policy that trains
    positions: IntBT = FILLED  # int [B, T], place of the token in its own sequence
    segment: IntBT = FILLED  # int [B, T], number of the sequence within the row, from 1; 0 is padding
    rollout: IntBT = FILLED  # int [B, T], number of the sequence within the step
    group: IntBT | None = None  # int [B, T] or None, number of the prompt within the step; the two rollouts of a pair share one
    advantage: FloatBT | None = None  # float [B, T] or None
    # float [B, T], share of the token in the loss; an additive loss is `sum(weight * token_loss)`. By default each masked token
    # has the share 1 / (number of masked tokens)
    weight: FloatBT = FILLED
    behavior_logp: FloatBT | None = None  # float [B, T] or None, log-probability (nats) under the policy that sampled the token
    reference_logp: FloatBT | None = None  # float [B, T] or None, log-probability (nats) under the reference policy
    returns: FloatBT | None = None  # float [B, T] or None, targets of the critic
    forest: Forest | None = None  # what networks read, or None
    # int [B, T] or None, column of the forest behind which the token stands; -1 for the first of its sequence
    index: IntBT | None = None
    # int [B, T] or None, column of the forest that holds the token; routers alone are asked what they said there
    column: IntBT | None = None
    # int [P] or None, rows in use in each of P micro-batches, the full ones first; see `data.packing.place_rows`
    parts: Array | None = None
    # arrays that methods add, of shape [B, T, ...]; packing adds the rollouts' "source" and "turn"
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)
    step: Array | int = 0  # int [], training step
    # scalars from schedules and controllers, traced, so that a change never recompiles
    coefficients: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_rank(self, self.tokens)
        shape = self.tokens.shape
        _check(self, ("mask",), shape)
        xp = _numpy_for(self.tokens)
        _fill(self, "positions", lambda: xp.broadcast_to(xp.arange(shape[1], dtype=np.int32), shape))
        _fill(self, "segment", lambda: xp.ones(shape, np.int32))
        _fill(self, "rollout", lambda: xp.broadcast_to(xp.arange(shape[0], dtype=np.int32)[:, None], shape))
        _fill(self, "weight", lambda: self.mask / xp.maximum(self.mask.sum(), 1))
        names = ("positions", "segment", "rollout", "group", "advantage", "weight")
        _check(self, names + ("behavior_logp", "reference_logp", "returns", "index", "column"), shape)
        _check_forest(self)
        _check_extras(self, shape)


class Scores(Record):
    """What a policy says about a `Batch`; statistics beyond `logp` are None unless somebody needs them."""

    logp: FloatBT  # float [B, T], log-probability (nats) of each token given those before it in its sequence
    entropy: FloatBT | None = None  # float [B, T], entropy (nats) of the distribution that the token was drawn from
    mean_logp: FloatBT | None = None  # float [B, T], mean over the vocabulary of the log-probabilities (nats)
    max_logp: FloatBT | None = None  # float [B, T], log-probability (nats) of the likeliest token; it has no gradient
    # float [B, T], entropy (nats) of that distribution cut to its likeliest entries and renormalised
    top_entropy: FloatBT | None = None
    log_collision: FloatBT | None = None  # float [B, T], log of the sum of its squared probabilities (nats)
    # float [B, T, K], log-probabilities (nats) of `batch.extras["candidates"]`, of the tokens that might have stood there; -inf
    # where a candidate is -1
    candidate_logp: Array | None = None
    value: FloatBT | None = None  # float [B, T], the critic's estimate of the return from the state before the token
    value_outputs: Array | None = None  # float [B, T, n], outputs of the critic's head there: logits of bins, or quantiles
    hidden: Array | None = None  # float [B, T, D], last hidden states, of the state before the token
    # float [B, T, layers, E], what the routers of layers with experts said when the token was read
    router_logits: Array | None = None

    def __post_init__(self) -> None:
        _check_rank(self, self.logp, "logp")
        _check(self, ("entropy", "mean_logp", "max_logp", "top_entropy", "log_collision", "value"), self.logp.shape)
        _check(self, ("hidden", "value_outputs", "candidate_logp"), (*self.logp.shape, None))
        _check(self, ("router_logits",), (*self.logp.shape, None, None))


def _check_groups(group, rows: int) -> None:
    """Refuses numbers that segment reductions over `rows` segments would drop in silence; tracers cannot be checked."""
    if isinstance(group, jax.core.Tracer) or not getattr(group, "is_fully_addressable", True) or not rows:
        return
    low, high = int(np.min(group)), int(np.max(group))
    if low < 0 or high >= rows:
        raise ValueError(f"Rollouts.group holds {low if low < 0 else high}; number the groups from 0 to {rows - 1} (rows - 1)")


def _check_forest(batch: Batch) -> None:
    if (batch.forest is None) != (batch.index is None):
        given = "index" if batch.forest is None else "forest"
        raise ValueError(f"Batch has {given!r} alone; forest and index say together what is read")
    rows = batch.tokens.shape[0]
    if batch.forest is not None and batch.forest.tokens.shape[0] != rows:
        raise ValueError(f"Batch.forest has {batch.forest.tokens.shape[0]} rows; it must have the {rows} of the batch")


def _check_rank(node, value, name: str = "tokens") -> None:
    if len(getattr(value, "shape", ())) != 2:
        found = getattr(value, "shape", value)
        raise ValueError(f"{type(node).__name__}.{name} must have two axes, rows and tokens; got {found}")


def own_weight(name: str) -> str:
    """Where the shares of a term with an aggregation of its own stand in `extras`."""
    return f"weight:{name}"
