"""Statistics of softmax(hidden @ matrix.T) at each token, without ever building the logits [B, T, V].

The hidden states meet the unembedding matrix one block of the vocabulary and of tokens at a time. The forward pass keeps
running sums (an online log-sum-exp); the backward pass builds each block's logits again.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_llm.networks.axes import Split, first_of, parts, split_of

TOKEN_CHUNK = 8192
VOCABULARY_CHUNK = 2048


def token_statistics(
    hidden: jax.Array, matrix: jax.Array, targets: jax.Array, temperature: float = 1.0,
    needs: frozenset[str] = frozenset(), *, softcap: float | None = None,
    token_chunk: int = TOKEN_CHUNK, vocabulary_chunk: int = VOCABULARY_CHUNK,
) -> dict[str, jax.Array]:  # fmt: skip
    """Statistics of softmax(hidden @ matrix.T / temperature) at each token, with the products capped where a cap is given.

    Args:
      hidden: [B, T, D] any float type.
      matrix: [V, D] unembedding.
      targets: int [B, T].
      temperature: divides the logits.
      needs: of "entropy", "mean_logp" and "max_logp", which has no gradient, those that are wanted; other names are passed
        over.
      softcap: c, each product x becomes c tanh(x / c) before it is divided; None for no cap.
      token_chunk: tokens of a block on each device, the same number from each row.
      vocabulary_chunk: vocabulary entries of a block.

    Returns: "logp" and what is asked for, float32 [B, T], in nats.
    """
    wanted = ("logp", *sorted(needs & {"entropy", "mean_logp", "max_logp"}))
    split = split_of(targets.shape, matrix.shape)
    values = _statistics(
        Head(vocabulary_chunk, 1.0 / temperature, softcap), wanted, token_chunk, split, hidden, matrix, targets
    )
    found = dict(zip(wanted, values, strict=True))
    return found | {name: jax.lax.stop_gradient(found[name]) for name in found.keys() & {"max_logp"}}


def _in_chunks(values, size: int):
    """[B, T, ...] -> [chunks, B * columns, ...], about `size` tokens in each.

    A chunk keeps all rows, so that a mesh that splits them in a way of its own stays busy.
    """
    rows, length = values.shape[:2]
    columns = min(max(size // rows, 1), length)
    padded = jnp.pad(values, [(0, 0), (0, -length % columns)] + [(0, 0)] * (values.ndim - 2))
    parts = jnp.swapaxes(padded.reshape(rows, -1, columns, *values.shape[2:]), 0, 1)
    return parts.reshape(parts.shape[0], rows * columns, *values.shape[2:])


def _from_chunks(values, rows: int, length: int):
    """What `_in_chunks` made of [rows, length, ...], back again."""
    parts = values.reshape(values.shape[0], rows, -1, *values.shape[2:])
    return jnp.swapaxes(parts, 0, 1).reshape(rows, -1, *values.shape[2:])[:, :length]


def _vocabulary_blocks(size: int, chunk: int):
    """Starts and first fresh column of each block; the last block overlaps the one before it instead of overhanging."""
    count = -(-size // chunk)
    nominal = jnp.arange(count) * chunk
    starts = jnp.minimum(nominal, size - chunk)
    return starts, nominal - starts


class Head(NamedTuple):
    """How logits come of hidden states and the rows of the matrix, `chunk` rows at a time."""

    chunk: int
    scale: float
    softcap: float | None

    def rows(self, matrix: jax.Array, start: jax.Array | int, dtype: Any, width: tuple[str, ...] = ()) -> jax.Array:
        """Rows [chunk, D] of the matrix from `start` on, whole where mesh axes split their width."""
        rows = jax.lax.dynamic_slice_in_dim(matrix, start, self.chunk).astype(dtype)
        return jax.lax.all_gather(rows, width, axis=1, tiled=True) if width else rows

    def logits(self, hidden: jax.Array, rows: jax.Array) -> jax.Array:
        """Logits [N, chunk] of hidden states [N, D] and rows [chunk, D]."""
        products = jnp.einsum("nd,vd->nv", hidden, rows, preferred_element_type=jnp.float32)
        if self.softcap is None:
            return self.scale * products
        return self.scale * self.softcap * jnp.tanh(products / self.softcap)

    def all_logits(self, hidden: jax.Array, matrix: jax.Array) -> jax.Array:
        """Logits [N, V] of all rows of the matrix at once; the head's chunk has to be all of them."""
        return self.logits(hidden, self.rows(matrix, 0, hidden.dtype))

    def slope(self, logits: jax.Array) -> jax.Array | float:
        """d logit / d product."""
        if self.softcap is None:
            return self.scale
        return self.scale * (1.0 - (logits / (self.scale * self.softcap)) ** 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _statistics(head: Head, wanted: tuple[str, ...], token_chunk: int, split: Split, hidden, matrix, targets):
    """Statistics, in the order of `wanted`: hidden [B, T, D], matrix [V, D], targets [B, T] -> tuple of [B, T].

    Blocks of the vocabulary are the outer loop and tokens the inner one, so that on a mesh a block is gathered once a pass, and
    its gradient is summed over devices once. Each device takes its own part of the vocabulary for its own tokens, and the
    collectives are written out: the partitioner would gather the matrix for every block of tokens.
    """
    return _forward_rule(head, wanted, token_chunk, split, hidden, matrix, targets)[0]


def _forward_rule(head, wanted, token_chunk, split, hidden, matrix, targets):
    tokens, of_matrix = split.specs
    local = functools.partial(_forward, head, wanted, token_chunk, split)
    values, kept = _on_each_device(local, split, (tokens, of_matrix, tokens), tokens)(hidden, matrix, targets)
    return values, (hidden, matrix, targets, kept)


def _backward_rule(head, wanted, token_chunk, split, residuals, cotangents):
    tokens, of_matrix = split.specs
    local = functools.partial(_backward, head, wanted, token_chunk, split)
    specs = (tokens, of_matrix, tokens, tokens, tokens)
    gradients = _on_each_device(local, split, specs, (tokens, of_matrix))(*residuals, cotangents)
    return *gradients, None


def _on_each_device(function: Callable, split: Split, inputs, outputs) -> Callable:
    if not any(split):
        return function
    return jax.shard_map(function, in_specs=inputs, out_specs=outputs, check_vma=False)


def _forward(head: Head, wanted, token_chunk, split: Split, hidden, matrix, targets):
    """Statistics [B, T] of a device's tokens, and what the backward pass keeps of them."""
    shape, chunk = targets.shape, min(head.chunk, matrix.shape[0])
    head, first = head._replace(chunk=chunk), first_of(split.vocabulary, matrix.shape[0])
    hidden, targets = _in_chunks(hidden, token_chunk), _in_chunks(targets, token_chunk)

    def add_block(carry, block):
        start, fresh_from = block
        rows = head.rows(matrix, start, hidden.dtype, split.width)
        column = jnp.arange(chunk)

        def add_tokens(tokens):
            hidden, targets, (peak, total, moment, plain, taken) = tokens
            logits = jnp.where(column >= fresh_from, head.logits(hidden, rows), -jnp.inf)
            new_peak = jnp.maximum(peak, logits.max(axis=1))
            rescale = jnp.exp(peak - new_peak)
            exponential = jnp.exp(logits - new_peak[:, None])
            total = total * rescale + exponential.sum(axis=1)
            finite = jnp.where(column >= fresh_from, logits, 0.0)
            if "entropy" in wanted:
                moment = moment * rescale + (exponential * finite).sum(axis=1)
            if "mean_logp" in wanted:
                plain = plain + finite.sum(axis=1)
            is_target = (first + start + column == targets[:, None]) & (column >= fresh_from)
            taken = taken + jnp.where(is_target, logits, 0.0).sum(axis=1)
            return new_peak, total, moment, plain, taken

        return jax.lax.map(add_tokens, (hidden, targets, carry)), None

    zeros = jnp.zeros(targets.shape, jnp.float32)
    carry = (zeros - jnp.inf, zeros, zeros, zeros, zeros)
    carry, _ = jax.lax.scan(add_block, carry, _vocabulary_blocks(matrix.shape[0], chunk))
    peak, total, moment, plain, taken = (_from_chunks(value, *shape) for value in carry)
    if split.vocabulary:
        best = jax.lax.pmax(peak, split.vocabulary)
        share = jnp.exp(peak - best)
        total, moment, plain, taken = jax.lax.psum((total * share, moment * share, plain, taken), split.vocabulary)
        peak = best
    normaliser, size = peak + jnp.log(total), matrix.shape[0] * parts(split.vocabulary)
    values = {"logp": taken - normaliser, "entropy": normaliser - moment / total, "mean_logp": plain / size - normaliser}
    values["max_logp"] = peak - normaliser
    return tuple(values[name] for name in wanted), (normaliser, values["entropy"])


def _backward(head: Head, wanted, token_chunk, split: Split, hidden, matrix, targets, kept, cotangents):
    """Gradients of a device's hidden states [B, T, D] and of its part of the matrix [V, D].

    With logits x, p = softmax(x), Z = logsumexp(x), H the entropy, y the target and V the vocabulary size (what comes
    before the logits, a scale and maybe a cap, is the head's to differentiate):

    d logp / dx_j = [j = y] - p_j, d entropy / dx_j = -p_j (x_j - Z + H), d mean_logp / dx_j = 1 / V - p_j.
    """
    shape, chunk = targets.shape, min(head.chunk, matrix.shape[0])
    head, first = head._replace(chunk=chunk), first_of(split.vocabulary, matrix.shape[0])
    size, dtype = matrix.shape[0] * parts(split.vocabulary), hidden.dtype
    given = dict(zip(wanted, cotangents, strict=True))
    zeros = jnp.zeros(shape, jnp.float32)
    given = tuple(given.get(name, zeros) for name in ("logp", "entropy", "mean_logp"))
    tokens = jax.tree.map(lambda values: _in_chunks(values, token_chunk), (hidden, targets, kept, given))

    def add_block(carry, block):
        start, fresh_from = block
        hidden_gradient, matrix_gradient = carry
        rows = head.rows(matrix, start, dtype, split.width)
        column = jnp.arange(chunk)

        def add_tokens(rows_gradient, tokens):
            (hidden, targets, (normaliser, entropy), (for_logp, for_entropy, for_mean)), hidden_gradient = tokens
            logits = head.logits(hidden, rows)
            log_probability = logits - normaliser[:, None]
            slope = -(for_logp + for_mean)[:, None]
            if "entropy" in wanted:
                slope = slope - for_entropy[:, None] * (log_probability + entropy[:, None])
            gradient = jnp.exp(log_probability) * slope + (for_mean / size)[:, None]
            gradient = gradient + jnp.where(first + start + column == targets[:, None], for_logp[:, None], 0.0)
            gradient = (head.slope(logits) * jnp.where(column >= fresh_from, gradient, 0.0)).astype(dtype)
            hidden_gradient += jnp.einsum("nv,vd->nd", gradient, rows, preferred_element_type=jnp.float32)
            rows_gradient += jnp.einsum("nv,nd->vd", gradient, hidden, preferred_element_type=jnp.float32)
            return rows_gradient, hidden_gradient

        # Sums over many tokens lose their low bits in bfloat16.
        nothing = jnp.zeros((chunk, hidden.shape[-1]), matrix_gradient.dtype)
        rows_gradient, hidden_gradient = jax.lax.scan(add_tokens, nothing, (tokens, hidden_gradient))
        earlier = jax.lax.dynamic_slice_in_dim(matrix_gradient, start, chunk)
        added = earlier + _summed(rows_gradient, split)
        return (hidden_gradient, jax.lax.dynamic_update_slice_in_dim(matrix_gradient, added, start, axis=0)), None

    carry = (jnp.zeros(tokens[0].shape, jnp.float32), jnp.zeros(matrix.shape, jnp.promote_types(matrix.dtype, jnp.float32)))
    (hidden_gradient, matrix_gradient), _ = jax.lax.scan(add_block, carry, _vocabulary_blocks(matrix.shape[0], chunk))
    hidden_gradient = _from_chunks(hidden_gradient, *shape)
    if split.vocabulary:
        hidden_gradient = jax.lax.psum(hidden_gradient, split.vocabulary)
    return hidden_gradient.astype(dtype), matrix_gradient.astype(matrix.dtype)


def _summed(rows_gradient, split: Split):
    """Sum over all tokens of [chunk, D], of which a device keeps its part of the width."""
    tokens = split.rows + split.columns
    if not set(split.width) <= set(tokens):
        part = rows_gradient.shape[1] // parts(split.width)
        rows_gradient = jax.lax.dynamic_slice_in_dim(rows_gradient, first_of(split.width, part), part, axis=1)
        return jax.lax.psum(rows_gradient, tokens) if tokens else rows_gradient
    if split.width:
        rows_gradient = jax.lax.psum_scatter(rows_gradient, split.width, scatter_dimension=1, tiled=True)
    others = tuple(axis for axis in tokens if axis not in split.width)
    return jax.lax.psum(rows_gradient, others) if others else rows_gradient


_statistics.defvjp(_forward_rule, _backward_rule)
