"""Mixture of experts: a router sends each token to a few MLPs, of which `mixture` gives the weighted sum."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_llm.networks.axes import manual_axes_of
from jaxrl_llm.networks.config import DecoderConfig, ExpertsConfig
from jaxrl_llm.networks.matrices import Leaves
from jaxrl_llm.networks.mixture import AXES, mixture
from jaxrl_llm.networks.modules import Mlp, Norm, make_leaves, named, residual_gain

Array = jax.Array


class Routing(NamedTuple):
    """Where tokens were sent; a leading axis counts the layers that have experts."""

    experts: Array  # int32 [layers, B, T, k]
    logits: Array  # of the router, float32 [layers, B, T, E]


def choose(config: ExpertsConfig, logits: Array, bias: Array | None = None, forced: Array | None = None):
    """Experts [..., k] of tokens and their weights [..., k], from the router's logits [..., E].

    Args:
      config: of the experts.
      logits: float32.
      bias: added to the scores where experts are chosen, [E].
      forced: int32 [..., k], experts to use in place of the chosen ones; -1 where the router is free. Their weights are
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
    grouped = preference.reshape(*preference.shape[:-1], config.groups, -1)
    best_two, _ = jax.lax.top_k(grouped, min(2, grouped.shape[-1]))
    _, chosen = jax.lax.top_k(best_two.sum(axis=-1), config.top_groups)
    allowed = jax.nn.one_hot(chosen, config.groups, dtype=bool).any(axis=-2)
    return jnp.where(allowed[..., None], grouped, -jnp.inf).reshape(preference.shape)


class ExpertMatrix(nn.Module):
    """The leaves of a matrix that each expert has; `shape` and `gain` are those of the kernel of one expert."""

    config: DecoderConfig
    shape: tuple[int, int]
    gain: float = 1.0

    @nn.compact
    def __call__(self) -> Leaves:
        initializer = nn.initializers.variance_scaling(self.gain, "fan_in", "truncated_normal", batch_axis=(0,))
        count = self.config.experts.count
        count //= jax.lax.axis_size(manual_axes_of("expert", count))
        leaves = make_leaves(self, initializer, (count, *self.shape), AXES[self.name], leading=1)
        if not self.config.experts.bias or self.name == "down":
            return leaves
        zeros = named(nn.initializers.zeros, AXES[self.name][0], AXES[self.name][2])
        return leaves | {"bias": self.param("bias", zeros, (count, self.shape[1]), self.config.param_dtype)}


class Experts(nn.Module):
    """What stands in place of the MLP: routed experts, and one that all tokens share where the family has it."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Array, forced: Array | None, routed: Array | None = None) -> tuple[Array, Routing]:
        """What experts give for x [B, T, D], which the router chooses by `routed`, by default by x."""
        c, e = self.config, self.config.experts
        routed = x if routed is None else routed
        if e.scaled_router:
            scale = self.param("router_scale", named(nn.initializers.ones, "embed"), (x.shape[-1],), c.param_dtype)
            routed = Norm(c, scaled=False, name="router_norm")(routed.astype(jnp.float32)) * scale * x.shape[-1] ** -0.5
        initializer = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        router = self.param("router", named(initializer, "embed", None), (x.shape[-1], e.count), c.param_dtype)
        logits = routed.astype(jnp.float32) @ router.astype(jnp.float32)
        if e.bias:
            zeros = named(nn.initializers.zeros, None)
            logits = logits + self.param("router_bias", zeros, (e.count,), c.param_dtype).astype(jnp.float32)
        bias = None
        if e.selection_bias:
            bias = self.param("selection_bias", named(nn.initializers.zeros, None), (e.count,), "float32")
        experts, weights = choose(e, logits, bias, forced)
        if e.scaled_router:
            gains = self.param("expert_scale", named(nn.initializers.ones, None), (e.count,), c.param_dtype)
            weights = weights * (jax.nn.one_hot(experts, e.count, dtype=jnp.float32) @ gains.astype(jnp.float32))
        mixed = mixture(c, self.leaves(), x, experts, weights)
        if e.bias:
            zeros = named(nn.initializers.zeros, None, "embed")
            down = self.param("down_bias", zeros, (e.count, x.shape[-1]), c.param_dtype)
            shares = (jax.nn.one_hot(experts, e.count, dtype=jnp.float32) * weights[..., None]).sum(axis=-2)
            mixed = mixed + (shares @ down.astype(jnp.float32)).astype(x.dtype)
        if e.shared_width:
            mixed = mixed + self.weight_of_shared(x) * Mlp(c, e.shared_width, name="shared")(x)
        return mixed, Routing(experts, logits)

    def weight_of_shared(self, x: Array) -> Array | float:
        """What the MLP that all tokens share is multiplied by, [B, T, 1]."""
        if not self.config.experts.shared_gate:
            return 1.0
        initializer = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        gate = self.param("shared_gate", named(initializer, "embed", None), (x.shape[-1], 1), self.config.param_dtype)
        return jax.nn.sigmoid(x.astype(jnp.float32) @ gate.astype(jnp.float32)).astype(x.dtype)

    def leaves(self) -> dict[str, Leaves]:
        """Those of the matrices of all experts."""
        c, shape = self.config, (self.config.hidden_size, self.config.experts.width)
        down = ExpertMatrix(c, shape[::-1], residual_gain(c), name="down")
        return {"gate": ExpertMatrix(c, shape, name="gate")(), "up": ExpertMatrix(c, shape, name="up")(), "down": down()}
