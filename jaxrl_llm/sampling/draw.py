"""From logits to a token and its log-probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrl_llm.sampling.records import Sampling

# Tokens per block of the two-level search: the lane width of a TPU, and near the square root of usual vocabularies.
_BLOCK = 128


def draw(logits: jax.Array, uniforms: jax.Array, sampling: Sampling, forced: jax.Array | None = None):
    """Samples a token per row by inversion of its cumulative distribution.

    The order is Hugging Face's: mask, temperature, top-k, top-p of what top-k left, min-p. Top-k and top-p cost
    nothing in calls where no row asks for them. A token of probability 0 is never drawn.

    Args:
      logits: float [N, V]; -inf allowed.
      uniforms: float32 [N, 2] in [0, 1).
      sampling: see `Sampling`; its `forced`, `limit` and `stop_ids` play no part here.
      forced: int32 [N], tokens to take instead; -1 draws.

    Returns:
      `(token, logps)`: int32 [N], and float32 [3, N] with its log-probability (nats) under the policy, under the tempered
      policy and under the distribution that it was drawn from, as in `Samples`.
    """
    policy = logits.astype(jnp.float32)
    policy -= policy.max(-1, keepdims=True)
    greedy = sampling.temperature == 0
    tempered = policy / jnp.where(greedy, 1.0, sampling.temperature)[:, None]
    candidates = _masked(tempered, sampling.logit_mask)
    weights = jnp.where(_stays(candidates, sampling, greedy), jnp.exp(candidates), 0.0)
    token = inverse_cdf(weights, jnp.where(greedy[:, None], 0.0, uniforms))
    certain = greedy
    if forced is not None:
        certain |= forced >= 0
        token = jnp.where(forced >= 0, forced, token)
    drawn_logp = jnp.where(certain, 0.0, _log_share(candidates, weights, token))
    logps = [_log_share(policy, jnp.exp(policy), token), _log_share(tempered, jnp.exp(tempered), token), drawn_logp]
    return token, jnp.stack(logps)


def inverse_cdf(weights: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Index of each row, drawn in proportion to its weight: first a block of the vocabulary, then a place in it.

    Two levels touch the vocabulary once, keep cumulative sums short (and so their rounding small), and let every token of
    a large vocabulary have its due share of the float32 numbers in [0, 1).

    Args:
      weights: float32 [N, V], at least 0, with a positive one in each row; they need not sum to 1.
      uniforms: float32 [N, 2] in [0, 1), one for each level.

    Returns:
      int32 [N], always of a positive weight; with uniforms 0 the first such.
    """
    rows, size = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -size % _BLOCK))).reshape(rows, -1, _BLOCK)
    block = _pick(blocks.sum(-1), uniforms[:, 0])
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * _BLOCK + _pick(inside, uniforms[:, 1])


def _pick(weights, uniform) -> jax.Array:
    running = jnp.cumsum(weights, -1)
    reached = running > uniform[:, None] * running[:, -1:]
    # The first positive weight that is reached. Where rounding lets none be reached, the last positive one.
    place = jnp.arange(weights.shape[-1], dtype=jnp.int32)
    preference = jnp.where(reached, 2 * weights.shape[-1] - place, place)
    return jnp.argmax(jnp.where(weights > 0, preference, -1), -1).astype(jnp.int32)


def _masked(logits, mask) -> jax.Array:
    if mask is None:
        return logits
    masked = jnp.where(mask, logits, -jnp.inf)
    # Without this, weights underflow where the mask leaves only unlikely tokens.
    return masked - masked.max(-1, keepdims=True)


def _log_share(logits, weights, token) -> jax.Array:
    return jnp.take_along_axis(logits, token[:, None], -1)[:, 0] - jnp.log(weights.sum(-1))


def _stays(candidates, sampling: Sampling, greedy) -> jax.Array:
    """Which candidates [N, V], the best of each row at 0, survive top-k, top-p and min-p; greedy keeps the best."""
    rows, size = candidates.shape
    distance = jnp.abs(candidates)
    everything = jnp.full(rows, jnp.inf), jnp.full(rows, size - 1, jnp.int32)

    def top_k():
        return _shortest(distance, jnp.ones_like(distance), jnp.minimum(sampling.top_k, size).astype(jnp.float32))

    end = lax.cond(((sampling.top_k < size) & ~greedy).any(), top_k, lambda: everything)

    def top_p():
        mass = jnp.where(_within(distance, end), jnp.exp(candidates), 0.0)
        # A mass that is never reached keeps all, be it as small as to vanish in the sum of the others.
        enough = jnp.where(sampling.top_p < 1, sampling.top_p * mass.sum(-1), jnp.inf)
        return _sooner(end, _shortest(distance, mass, enough))

    end = lax.cond(((sampling.top_p < 1) & ~greedy).any(), top_p, lambda: end)
    # Greedy is a draw from the best tokens alone, with the uniforms that take the first of them.
    farthest = jnp.where(greedy, 0.0, -jnp.log(sampling.min_p))
    return _within(distance, _sooner(end, (farthest, everything[1])))


# Tokens of a row are in order of their distance [N, V] from the best one, and of their id where distances are equal.
# An end (distance [N], id [N]) stands for the tokens up to itself in this order.


def _within(distance, end) -> jax.Array:
    farthest, last = (x[:, None] for x in end)
    return (distance < farthest) | ((distance == farthest) & (jnp.arange(distance.shape[-1]) <= last))


def _sooner(end, other):
    sooner = (other[0] < end[0]) | ((other[0] == end[0]) & (other[1] < end[1]))
    return jnp.where(sooner, other[0], end[0]), jnp.where(sooner, other[1], end[1])


def _shortest(distance, measure, enough):
    """End of the fewest tokens whose `measure` [N, V] sums to `enough` [N]; of all tokens where none do.

    Two binary searches, over the bits of the distance and over ids, need some 45 light passes over the vocabulary: far
    less than sorting it.
    """
    rows, size = distance.shape

    def reaches(end):
        return jnp.where(_within(distance, end), measure, 0.0).sum(-1) >= enough

    def as_distance(bits):
        return lax.bitcast_convert_type(bits, jnp.float32)

    # Floats of one sign are in the order of their bits.
    infinity = int(np.float32(np.inf).view(np.int32))
    all_ids = jnp.full(rows, size - 1, jnp.int32)
    farthest = as_distance(_least(lambda bits: reaches((as_distance(bits), all_ids)), rows, infinity))
    return farthest, _least(lambda last: reaches((farthest, last)), rows, size - 1)


def _least(holds, rows: int, largest: int) -> jax.Array:
    """Least integers [rows] from 0 for which the monotone `holds` is true; `largest` where it never is below that."""

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        held = holds(middle)
        return jnp.where(held, low, middle + 1), jnp.where(held, middle, high)

    bounds = jnp.zeros(rows, jnp.int32), jnp.full(rows, largest, jnp.int32)
    return lax.fori_loop(0, largest.bit_length(), halve, bounds)[1]
