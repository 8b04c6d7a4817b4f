"""Per-token statistics of a policy on a batch, without ever building the logits [B, T, V].

The hidden states meet the unembedding matrix one block of tokens by vocabulary at a time. The forward pass keeps
running sums (an online log-sum-exp); the backward pass builds each block's logits again. See the rule of
`token_statistics` for the mathematics.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_llm.types import Batch, Scores

Scorer = Callable[[Any, Batch], Scores]
STATISTICS = frozenset({"entropy", "mean_logp", "value", "hidden"})
TOKEN_CHUNK = 8192
VOCABULARY_CHUNK = 2048


def make_scorer(policy, needs=(), *, temperature: float = 1.0) -> Scorer:
    """A pure function `scorer(params, batch) -> Scores` for a policy.

    Args:
      policy: a network with `hidden` and `unembedding` (chunked path), or any callable
        `apply(params, tokens, positions, segments) -> logits [B, T, V]`.
      needs: statistics beyond `logp`: "entropy", "mean_logp", "value", "hidden".
      temperature: the logits are divided by it; the policy that is scored is the one that is sampled at this
        temperature.

    Raises:
      ValueError: an unknown statistic, a statistic that a bare callable cannot give, or a temperature of 0 or less.
    """
    needs = frozenset(needs)
    if needs - STATISTICS:
        raise ValueError(f"needs has unknown statistics {sorted(needs - STATISTICS)}; known are {sorted(STATISTICS)}")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; a policy can be scored only at a temperature above 0")
    chunked = getattr(policy, "hidden", None) is not None and getattr(policy, "unembedding", None) is not None
    if chunked:
        return functools.partial(_score_network, policy, needs, temperature)
    if needs & {"value", "hidden"}:
        wanted = sorted(needs & {"value", "hidden"})
        raise ValueError(f"needs has {wanted}, which only a network with `hidden` gives; a bare apply gives logits")
    apply = getattr(policy, "apply", policy)
    return functools.partial(_score_logits, apply, needs, temperature)


def actor_critic_scorer(actor: Scorer, critic) -> Scorer:
    """A scorer over `params = {"policy": ..., "critic": ...}` whose values come from a network of their own.

    Args:
      actor: scorer of the policy.
      critic: a network with `hidden` and `value`.
    """

    def scorer(params, batch: Batch) -> Scores:
        hidden = critic.hidden(params["critic"], batch.tokens, batch.positions, batch.segment)
        return actor(params["policy"], batch).replace(value=_state_before(critic.value(params["critic"], hidden), batch))

    return scorer


def is_first(batch: Batch):
    """1 where a token opens its sequence (or is padding): nothing comes before it, so it has no log-probability."""
    previous = jnp.pad(batch.segment[:, :-1], ((0, 0), (1, 0)))
    return (previous != batch.segment) | (batch.segment == 0)


def _previous(values):
    """Shifts [B, T, ...] one token to the right: at t stands what the network said after t - 1."""
    return jnp.roll(values, 1, axis=1)


def _state_before(values, batch: Batch):
    return jnp.where(is_first(batch), 0.0, _previous(values))


def _score_network(network, needs: frozenset[str], temperature: float, params, batch: Batch) -> Scores:
    hidden = network.hidden(params, batch.tokens, batch.positions, batch.segment)
    before = _previous(hidden)
    statistics = token_statistics(before, network.unembedding(params), batch.tokens, temperature, frozenset(needs))
    first = is_first(batch)
    scores = {name: jnp.where(first, 0.0, values) for name, values in statistics.items()}
    if "value" in needs:
        scores["value"] = _state_before(network.value(params, hidden), batch)
    if "hidden" in needs:
        scores["hidden"] = jnp.where(first[..., None], 0.0, before)
    return Scores(**scores)


def _score_logits(apply, needs: frozenset[str], temperature: float, params, batch: Batch) -> Scores:
    logits = apply(params, batch.tokens, batch.positions, batch.segment).astype(jnp.float32) / temperature
    log_probabilities = jax.nn.log_softmax(_previous(logits))
    taken = jnp.take_along_axis(log_probabilities, batch.tokens[..., None], axis=-1)[..., 0]
    statistics = {"logp": taken}
    if "entropy" in needs:
        probabilities = jnp.exp(log_probabilities)
        finite = jnp.where(probabilities > 0, log_probabilities, 0.0)
        statistics["entropy"] = -jnp.sum(probabilities * finite, axis=-1)
    if "mean_logp" in needs:
        statistics["mean_logp"] = log_probabilities.mean(axis=-1)
    first = is_first(batch)
    return Scores(**{name: jnp.where(first, 0.0, values) for name, values in statistics.items()})


def token_statistics(
    hidden,
    matrix,
    targets,
    temperature: float = 1.0,
    needs: frozenset[str] = frozenset(),
    *,
    token_chunk: int = TOKEN_CHUNK,
    vocabulary_chunk: int = VOCABULARY_CHUNK,
) -> dict[str, jax.Array]:
    """Statistics of softmax(hidden @ matrix.T / temperature) at each token.

    Args:
      hidden: [B, T, D] any float type.
      matrix: [V, D] unembedding.
      targets: int [B, T].
      temperature: divides the logits.
      needs: of "entropy" and "mean_logp", those that are wanted; other names are passed over.
      token_chunk: tokens of a block, the same number from each row.
      vocabulary_chunk: vocabulary entries of a block.

    Returns:
      "logp" and what is asked for, float32 [B, T], in nats.
    """
    wanted = ("logp", *sorted(needs & {"entropy", "mean_logp"}))
    rows, length = targets.shape
    chunk = min(max(token_chunk // rows, 1), length)

    def split(values):
        """[B, T, ...] -> [chunks, B * chunk, ...]: a chunk keeps all rows, so that a mesh that splits them stays busy."""
        padded = jnp.pad(values, [(0, 0), (0, -length % chunk)] + [(0, 0)] * (values.ndim - 2))
        parts = jnp.swapaxes(padded.reshape(rows, -1, chunk, *values.shape[2:]), 0, 1)
        return parts.reshape(parts.shape[0], rows * chunk, *values.shape[2:])

    def merge(values):
        return jnp.swapaxes(values.reshape(-1, rows, chunk), 0, 1).reshape(rows, -1)[:, :length]

    columns = min(vocabulary_chunk, matrix.shape[0])
    values = _statistics(columns, 1.0 / temperature, wanted, split(hidden), matrix, split(targets))
    return {name: merge(value) for name, value in zip(wanted, values, strict=True)}


def _vocabulary_blocks(size: int, chunk: int):
    """Starts and first fresh column of each block; the last block overlaps the one before it instead of overhanging."""
    count = -(-size // chunk)
    nominal = jnp.arange(count) * chunk
    starts = jnp.minimum(nominal, size - chunk)
    return starts, nominal - starts


def _logits(hidden, matrix, start, chunk: int, scale: float):
    rows = jax.lax.dynamic_slice_in_dim(matrix, start, chunk)
    return rows, scale * jnp.einsum("nd,vd->nv", hidden, rows.astype(hidden.dtype), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _statistics(chunk: int, scale: float, wanted: tuple[str, ...], hidden, matrix, targets):
    """Statistics, in the order of `wanted`: hidden [C, N, D], matrix [V, D], targets [C, N] -> tuple of [C, N]."""
    return _forward_rule(chunk, scale, wanted, hidden, matrix, targets)[0]


def _forward_rule(chunk, scale, wanted, hidden, matrix, targets):
    def forward(tokens):
        return _forward(chunk, scale, wanted, tokens[0], matrix, tokens[1])

    values, kept = jax.lax.map(forward, (hidden, targets))
    return values, (hidden, matrix, targets, kept)


def _backward_rule(chunk, scale, wanted, residuals, cotangents):
    hidden, matrix, targets, kept = residuals

    def backward(matrix_gradient, tokens):
        hidden, targets, kept, cotangents = tokens
        return _backward(chunk, scale, wanted, matrix, matrix_gradient, hidden, targets, kept, cotangents)

    # Sums over many tokens lose their low bits in bfloat16.
    zeros = jnp.zeros(matrix.shape, jnp.promote_types(matrix.dtype, jnp.float32))
    matrix_gradient, hidden_gradient = jax.lax.scan(backward, zeros, (hidden, targets, kept, cotangents))
    return hidden_gradient, matrix_gradient.astype(matrix.dtype), None


def _forward(chunk, scale, wanted, hidden, matrix, targets):
    """Statistics [N] of N tokens, and what the backward pass keeps of them."""
    tokens, size = hidden.shape[0], matrix.shape[0]

    def add_block(carry, block):
        start, fresh_from = block
        peak, total, moment, plain, taken = carry
        _, logits = _logits(hidden, matrix, start, chunk, scale)
        column = jnp.arange(chunk)
        logits = jnp.where(column >= fresh_from, logits, -jnp.inf)
        new_peak = jnp.maximum(peak, logits.max(axis=1))
        rescale = jnp.exp(peak - new_peak)
        exponential = jnp.exp(logits - new_peak[:, None])
        total = total * rescale + exponential.sum(axis=1)
        finite = jnp.where(column >= fresh_from, logits, 0.0)
        if "entropy" in wanted:
            moment = moment * rescale + (exponential * finite).sum(axis=1)
        if "mean_logp" in wanted:
            plain = plain + finite.sum(axis=1)
        is_target = (start + column == targets[:, None]) & (column >= fresh_from)
        taken = taken + jnp.where(is_target, logits, 0.0).sum(axis=1)
        return (new_peak, total, moment, plain, taken), None

    zeros = jnp.zeros(tokens, jnp.float32)
    carry = (jnp.full(tokens, -jnp.inf), zeros, zeros, zeros, zeros)
    (peak, total, moment, plain, taken), _ = jax.lax.scan(add_block, carry, _vocabulary_blocks(size, chunk))
    normaliser = peak + jnp.log(total)
    values = {"logp": taken - normaliser, "entropy": normaliser - moment / total, "mean_logp": plain / size - normaliser}
    return tuple(values[name] for name in wanted), (normaliser, values["entropy"])


def _backward(chunk, scale, wanted, matrix, matrix_gradient, hidden, targets, kept, cotangents):
    """Adds N tokens to the gradient of the matrix [V, D], and gives that of their hidden states [N, D].

    With logits x, p = softmax(x), Z = logsumexp(x), H the entropy, y the target and V the vocabulary size:

    d logp / dx_j = [j = y] - p_j, d entropy / dx_j = -p_j (x_j - Z + H), d mean_logp / dx_j = 1 / V - p_j.
    """
    normaliser, entropy = kept
    size = matrix.shape[0]
    given = dict(zip(wanted, cotangents, strict=True))
    zeros = jnp.zeros_like(normaliser)
    for_logp, for_entropy, for_mean = (given.get(name, zeros) for name in ("logp", "entropy", "mean_logp"))

    def add_block(carry, block):
        start, fresh_from = block
        hidden_gradient, matrix_gradient = carry
        rows, logits = _logits(hidden, matrix, start, chunk, scale)
        log_probability = logits - normaliser[:, None]
        column = jnp.arange(chunk)
        slope = -(for_logp + for_mean)[:, None]
        if "entropy" in wanted:
            slope = slope - for_entropy[:, None] * (log_probability + entropy[:, None])
        gradient = jnp.exp(log_probability) * slope + (for_mean / size)[:, None]
        gradient = gradient + jnp.where(start + column == targets[:, None], for_logp[:, None], 0.0)
        gradient = (scale * jnp.where(column >= fresh_from, gradient, 0.0)).astype(hidden.dtype)
        hidden_gradient += jnp.einsum("nv,vd->nd", gradient, rows.astype(hidden.dtype), preferred_element_type=jnp.float32)
        rows_gradient = jnp.einsum("nv,nd->vd", gradient, hidden, preferred_element_type=jnp.float32)
        earlier = jax.lax.dynamic_slice_in_dim(matrix_gradient, start, chunk)
        updated = jax.lax.dynamic_update_slice_in_dim(matrix_gradient, earlier + rows_gradient, start, axis=0)
        return (hidden_gradient, updated), None

    carry = (jnp.zeros(hidden.shape, jnp.float32), matrix_gradient)
    (hidden_gradient, matrix_gradient), _ = jax.lax.scan(add_block, carry, _vocabulary_blocks(size, chunk))
    return matrix_gradient, hidden_gradient.astype(hidden.dtype)


_statistics.defvjp(_forward_rule, _backward_rule)
