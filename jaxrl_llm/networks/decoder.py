"""The decoder transformer: one Linen definition for all families, its layers stacked and scanned."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxrl_llm.networks import rotary
from jaxrl_llm.networks.attention import attend, cached_attention, cached_mask, packed_mask, uses_splash
from jaxrl_llm.networks.axes import constrain
from jaxrl_llm.networks.config import REMAT, DecoderConfig

Array = jax.Array


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far: one sequence a row, S slots; laid out for `cached_attention`.

    Attributes:
      keys: [L, B, K, H, S].
      values: [L, B, K, S, H].
      positions: int32 [B, S], position of the token in each slot; -1 where the slot is empty or holds padding.
      index: int32 [], the next slot to write, the same in all rows.
    """

    keys: Array
    values: Array
    positions: Array
    index: Array


class Shared(NamedTuple):
    """What all layers of one call share: angles of the rotary embedding, who sees whom, where to write the cache."""

    cosine: Array
    sine: Array
    segments: Array
    mask: Array | None
    slot: Array | None


def named(initializer, *axes: str):
    """Initializer of a parameter whose axes have these names; "embed" is the residual stream's width in parameters only."""
    return nn.with_logical_partitioning(initializer, axes)


def residual_gain(config: DecoderConfig) -> float:
    """Variance of what a new network adds to its residual stream, so that all 2 L additions together have variance 1."""
    return 0.5 / config.num_layers


class Norm(nn.Module):
    """Root-mean-square norm over the last axis, in float32 (https://arxiv.org/abs/1910.07467)."""

    config: DecoderConfig
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", named(nn.initializers.ones, self.axis), x.shape[-1:], self.config.param_dtype)
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.config.norm_epsilon)
        return (normed * scale.astype(jnp.float32)).astype(x.dtype)


class Projection(nn.Module):
    """Linear map of the last `inputs` axes of x. `shape` and `axes` are those of the kernel, inputs first."""

    config: DecoderConfig
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    inputs: int = 1
    bias: bool = False
    gain: float = 1.0  # variance of the outputs at initialisation, over that of the inputs

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dtype, param_dtype = self.config.dtype, self.config.param_dtype
        ins, outs = tuple(range(self.inputs)), tuple(range(self.inputs, len(self.shape)))
        initializer = nn.initializers.variance_scaling(self.gain, "fan_in", "truncated_normal", ins, outs)
        kernel = self.param("kernel", named(initializer, *self.axes), self.shape, param_dtype)
        # As one matrix product of all tokens: with separate batch and length axes, XLA's CPU backend takes twice as long
        # for the gradients.
        fan_in = math.prod(self.shape[: self.inputs])
        y = x.reshape(-1, fan_in) @ kernel.astype(dtype).reshape(fan_in, -1)
        y = y.reshape(*x.shape[: x.ndim - self.inputs], *self.shape[self.inputs :])
        if not self.bias:
            return y
        axes, shape = self.axes[self.inputs :], self.shape[self.inputs :]
        return y + self.param("bias", named(nn.initializers.zeros, *axes), shape, param_dtype).astype(dtype)


class Attention(nn.Module):
    """Causal attention of grouped heads, over the tokens given or over a cache to which it adds them."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Array, shared: Shared, cache: tuple | None, layer: Array) -> tuple[Array, tuple | None]:
        query = self.heads("query", "heads", self.config.num_heads, x, shared)
        key = self.heads("key", "kv_heads", self.config.num_kv_heads, x, shared)
        value = self.heads("value", "kv_heads", self.config.num_kv_heads, x, shared)
        if cache is None:
            mixed = attend(self.config.attention, query, key, value, shared.segments, shared.mask)
        else:
            cache = _write(cache, key, value, layer, shared.slot)
            keys, values = (jax.lax.dynamic_index_in_dim(whole, layer, keepdims=False) for whole in cache)
            mixed = cached_attention(query, keys, values, shared.mask)
        mixed = constrain(mixed, "batch", "length", "heads", "head_dim")
        shape, axes = (*mixed.shape[2:], self.config.hidden_size), ("heads", "head_dim", "embed")
        output = Projection(self.config, shape, axes, inputs=2, gain=residual_gain(self.config), name="output")
        return output(mixed), cache

    def heads(self, name: str, axis: str, count: int, x: Array, shared: Shared) -> Array:
        """Queries, keys or values [B, T, heads, H], normalised and turned where the family wants it."""
        c = self.config
        shape, axes = (c.hidden_size, count, c.head_dim), ("embed", axis, "head_dim")
        projected = Projection(c, shape, axes, bias=c.attention_bias, name=name)(x)
        projected = constrain(projected, "batch", "length", axis, "head_dim")
        if name == "value":
            return projected
        if c.qk_norm:
            projected = Norm(c, "head_dim", name=f"{name}_norm")(projected)
        return rotary.rotate(projected, shared.cosine, shared.sine)


def _write(cache: tuple, key: Array, value: Array, layer: Array, slot: Array) -> tuple:
    """Puts `key` and `value` [B, T, K, H] into slots [slot, slot + T) of a layer of the keys and values of a `Cache`."""
    keys, values = cache
    key = key.transpose(0, 2, 3, 1)[None].astype(keys.dtype)
    value = value.transpose(0, 2, 1, 3)[None].astype(values.dtype)
    keys = jax.lax.dynamic_update_slice(keys, key, (layer, 0, 0, 0, slot))
    return keys, jax.lax.dynamic_update_slice(values, value, (layer, 0, 0, slot, 0))


class Mlp(nn.Module):
    """Gated MLP with SiLU (https://arxiv.org/abs/2002.05202)."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        shape, axes = (c.hidden_size, c.intermediate_size), ("embed", "mlp")
        gate = Projection(c, shape, axes, name="gate")(x)
        up = Projection(c, shape, axes, name="up")(x)
        inner = constrain(nn.silu(gate) * up, "batch", "length", "mlp")
        return Projection(c, shape[::-1], axes[::-1], gain=residual_gain(c), name="down")(inner)


class Layer(nn.Module):
    """One layer, in the form that `nn.scan` wants: the residual stream and the cache are carried from layer to layer."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, carry: tuple[Array, tuple | None], layer: Array, shared: Shared) -> tuple[Any, None]:
        x, cache = carry
        normed = Norm(self.config, name="attention_norm")(x)
        mixed, cache = Attention(self.config, name="attention")(normed, shared, cache, layer)
        x = constrain(x + mixed, "batch", "length", "activation_embed")
        normed = Norm(self.config, name="mlp_norm")(x)
        x = constrain(x + Mlp(self.config, name="mlp")(normed), "batch", "length", "activation_embed")
        return (x, cache), None


def scanned_layers(config: DecoderConfig) -> type[nn.Module]:
    """All layers as one module whose parameters have a leading axis of layers; compile time does not grow with depth."""
    layer = Layer
    if config.remat != "none":
        layer = nn.remat(Layer, policy=REMAT[config.remat], prevent_cse=False)
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=config.num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


class Decoder(nn.Module):
    """Embedding, layers, final norm, output head and value head. Methods are used by `apply` only."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        shape = (c.vocab_size, c.hidden_size)
        table = named(nn.initializers.truncated_normal(0.02), "vocab", "embed")
        self.embedding = self.param("embedding", table, shape, c.param_dtype)
        self.layers = scanned_layers(c)(c)
        self.final_norm = Norm(c)
        if not c.tie_embeddings:
            self.head = self.param("head", table, shape, c.param_dtype)
        if c.value_head:
            zeros = named(nn.initializers.zeros, "embed")
            self.value_head = self.param("value_head", zeros, (c.hidden_size,), "float32")

    def hidden(self, tokens: Array, positions=None, segments=None, cache: Cache | None = None):
        """Hidden states [B, T, D] after the final norm, and the cache with these tokens where one is given."""
        if segments is None:
            segments = jnp.ones_like(tokens)
        if positions is None:
            start = 0 if cache is None else cache.index
            positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        shared, slots = self.shared(positions, segments, cache)
        x = jnp.take(self.embedding, tokens, axis=0, mode="clip").astype(self.config.dtype)
        x = constrain(x, "batch", "length", "activation_embed")
        stored = None if cache is None else (cache.keys, cache.values)
        (x, stored), _ = self.layers((x, stored), jnp.arange(self.config.num_layers), shared)
        x = constrain(self.final_norm(x), "batch", "length", "activation_embed")
        if cache is None:
            return x
        return x, Cache(*stored, positions=slots, index=cache.index + tokens.shape[1])

    def shared(self, positions: Array, segments: Array, cache: Cache | None) -> tuple[Shared, Array | None]:
        """What the layers share, and the positions of the cache's slots after this call."""
        angles = rotary.angles(self.config, positions)
        if cache is None:
            mask = None if uses_splash(self.config.attention) else packed_mask(segments)
            return Shared(*angles, segments, mask, None), None
        positions = jnp.where(segments > 0, positions, -1).astype(jnp.int32)
        slots = jax.lax.dynamic_update_slice(cache.positions, positions, (0, cache.index))
        return Shared(*angles, segments, cached_mask(positions, slots), cache.index), slots

    def unembedding(self) -> Array:
        """Matrix [V, D] of the output head, in the dtype of the computation."""
        return (self.embedding if self.config.tie_embeddings else self.head).astype(self.config.dtype)

    def unembed(self, hidden: Array) -> Array:
        """Logits [..., V], float32, of hidden states [..., D]."""
        logits = jnp.einsum("...d,vd->...v", hidden, self.unembedding(), preferred_element_type=jnp.float32)
        return constrain(logits, "batch", "length", "vocab") if logits.ndim == 3 else logits

    def value(self, hidden: Array) -> Array:
        """Value [...], float32, of hidden states [..., D]."""
        return jnp.einsum("...d,d->...", hidden.astype(jnp.float32), self.value_head)

    def everything(self, tokens: Array) -> None:
        """Touches every parameter, for `init`."""
        self.unembed(self.hidden(tokens))
