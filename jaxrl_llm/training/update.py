"""One update for every method: score, differentiate the objective with respect to the scores, pull back.

The network is differentiated one micro-batch at a time; the objective sees either the micro-batch (additive losses) or
the whole batch (coupled ones). As weights are fixed before any split, loss and gradient do not depend on the number of
micro-batches, on the packing or on the mesh, beyond rounding.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxrl_llm.networks import Network, join_params
from jaxrl_llm.networks.axes import check_columns, check_rows
from jaxrl_llm.scoring import Scorer, make_scorer
from jaxrl_llm.training.state import TrainState
from jaxrl_llm.types import Batch, Scores

Metrics = dict[str, jax.Array]


class Update(Protocol):
    """What `make_update` makes."""

    def __call__(self, state: TrainState, batch: Batch, frozen: Any = None) -> tuple[TrainState, Metrics]: ...


Loss = Callable[[Scores, Batch], tuple[jax.Array, dict[str, jax.Array]]]  # an `Objective`, or anything like it


def make_update(
    apply_fn: Network | Callable[..., Any], objective: Loss, optimizer: optax.GradientTransformation, *,
    micro_batches: int = 0, temperature: float = 1.0, scorer: Scorer | None = None,
) -> Update:  # fmt: skip
    """Builds `update(state, batch, frozen=None) -> (state, metrics)`, a pure function to jit, shard or call anywhere.

    Where `frozen` is given, parameters are nested dicts and the policy's are those of the state together with the frozen
    ones (see `networks.split_params`): gradients, their norm and the optimizer know only those of the state. Frozen
    parameters may be of any type, such as int8, and are not for donation.

    An update whose loss or gradient is not finite leaves parameters and optimizer as they are and counts in `state.skipped`.

    Args:
      apply_fn: a `Network`, or any `apply(params, tokens, positions, segments) -> logits [B, T, V]`.
      objective: `objective(scores, batch) -> (loss, metrics)` with attributes `needs` and `coupled`.
      optimizer: any optax transform, gradient clipping included; one with extra arguments is given `batch` and
        `gradient(params, batch)`, which asks for further gradients.
      micro_batches: number of parts that the rows are scored in; rows are padded to a multiple. 0 for those that the batch was
        cut into when it was packed, or one.
      temperature: of the policy that is trained; the one that it was sampled at.
      scorer: replaces the scorer made from `apply_fn`, for instance by `scoring.actor_critic_scorer`.

    Returns: The update; its metrics are float32 scalars: "loss", "gradient_norm", "skipped", "logp_gap" (largest difference in
      nats between policy and sampler) and those of the objective, all of the whole batch.
    Raises ValueError: `micro_batches` below 0, or statistics that the scorer cannot give.
    """
    if micro_batches < 0:
        raise ValueError(f"micro_batches is {micro_batches}; it must be at least 1, or 0 for those of the batch")
    score = scorer or make_scorer(apply_fn, getattr(objective, "needs", ()), temperature=temperature)
    gradient = make_gradient(score, objective, micro_batches)
    transform = optax.with_extra_args_support(optimizer)

    def update(state: TrainState, batch: Batch, frozen: Any = None):
        scores, gradients = gradient(state.params, batch, frozen)
        parts, batch = batch.parts, batch.replace(parts=None)
        loss, metrics = _in_auto_axes(objective, P())(scores, batch)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        asked = {"batch": batch.replace(parts=parts), "gradient": lambda params, batch: gradient(params, batch, frozen)[1]}
        changes, opt_state = transform.update(gradients, state.opt_state, state.params, **asked)
        params = optax.apply_updates(state.params, changes)
        new_state = state.replace(
            step=state.step + 1,
            params=_select(finite, params, state.params),
            opt_state=_select(finite, opt_state, state.opt_state),
            skipped=state.skipped + jnp.where(finite, 0, 1),
        )
        metrics = {"loss": loss, "gradient_norm": norm, "skipped": jnp.where(finite, 0.0, 1.0), **metrics}
        if batch.behavior_logp is not None:
            metrics["logp_gap"] = _largest_gap(scores, batch)
        return new_state, jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), metrics)

    return update


def make_gradient(score: Scorer, objective: Loss, micro_batches: int = 0) -> Callable[..., tuple[Scores, Any]]:
    """Builds `gradient(params, batch, frozen=None) -> (scores of the whole batch, gradient by params)`.

    Where `frozen` is given, the network's parameters are `join_params(params, frozen)`.

    An additive objective costs one forward and one backward pass of each micro-batch, a coupled one another forward. Those that
    the batch says are empty cost nothing.
    """

    def loss_gradient(scores: Scores, batch: Batch) -> Scores:
        return jax.grad(lambda scores: _in_auto_axes(lambda *inputs: objective(*inputs)[0], P())(scores, batch))(scores)

    def pull_back(params, frozen, batch: Batch, cotangent: Scores | None):
        scores, pull = jax.vjp(lambda params: score(_whole(params, frozen), batch), params)
        return scores, pull(loss_gradient(scores, batch) if cotangent is None else cotangent)[0]

    def gradient(params, batch: Batch, frozen: Any = None):
        count = micro_batches or (1 if batch.parts is None else len(batch.parts))
        check_rows(-(-batch.tokens.shape[0] // count), "a micro-batch of the update")
        for tokens in [batch.tokens] + ([] if batch.forest is None else [batch.forest.tokens]):
            check_columns(tokens.shape[1], "a row of the update")
        if count == 1:
            return pull_back(params, frozen, batch.replace(parts=None), None)
        shared = {"step": batch.step, "coefficients": batch.coefficients}
        parts = split_rows(batch.replace(step=None, coefficients={}, parts=None), count)
        filled = jnp.ones(count, bool) if micro_batches or batch.parts is None else batch.parts > 0

        def scored(part: Batch) -> Scores:
            return score(_whole(params, frozen), part.replace(**shared))

        def of_part(taken, nothing, inputs):
            """`taken(inputs)` of a part, or `nothing` where the batch says that it is empty."""
            if micro_batches or batch.parts is None:
                return taken(inputs)
            return jax.lax.cond(inputs[0], taken, lambda _: nothing, inputs)

        empty = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: scored(jax.tree.map(lambda x: x[0], parts)))
        )
        cotangents = None
        if getattr(objective, "coupled", False):
            scores = jax.lax.map(lambda inputs: of_part(lambda inputs: scored(inputs[1]), empty, inputs), (filled, parts))
            cotangents = split_rows(loss_gradient(merge_rows(scores, batch), batch), count)

        def add_part(total, inputs):
            def taken(inputs):
                scores, more = pull_back(params, frozen, inputs[1].replace(**shared), inputs[2])
                return jax.tree.map(jnp.add, total, more), scores

            return of_part(taken, (total, empty), inputs)

        # Sums of many small gradients lose their low bits in bfloat16.
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), params)
        total, scores = jax.lax.scan(add_part, zeros, (filled, parts, cotangents))
        return merge_rows(scores, batch), jax.tree.map(lambda value, leaf: value.astype(leaf.dtype), total, params)

    return gradient


def _whole(params, frozen):
    return params if frozen is None else join_params(params, frozen)


def split_rows(tree, parts: int):
    """Splits the rows of a record into [parts, rows / parts, ...]; missing rows are padding (all zero).

    Part m takes rows m, m + parts, ...: rows that a mesh keeps together stay spread over all its devices.
    """

    def split(value):
        padded = jnp.pad(value, [(0, -value.shape[0] % parts)] + [(0, 0)] * (value.ndim - 1))
        return jnp.swapaxes(padded.reshape(-1, parts, *value.shape[1:]), 0, 1)

    def shape(value) -> tuple[int, ...]:
        return (parts, -(-value.shape[0] // parts), *value.shape[1:])

    return jax.tree.map(lambda value: _moved(split, value, shape(value), from_axis=0, to_axis=1), tree)


def _moved(move, value, shape: tuple[int, ...], *, from_axis: int, to_axis: int):
    """`move(value)` of this shape, its rows laid out as they were where the axes of a mesh are explicit.

    There a reshape of rows that devices share has a type only where each device keeps whole parts; inside `auto_axes` the
    compiler moves what it must. Rows that the axes do not divide any more are on all devices. Other kinds of axes need nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not _explicit_axes():
        return move(value)
    spec = tuple(jax.typeof(value).sharding.spec)
    names = spec[from_axis] if isinstance(spec[from_axis], tuple) else (spec[from_axis],) if spec[from_axis] else ()
    divided = shape[to_axis] % math.prod(mesh.shape[name] for name in names) == 0
    rows = spec[from_axis] if divided else None
    wanted = P(*[None] * to_axis, rows, *spec[from_axis + 1 :])
    return _in_auto_axes(move, wanted)(value)


def _explicit_axes() -> tuple[str, ...]:
    """Axes of the mesh in use that are in the types of arrays, as those of `jax.make_mesh` are by default."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit)


def _in_auto_axes(function, out_sharding: P):
    """The function with explicit axes left to the compiler inside: sorts and reshapes over rows have no types of their own."""
    explicit = _explicit_axes()
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=out_sharding) if explicit else function


def merge_rows(tree, batch: Batch):
    """Undoes `split_rows`: [parts, rows / parts, ...] back to the rows of `batch`."""
    rows = batch.tokens.shape[0]

    def merge(value):
        return jnp.swapaxes(value, 0, 1).reshape(-1, *value.shape[2:])[:rows]

    return jax.tree.map(lambda value: _moved(merge, value, (rows, *value.shape[2:]), from_axis=1, to_axis=0), tree)


def _largest_gap(scores: Scores, batch: Batch):
    # Only the policy's own samples: nobody knows the probabilities of given texts.
    sampled = (batch.mask > 0) & (batch.extras.get("source", 0) == 0)
    gap = jnp.abs(jnp.where(sampled, scores.logp - batch.behavior_logp, 0.0))
    return jax.lax.stop_gradient(gap).max()


def _select(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
