"""Statistics over all actions of a batch, and draws that belong to its tokens."""

import jax
import jax.numpy as jnp

from jaxrl_llm.numerics import masked, materialised, safe_divide, without_infinities
from jaxrl_llm.objectives.ratios import segment_total
from jaxrl_llm.types import Batch


def counted(batch: Batch):
    """Actions with a share in the loss, float [B, T] of 0 and 1."""
    return ((batch.mask > 0) & (batch.weight != 0)).astype(jnp.float32)


def masked_mean(values, mask):
    """Mean of `values`, of any shape, where `mask` is positive; 0 where there is none."""
    return safe_divide(masked(values, mask).sum(), mask.sum())


def action_quantile(values, actions, level: float):
    """Quantile of `values` [B, T] where `actions` is positive, linear between neighbours; 0 where there is none."""
    ordered, count = sorted_actions(values, actions)
    last = jnp.maximum(count - 1, 0)
    place = level * last.astype(jnp.float32)
    below = jnp.floor(place).astype(jnp.int32)
    share = place - below
    return (1.0 - share) * ordered[below] + share * ordered[jnp.minimum(below + 1, last)]


def from_quantile(values, actions, level: float):
    """Whether a value [B, T] is at or above the quantile of `action_quantile`, where `actions` is positive.

    The first entry at or behind the quantile's place decides, the same for all: between two equal ones the line may miss both.
    """
    values = materialised(values)
    ordered, count = sorted_actions(values, actions)
    last = jnp.maximum(count - 1, 0)
    # Rounding shall not make 0.8 * 10 a little more than 8.
    place = jnp.ceil(level * last.astype(jnp.float32) - 1e-4).astype(jnp.int32)
    return (actions > 0) & (values >= ordered[jnp.clip(place, 0, last)])


def sorted_actions(values, actions):
    """`values` [B, T] of the actions in rising order, [B * T] with zeros behind them, and their number."""
    count = (actions > 0).sum()
    ordered = jnp.sort(jnp.where(actions > 0, values, jnp.inf).ravel())
    return jnp.where(jnp.arange(ordered.size) < count, ordered, 0.0), count


def smallest(values, among, count):
    """Whether a value [B, T] is one of the `count` smallest where `among` is positive; equal values enter together."""
    values = materialised(values)
    ordered, available = sorted_actions(values, among)
    threshold = ordered[jnp.clip(count, 1, jnp.maximum(available, 1)) - 1]
    return (among > 0) & (count > 0) & (values <= threshold)


def share_count(share: float, actions):
    """`share` of the actions, rounded down, but at least one."""
    return jnp.maximum(jnp.floor(share * actions.sum()).astype(jnp.int32), 1)


def log_probability_covariance(logp, batch: Batch):
    """(log pi - its mean) (A - its mean) of each action, [B, T]; means are over the actions that count.

    Source: https://arxiv.org/abs/2505.22617, equation 10
    """
    actions = counted(batch)
    logp, advantage = without_infinities(masked(logp, actions)), masked(batch.advantage, actions)
    return masked((logp - masked_mean(logp, actions)) * (advantage - masked_mean(advantage, actions)), actions)


def token_uniform(batch: Batch, seed: int) -> jax.Array:
    """A number from [0, 1) for each token, [B, T], drawn by the step, the actions of its sequence and its place among them.

    It depends neither on the number nor on the row of the sequence, nor on the micro-batch. Sequences with the same actions
    draw the same numbers.
    """
    key = jax.random.fold_in(jax.random.key(seed), batch.step)

    def draw(sequence, position):
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, sequence), position))

    return jax.vmap(jax.vmap(draw))(_sequence_hash(batch), jnp.asarray(batch.positions))


def _sequence_hash(batch: Batch):
    """A number of 32 bits for the actions of each sequence, at each of them, uint32 [B, T]; sums and products wrap round."""
    token, position = (jnp.asarray(x).astype(jnp.uint32) for x in (batch.tokens, batch.positions))
    spread = _mixed(token * jnp.uint32(0x9E3779B1) + _mixed(position))
    return segment_total(jnp.where(batch.mask > 0, spread, 0), batch.segment)


def _mixed(x):
    """Spreads each bit of a uint32 over all others, as the last steps of MurmurHash3 do."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)
