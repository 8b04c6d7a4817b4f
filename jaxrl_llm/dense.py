"""Statistics that take all logits of a token at once, a few tokens at a time, so that [B, T, V] is never built.

They cost a second pass through the unembedding, and are computed only where an objective asks for them.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_llm.numerics import materialised
from jaxrl_llm.types import Array, Batch

DENSE = frozenset({"candidate_logp", "log_collision", "top_entropy"})
LOGITS = 2**24  # of a chunk: 64 MB in float32


def dense_statistics(
    head: Callable[..., Any], inputs: tuple[Any, ...], batch: Batch, needs: Iterable[str]
) -> dict[str, jax.Array]:
    """Those of `DENSE` that are needed, float32, in nats.

    "candidate_logp" [B, T, K] are the log-probabilities of `batch.extras["candidates"]`, -inf for a candidate of -1;
    "log_collision" [B, T] is the log of the sum of squared probabilities; "top_entropy:0.3" [B, T] the entropy of the
    distribution without its floor(0.3 V) least likely entries, renormalised (https://arxiv.org/abs/2509.03493; entries that
    tie with the least likely one kept stay).

    Args:
      head: `head(states [n, ...], *constants) -> logits [n, V]`.
      inputs: the states [B, T, ...] before each token, then what else the head takes.
      batch: of the tokens.
      needs: names, others among them.

    Raises ValueError: candidates are needed that the batch does not carry.
    """
    asked = {name.partition(":")[0]: name.partition(":")[2] for name in sorted(needs) if name.partition(":")[0] in DENSE}
    if not asked:
        return {}
    candidates = batch.extras.get("candidates")
    if "candidate_logp" in asked and candidates is None:
        raise ValueError("candidate_logp needs batch.extras['candidates'], which is missing; fill it before the update")
    # Without candidates, one that nobody reads: arrays of no columns cannot be split.
    ids = jnp.zeros((*batch.tokens.shape, 1), jnp.int32) if candidates is None else candidates

    def statistics(states, own, *constants):
        logp = jax.nn.log_softmax(head(states, *constants).astype(jnp.float32))
        found = {"candidate_logp": lambda: at_candidates(logp, own), "log_collision": lambda: collision(logp)}
        found["top_entropy"] = lambda: top_entropy(logp, float(asked["top_entropy"]))
        return {name: found[name]() for name in asked}

    return _by_chunks(statistics, head, inputs, (ids,))


def pick_candidates(
    head: Callable[..., Any], inputs: tuple[Any, ...], batch: Batch, key: jax.Array, pick: Callable[..., jax.Array]
) -> jax.Array:
    """Ids [B, T, K] that `pick(log_probabilities [n, V], tokens [n], keys [n])` chooses at each token.

    The keys are those of rollout and position, so that the packing does not change what is drawn.
    """

    def of_token(rollout, position):
        return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, rollout), position))

    keys = jax.vmap(jax.vmap(of_token))(jnp.asarray(batch.rollout), jnp.asarray(batch.positions))

    def choose(states, tokens, key_data, *constants):
        keys = jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(key))
        return pick(jax.nn.log_softmax(head(states, *constants).astype(jnp.float32)), tokens, keys)

    return jax.lax.stop_gradient(_by_chunks(choose, head, inputs, (batch.tokens, keys)))


def at_candidates(logp: jax.Array, ids: Array) -> jax.Array:
    """Entries of `logp` [n, V] at `ids` [n, K]; -inf where an id is -1."""
    return jnp.where(ids >= 0, jnp.take_along_axis(logp, jnp.maximum(ids, 0), axis=-1), -jnp.inf)


def collision(logp: jax.Array) -> jax.Array:
    """log of the sum of squared probabilities, [n]."""
    return jax.nn.logsumexp(2.0 * logp, axis=-1)


def top_entropy(logp: jax.Array, cut: float) -> jax.Array:
    """Entropy [n] of the distribution without its floor(cut V) least likely entries."""
    sizes = materialised(logp)
    lowest = jnp.sort(sizes, axis=-1)[..., int(cut * logp.shape[-1]), None]
    kept = (sizes >= lowest) & jnp.isfinite(sizes)
    renormalised = logp - jax.nn.logsumexp(jnp.where(kept, logp, -jnp.inf), axis=-1, keepdims=True)
    finite = jnp.where(kept, renormalised, 0.0)
    return -jnp.sum(jnp.where(kept, jnp.exp(finite) * finite, 0.0), axis=-1)


def _by_chunks(function: Callable, head: Callable, inputs: tuple, per_token: tuple):
    """`function(states [n, ...], *per_token [n, ...], *constants)` over chunks of tokens; logits are built again backwards."""
    states, *constants = inputs
    rows, length = states.shape[:2]
    size = jax.eval_shape(head, states[0, :1], *constants).shape[-1]
    # Sums of gradients over many chunks lose their low bits in bfloat16.
    wide = [value.astype(jnp.promote_types(value.dtype, jnp.float32)) for value in constants]
    chunk = min(max(LOGITS // (size * rows), 1), length)

    def split(values):
        padded = jnp.pad(values, [(0, 0), (0, -length % chunk)] + [(0, 0)] * (values.ndim - 2))
        return jnp.moveaxis(padded.reshape(rows, -1, chunk, *values.shape[2:]), 1, 0)

    def merge(values):
        return jnp.moveaxis(values, 0, 1).reshape(rows, -1, *values.shape[3:])[:, :length]

    @jax.checkpoint
    def of_chunk(parts):
        flat = [part.reshape(rows * chunk, *part.shape[2:]) for part in parts]
        narrow = [value.astype(given.dtype) for value, given in zip(wide, constants, strict=True)]
        found = function(*flat, *narrow)
        return jax.tree.map(lambda leaf: leaf.reshape(rows, chunk, *leaf.shape[1:]), found)

    found = jax.lax.map(of_chunk, tuple(map(split, (states, *per_token))))
    return jax.tree.map(merge, found)
