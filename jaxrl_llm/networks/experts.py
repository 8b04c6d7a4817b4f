"""Mixture of experts: a router sends each token to a few MLPs. Tokens are sorted by expert, so that none is dropped."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_llm.networks.config import DecoderConfig, ExpertsConfig
from jaxrl_llm.networks.leaves import make_leaves, named
from jaxrl_llm.networks.matrices import product
from jaxrl_llm.networks.modules import Mlp, activate, residual_gain

Array = jax.Array


class Routing(NamedTuple):
    """Where tokens were sent; a leading axis counts the layers that have experts.

    Attributes:
      experts: int32 [layers, B, T, k].
      logits: of the router, float32 [layers, B, T, E].
    """

    experts: Array
    logits: Array


def choose(config: ExpertsConfig, logits: Array, bias: Array | None = None, forced: Array | None = None):
    """Experts [n, k] of n tokens and their weights [n, k], from the router's logits [n, E].

    Args:
      config: of the experts.
      logits: float32.
      bias: added to the scores where experts are chosen, [E].
      forced: int32 [n, k], experts to use in place of the chosen ones; -1 where the router is free. Their weights are
        those that the logits give them (routing replay, https://arxiv.org/abs/2510.11370).
    """
    scores = jax.nn.softmax(logits) if config.score == "softmax" else jax.nn.sigmoid(logits)
    preference = jax.lax.stop_gradient(scores if bias is None else scores + bias)
    _, experts = jax.lax.top_k(_within_best_groups(config, preference), config.per_token)
    if forced is not None:
        experts = jnp.where(forced >= 0, forced, experts)
    weights = jnp.take_along_axis(scores, experts, axis=-1)
    if config.normalize:
        weights = weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-18)  # the square of which is not 0 yet
    return experts, config.scale * weights


def _within_best_groups(config: ExpertsConfig, preference: Array) -> Array:
    if config.groups == config.top_groups:
        return preference
    grouped = preference.reshape(len(preference), config.groups, -1)
    best_two, _ = jax.lax.top_k(grouped, min(2, grouped.shape[-1]))
    _, chosen = jax.lax.top_k(best_two.sum(axis=-1), config.top_groups)
    allowed = jax.nn.one_hot(chosen, config.groups, dtype=bool).any(axis=1)
    return jnp.where(allowed[:, :, None], grouped, -jnp.inf).reshape(preference.shape)


class ExpertProjection(nn.Module):
    """Linear map of rows that are sorted by expert: `shape` and `axes` are those of the kernel of one expert."""

    config: DecoderConfig
    shape: tuple[int, int]
    axes: tuple[str, str]
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: Array, sizes: Array) -> Array:
        initializer = nn.initializers.variance_scaling(self.gain, "fan_in", "truncated_normal", batch_axis=(0,))
        shape = (self.config.experts.count, *self.shape)
        leaves = make_leaves(self, initializer, shape, ("expert", *self.axes), leading=1)
        return product(self.config, leaves, x, leading=1, matmul=lambda x, kernel: jax.lax.ragged_dot(x, kernel, sizes))


class Experts(nn.Module):
    """What stands in place of the MLP: routed experts, and one that all tokens share where the family has it."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Array, forced: Array | None) -> tuple[Array, Routing]:
        c, e = self.config, self.config.experts
        tokens = x.reshape(-1, x.shape[-1])
        initializer = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        router = self.param("router", named(initializer, "embed", "expert"), (x.shape[-1], e.count), c.param_dtype)
        logits = tokens.astype(jnp.float32) @ router.astype(jnp.float32)
        bias = None
        if e.selection_bias:
            bias = self.param("selection_bias", named(nn.initializers.zeros, "expert"), (e.count,), "float32")
        forced = None if forced is None else forced.reshape(-1, e.per_token)
        experts, weights = choose(e, logits, bias, forced)
        mixed = self.mixture(tokens, experts, weights).astype(x.dtype).reshape(x.shape)
        if e.shared_width:
            mixed = mixed + Mlp(c, e.shared_width, name="shared")(x)
        by_token = x.shape[:-1]
        return mixed, Routing(experts.reshape(*by_token, -1), logits.reshape(*by_token, -1))

    def mixture(self, tokens: Array, experts: Array, weights: Array) -> Array:
        """Sum over a token's experts of weight * MLP(token), float32 [n, D]."""
        c, e = self.config, self.config.experts
        shape, axes = (c.hidden_size, e.width), ("embed", "mlp")
        order = jnp.argsort(experts.reshape(-1), stable=True)
        sizes = jnp.bincount(experts.reshape(-1), length=e.count).astype(jnp.int32)
        rows = _permuted(jnp.repeat(tokens, e.per_token, axis=0), order)
        gate = ExpertProjection(c, shape, axes, name="gate")(rows, sizes)
        up = ExpertProjection(c, shape, axes, name="up")(rows, sizes)
        down = ExpertProjection(c, shape[::-1], axes[::-1], gain=residual_gain(c), name="down")
        outputs = _permuted(down(activate(c, gate) * up, sizes), jnp.argsort(order))
        return jnp.einsum("nkd,nk->nd", outputs.reshape(*experts.shape, -1), weights, preferred_element_type=jnp.float32)


def _permuted(rows: Array, order: Array) -> Array:
    # Each row once: the gradient is a permutation too, with no sums whose order could differ from run to run.
    return rows.at[order].get(unique_indices=True, mode="promise_in_bounds")
