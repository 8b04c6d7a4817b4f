"""From logits to a token and its log-probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrl_llm.numerics import materialised
from jaxrl_llm.sampling.records import Sampling

# Tokens per block of the two-level search: the lane width of a TPU, and near the square root of usual vocabularies.
_BLOCK = 128
_LOWEST = np.finfo(np.float32).min


def draw(
    logits: jax.Array, uniforms: jax.Array, sampling: Sampling, forced: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """As `draw_with_entropy`, without the entropy."""
    return draw_with_entropy(logits, uniforms, sampling, forced)[:2]


def draw_with_entropy(logits: jax.Array, uniforms: jax.Array, sampling: Sampling, forced: jax.Array | None = None):
    """Samples a token per row by inversion of its cumulative distribution; greedy rows take the argmax of what is allowed.

    The order is Hugging Face's: mask, temperature, top-k, top-p of what top-k left, min-p. Top-k, top-p and the argmax cost
    nothing in calls where no row asks for them. A token of probability 0 is never drawn. Of equal logits the lower id is the
    better one. A row that leaves nothing to draw, such as one whose mask allows only logits of -inf, takes the best token
    that is allowed.

    Args:
      logits: float [N, V]; -inf allowed. Log-probabilities of a row of nothing else are NaN.
      uniforms: float32 [N, 2] in [0, 1).
      sampling: see `Sampling`; its `forced`, `limit` and `stop_ids` play no part here.
      forced: int32 [N], tokens to take instead; -1 draws.

    Returns: `(token, logps, entropy)`: int32 [N]; float32 [3, N] with its log-probability (nats) under the policy, under the
      tempered policy and under the distribution that it was drawn from (0 where the token was certain), as in `Samples`; and
      `tempered_entropy` [N].
    """
    # What follows decides on these very numbers: computed anew for each use, they would not be the same in all of them.
    logits = materialised(logits.astype(jnp.float32))
    mask, greedy = sampling.logit_mask, sampling.temperature == 0
    temperature = jnp.where(greedy, 1.0, sampling.temperature)[:, None]
    policy = _from_best(logits)
    tempered = policy / temperature
    # Exponentials are what drawing costs: they are taken once for all uses, and those of the policy where it differs.
    shares = materialised(jnp.exp(tempered))
    total = shares.sum(-1)
    total_of_policy = lax.cond((temperature == 1).all(), lambda: total, lambda: jnp.exp(policy).sum(-1))
    candidates, weights = _candidates(logits, tempered, shares, sampling, temperature, greedy)
    drawn = inverse_cdf(weights, uniforms)
    certain = greedy | ~(_at(weights, drawn) > 0)
    token = lax.cond(certain.any(), lambda: jnp.where(certain, _best(logits, mask), drawn), lambda: drawn)
    if forced is not None:
        certain |= forced >= 0
        token = jnp.where(forced >= 0, forced, token)
    drawn_logp = jnp.where(certain, 0.0, _log_share(candidates, weights, token))
    logps = [_at(policy, token) - jnp.log(total_of_policy), _at(tempered, token) - jnp.log(total), drawn_logp]
    return token, jnp.stack(logps), _entropy(tempered, shares, total)


def _candidates(logits, tempered, shares, sampling: Sampling, temperature, greedy):
    """Tempered logits of what may be drawn, and the weights [N, V] that it is drawn by."""
    mask = sampling.logit_mask
    candidates = tempered if mask is None else _allowed(logits, mask) / temperature
    own = shares if mask is None else jnp.exp(candidates)

    def kept():
        return jnp.where(_stays(logits, temperature, sampling, greedy), own, 0.0)

    narrow = ((sampling.top_k < logits.shape[-1]) | (sampling.top_p < 1) | (sampling.min_p > 0)) & ~greedy
    return candidates, lax.cond(narrow.any(), kept, lambda: own)


def tempered_entropy(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """Entropy (nats) of the tempered policy, float32 [N], as in `Samples`; what is impossible has no share in it.

    Args:
      logits: float [N, V]; -inf allowed.
      temperature: float32 [N]; 0 (greedy) counts as 1.
    """
    tempered = _from_best(logits.astype(jnp.float32)) / jnp.where(temperature == 0, 1.0, temperature)[:, None]
    shares = jnp.exp(tempered)
    return _entropy(tempered, shares, shares.sum(-1))


def _entropy(tempered, shares, total) -> jax.Array:
    return jnp.log(total) - jnp.where(shares > 0, shares * tempered, 0.0).sum(-1) / total


def inverse_cdf(weights: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Index of each row, drawn in proportion to its weight: first a block of the vocabulary, then a place in it.

    Two levels touch the vocabulary once, keep cumulative sums short (and so their rounding small), and let every token of
    a large vocabulary have its due share of the float32 numbers in [0, 1).

    Args:
      weights: float32 [N, V], at least 0, with a positive one in each row; they need not sum to 1.
      uniforms: float32 [N, 2] in [0, 1), one for each level.

    Returns: int32 [N], always of a positive weight; with uniforms 0 the first such.
    """
    blocks = _blocks(weights, 0.0)
    block = _pick(blocks.sum(-1), uniforms[:, 0])
    return block * _BLOCK + _pick(_block(blocks, block), uniforms[:, 1])


def _blocks(values, padding: float) -> jax.Array:
    """[N, V] as [N, blocks, _BLOCK], the last block filled up."""
    rows, size = values.shape
    padded = jnp.pad(values, ((0, 0), (0, -size % _BLOCK)), constant_values=padding)
    return padded.reshape(rows, -1, _BLOCK)


def _block(blocks, number) -> jax.Array:
    """Block [N, _BLOCK] of each row."""
    return jnp.take_along_axis(blocks, number[:, None, None], axis=1)[:, 0]


def _pick(weights, uniform) -> jax.Array:
    running = jnp.cumsum(weights, -1)
    reached = running > uniform[:, None] * running[:, -1:]
    # The first positive weight that is reached. Where rounding lets none be reached, the last positive one.
    place = jnp.arange(weights.shape[-1], dtype=jnp.int32)
    preference = jnp.where(reached, 2 * weights.shape[-1] - place, place)
    return jnp.argmax(jnp.where(weights > 0, preference, -1), -1).astype(jnp.int32)


def _from_best(logits) -> jax.Array:
    """Logits less the largest of the row: 0 for the best; -inf, never NaN, in a row of nothing else."""
    return logits - jnp.maximum(logits.max(-1, keepdims=True), _LOWEST)


def _allowed(logits, mask) -> jax.Array:
    """The same of the tokens that the mask allows, -inf for others; the best allowed one decides, lest weights underflow."""
    return _from_best(logits if mask is None else jnp.where(mask, logits, -jnp.inf))


def _best(logits, mask) -> jax.Array:
    """The allowed token of the largest logit, of equal ones the first. Two levels are faster than one argmax of all."""
    if mask is not None:
        # What is allowed is better than what is not, even at -inf.
        logits = jnp.where(mask, jnp.maximum(logits, _LOWEST), -jnp.inf)
    blocks = _blocks(logits, -jnp.inf)
    block = jnp.argmax(blocks.max(-1), -1).astype(jnp.int32)
    return block * _BLOCK + jnp.argmax(_block(blocks, block), -1).astype(jnp.int32)


def _log_share(logits, weights, token) -> jax.Array:
    return _at(logits, token) - jnp.log(weights.sum(-1))


def _at(values, token) -> jax.Array:
    return jnp.take_along_axis(values, token[:, None], -1)[:, 0]


def _stays(logits, temperature, sampling: Sampling, greedy) -> jax.Array:
    """Which tokens [N, V] survive mask, top-k, top-p and min-p; rows that are greedy do not ask."""
    rows, size = logits.shape
    everything = jnp.full(rows, jnp.inf), jnp.full(rows, size - 1, jnp.int32)

    def distance():
        # Anew in each branch: what a branch is given would be written to memory, whether or not it is taken.
        return jnp.abs(_allowed(logits, sampling.logit_mask))

    def top_k():
        count = jnp.minimum(sampling.top_k, size).astype(jnp.float32)
        return _shortest(distance(), jnp.ones_like(logits), count)

    end = lax.cond(((sampling.top_k < size) & ~greedy).any(), top_k, lambda: everything)

    def top_p():
        mass = jnp.where(_within(distance(), end), jnp.exp(-distance() / temperature), 0.0)
        # A mass that is never reached keeps all, be it as small as to vanish in the sum of the others.
        enough = jnp.where(sampling.top_p < 1, sampling.top_p * mass.sum(-1), jnp.inf)
        return _sooner(end, _shortest(distance(), mass, enough))

    end = lax.cond(((sampling.top_p < 1) & ~greedy).any(), top_p, lambda: end)
    likely = distance() / temperature <= -jnp.log(sampling.min_p)[:, None]
    return likely & _within(distance(), end)


# Tokens of a row are in order of their distance [N, V] from the best one, and of their id where distances are equal.
# An end (distance [N], id [N]) stands for the tokens up to itself in this order; it is the very distance of one of them.


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
