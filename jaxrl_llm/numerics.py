"""Numerical primitives that estimators and objectives share: total functions with finite gradients everywhere."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array | np.ndarray

# exp(20) = 4.9e8 keeps products with advantages and squared terms finite in float32.
MAX_LOG_RATIO = 20.0
# exp(80) = 5.5e34 is finite in float32.
MAX_EXPONENT = 80.0
KL_KINDS = ("k1", "k2", "k3", "abs", "k1+", "k3+", "abs+")


def masked(value: Array, mask: Array) -> jax.Array:
    """`value` where `mask` is positive and 0 elsewhere; what stands elsewhere, NaN included, has no influence."""
    return jnp.where(mask > 0, value, 0.0)


def safe_divide(numerator: Array | float, denominator: Array) -> jax.Array:
    """`numerator / denominator`, and 0 where the denominator is 0; gradients are finite in both cases."""
    nonzero = denominator != 0
    return jnp.where(nonzero, numerator / jnp.where(nonzero, denominator, 1.0), 0.0)


def over_segments(reduction: Callable[..., jax.Array], values: Array, segment: Array) -> jax.Array:
    """`jax.ops.segment_sum`, `_min` or `_max` of `values` [B, T] over each token's own segment of its row, at each, [B, T].

    Args:
      reduction: of `jax.ops`.
      values: of any type.
      segment: int [B, T], numbers from 0 to T.
    """

    def row(values, numbers):
        return reduction(values, numbers, num_segments=values.shape[0] + 1)[numbers]

    return jax.vmap(row)(values, jnp.asarray(segment))


def keep_finite(new: Any, old: Any) -> Any:
    """`new`, a pytree, or `old` as a whole where a number of `new` is NaN, or infinite where that of `old` is finite."""

    def lost(after, before):
        if not jnp.issubdtype(jnp.result_type(after), jnp.inexact):
            return jnp.bool_(False)
        return (~jnp.isfinite(after) & (jnp.isfinite(before) | jnp.isnan(after))).any()

    spoiled = jax.tree.reduce(jnp.logical_or, jax.tree.map(lost, new, old), jnp.bool_(False))
    return jax.tree.map(lambda after, before: jnp.where(spoiled, before, after), new, old)


def without_infinities(logp: Array) -> jax.Array:
    """`logp` with infinite entries replaced by 0: a token that the policy cannot produce carries no loss or gradient."""
    return jnp.where(jnp.isinf(logp), 0.0, logp)


def materialised(value: Array) -> jax.Array:
    """`value` without gradient, computed once for all its uses, whatever the compiler fuses under `jax.jit`.

    A compiler may compute a number anew for each use and round a multiplication and an addition together in one and apart in
    another, so that a maximum equals none of the values that it was taken of. Values that are compared with numbers found
    among themselves (maxima, thresholds, ends of a search) have to come from memory; sums, differences of two of them
    and comparisons are then the same in every use.

    Args:
      value: float array of any shape.
    """
    if not isinstance(value, jax.core.Tracer):  # Outside of `jax.jit` nothing is fused, and a loop would be compiled each time.
        return lax.stop_gradient(value)
    return lax.platform_dependent(lax.stop_gradient(value), cpu=_through_a_loop, default=lax.optimization_barrier)


def _through_a_loop(value):
    """What a loop carries lies in memory, and XLA cannot know that this one never turns; a turn would change nothing.

    XLA for CPU takes barriers away before it fuses, that for GPU after it (`OptimizationBarrierExpander` in the sources).
    """
    if not value.size:
        return value
    turns = jnp.isnan(value[(0,) * value.ndim]).astype(jnp.int32)

    def turn(carry):
        number, value = carry
        return number + 1, jnp.where(number > 0, 0, value)

    return lax.while_loop(lambda carry: carry[0] < turns, turn, (jnp.zeros_like(turns), value))[1]


def log_ratio(logp: Array, other_logp: Array, bound: float | None = MAX_LOG_RATIO) -> jax.Array:
    """`logp - other_logp` in nats, kept within +-`bound`, 20 by default; None for no bound.

    Equal infinities give 0, one infinity gives the bound of its sign (20 without any); beyond the bounds the gradient is 0.
    NaN stays NaN, so that a broken network is seen.
    """
    known = jnp.isfinite(logp) & jnp.isfinite(other_logp)
    difference = jnp.where(known, logp, 0.0) - jnp.where(known, other_logp, 0.0)
    bounded = difference if bound is None else jnp.clip(difference, -bound, bound)
    infinite = jnp.sign(jnp.nan_to_num(logp) - jnp.nan_to_num(other_logp)) * (MAX_LOG_RATIO if bound is None else bound)
    broken = jnp.isnan(logp) | jnp.isnan(other_logp)
    return jnp.where(known, bounded, jnp.where(broken, jnp.nan, infinite))


def kl_estimate(logp: Array, reference_logp: Array, kind: str, bound: float | None = MAX_LOG_RATIO) -> jax.Array:
    """Single-sample estimate of KL(policy || reference), in nats, from a token that the policy sampled.

    With x = reference_logp - logp: "k1" is -x (unbiased, of either sign), "k2" is x^2 / 2 (its gradient is that of the
    KL), "k3" is exp(x) - 1 - x (unbiased, never negative), "abs" is |x|. "k1+", "k3+" and "abs+" have the value of the kind and
    the gradient of "k2".

    Args:
      logp: log-probabilities of the policy, nats, any shape.
      reference_logp: log-probabilities of the reference, nats, same shape.
      kind: one of `KL_KINDS`.
      bound: of |x| (nats), see `log_ratio`; None for none, and then exp(x) is constant beyond 80 nats.

    Raises ValueError: an unknown kind.
    Source: J. Schulman, Approximating KL Divergence, http://joschu.net/blog/kl-approx.html; the gradients of k1, k2 and k3,
      and the kinds with "+", https://arxiv.org/abs/2510.01555 and verl
    """
    if kind not in KL_KINDS:
        raise ValueError(f"kind of KL estimate is {kind!r}; it must be one of {KL_KINDS}")
    x = log_ratio(reference_logp, logp, bound)
    square = 0.5 * jnp.square(x)
    # Unlike `jnp.abs`, the maximum has slope 0 at 0, where policy and reference agree.
    growth = jnp.expm1(jnp.minimum(x, MAX_EXPONENT))
    value = {"k1": -x, "k2": square, "k3": growth - x, "abs": jnp.maximum(x, -x)}[kind.removesuffix("+")]
    return square + jax.lax.stop_gradient(value - square) if kind.endswith("+") else value
