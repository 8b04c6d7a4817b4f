"""The decoder transformer: one Linen definition for all families, its layers stacked and scanned."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxrl_llm.networks import rotary
from jaxrl_llm.networks.attention import attend, cached_attention, cached_mask, packed_mask, softcapped, uses_splash
from jaxrl_llm.networks.axes import constrain
from jaxrl_llm.networks.config import REMAT, DecoderConfig
from jaxrl_llm.networks.experts import Experts, Routing
from jaxrl_llm.networks.leaves import VocabularyAdapter, named
from jaxrl_llm.networks.matrices import gains, is_adapted, merged
from jaxrl_llm.networks.modules import Mlp, Norm, Projection, residual_gain

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
    """What all layers of one call share: who sees whom and angles of the rotary embedding, for each kind of layer."""

    angles: tuple[tuple[Array, Array], ...]
    masks: tuple[Array | None, ...]
    segments: Array
    slot: Array | None


class Numbered(NamedTuple):
    """What is told to each layer: its number, the number of its kind, and experts that it must use, [B, T, k], or None."""

    layer: Array
    kind: Array
    forced: Array | None


def of_kind(values: tuple, kind: Array):
    """The one of `values`, trees of equal shapes, that belongs to a layer's kind."""
    if len(values) == 1:
        return values[0]
    return jax.tree.map(lambda *leaves: jax.lax.select_n(kind, *leaves), *values)


class Attention(nn.Module):
    """Causal attention of grouped heads, over the tokens given or over a cache to which it adds them."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Array, shared: Shared, cache: tuple | None, own: Numbered) -> tuple[Array, tuple | None]:
        c = self.config
        angles = of_kind(shared.angles, own.kind)
        query = self.heads("query", "heads", c.num_heads, x, angles)
        key = self.heads("key", "kv_heads", c.num_kv_heads, x, angles)
        value = self.heads("value", "kv_heads", c.num_kv_heads, x, angles)
        mask = of_kind(shared.masks, own.kind)
        if cache is None:
            mixed = attend(c, query, key, value, shared.segments, mask, own.kind)
        else:
            cache = _write(cache, key, value, own.layer, shared.slot)
            keys, values = (jax.lax.dynamic_index_in_dim(whole, own.layer, keepdims=False) for whole in cache)
            mixed = cached_attention(query, keys, values, mask, scale=c.query_scale, softcap=c.attention_softcap)
        mixed = constrain(mixed, "batch", "length", "heads", "head_dim")
        shape, axes = (*mixed.shape[2:], c.hidden_size), ("heads", "head_dim", "embed")
        output = Projection(c, shape, axes, inputs=2, gain=residual_gain(c), name="output")
        return output(mixed), cache

    def heads(self, name: str, axis: str, count: int, x: Array, angles: tuple[Array, Array]) -> Array:
        """Queries, keys or values [B, T, heads, H], normalised and turned where the family wants it."""
        c = self.config
        shape, axes = (c.hidden_size, count, c.head_dim), ("embed", axis, "head_dim")
        projected = Projection(c, shape, axes, bias=c.attention_bias, name=name)(x)
        projected = constrain(projected, "batch", "length", axis, "head_dim")
        if name == "value":
            return projected
        if c.qk_norm != "none":
            normed = ("head_dim",) if c.qk_norm == "head" else (axis, "head_dim")
            projected = Norm(c, normed, name=f"{name}_norm")(projected)
        return rotary.rotate(projected, *angles)


def _write(cache: tuple, key: Array, value: Array, layer: Array, slot: Array) -> tuple:
    """Puts `key` and `value` [B, T, K, H] into slots [slot, slot + T) of a layer of the keys and values of a `Cache`."""
    keys, values = cache
    key = key.transpose(0, 2, 3, 1)[None].astype(keys.dtype)
    value = value.transpose(0, 2, 1, 3)[None].astype(values.dtype)
    keys = jax.lax.dynamic_update_slice(keys, key, (layer, 0, 0, 0, slot))
    return keys, jax.lax.dynamic_update_slice(values, value, (layer, 0, 0, slot, 0))


class Layer(nn.Module):
    """One layer, in the form that `nn.scan` wants: the residual stream and the cache are carried from layer to layer."""

    config: DecoderConfig
    sparse: bool = False

    @nn.compact
    def __call__(self, carry: tuple[Array, tuple | None], own: Numbered, shared: Shared) -> tuple[Any, Routing | None]:
        x, cache = carry
        normed = self.norm("attention_norm", x)
        mixed, cache = Attention(self.config, name="attention")(normed, shared, cache, own)
        x = constrain(x + self.added("attention_post_norm", mixed), "batch", "length", "activation_embed")
        normed, routing = self.norm("mlp_norm", x), None
        if self.sparse:
            mixed, routing = Experts(self.config, name="experts")(normed, own.forced)
        else:
            mixed = Mlp(self.config, self.config.intermediate_size, name="mlp")(normed)
        x = constrain(x + self.added("mlp_post_norm", mixed), "batch", "length", "activation_embed")
        return (x, cache), routing

    def norm(self, name: str, x: Array) -> Array:
        """The norm called `name`."""
        return Norm(self.config, name=name)(x)

    def added(self, name: str, x: Array) -> Array:
        """What goes into the residual stream: normalised first where the family wants it."""
        return self.norm(name, x) if self.config.post_norms else x


def scanned_layers(config: DecoderConfig, count: int, sparse: bool) -> nn.Module:
    """Layers as one module whose parameters have a leading axis of layers; compile time does not grow with depth."""
    layer = Layer
    if config.remat != "none":
        layer = nn.remat(Layer, policy=REMAT[config.remat], prevent_cse=False)
    scanned = nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=count,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(config, sparse)


class Decoder(nn.Module):
    """Embedding, layers, final norm, output head and value head. Methods are used by `apply` only."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        shape = (c.vocab_size, c.hidden_size)
        table = named(nn.initializers.truncated_normal(0.02), "vocab", "embed")
        self.embedding = self.param("embedding", table, shape, c.param_dtype)
        dense = dense_layers(c)
        if c.experts is None or dense:
            self.layers = scanned_layers(c, dense, sparse=False)
        if c.experts is not None:
            self.sparse_layers = scanned_layers(c, c.num_layers - dense, sparse=True)
        self.final_norm = Norm(c)
        if c.language_head and not c.tie_embeddings:
            self.head = self.param("head", table, shape, c.param_dtype)
        if is_adapted(c, "embedding"):
            self.embedding_adapter = VocabularyAdapter(c)
        if c.language_head and is_adapted(c, "head"):
            self.head_adapter = VocabularyAdapter(c)
        if c.value_head:
            zeros = named(nn.initializers.zeros, "values", "embed")
            self.value_head = self.param("value_head", zeros, (c.value_head, c.hidden_size), "float32")

    def hidden(self, tokens: Array, positions=None, segments=None, cache: Cache | None = None):
        """Hidden states [B, T, D] after the final norm, and the cache with these tokens where one is given."""
        hidden, cache, _ = self.routed(tokens, positions, segments, cache)
        return hidden if cache is None else (hidden, cache)

    def routed(self, tokens: Array, positions=None, segments=None, cache: Cache | None = None, routes=None):
        """Hidden states, the cache or None, and the `Routing` of layers with experts or None.

        `routes`, int32 [layers, B, T, k], are experts to use; -1 leaves the choice to the router.
        """
        if segments is None:
            segments = jnp.ones_like(tokens)
        if positions is None:
            start = 0 if cache is None else cache.index
            positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        shared, slots = self.shared(positions, segments, cache)
        x = constrain(self.embed(tokens), "batch", "length", "activation_embed")
        carry, routing = self.all_layers((x, None if cache is None else (cache.keys, cache.values)), shared, routes)
        x, stored = carry
        x = constrain(self.final_norm(x), "batch", "length", "activation_embed")
        if cache is not None:
            cache = Cache(*stored, positions=slots, index=cache.index + tokens.shape[1])
        return x, cache, routing

    def embed(self, tokens: Array) -> Array:
        """What the residual stream begins with, [B, T, D]."""
        c = self.config
        x = jnp.take(self.embedding, tokens, axis=0, mode="clip").astype(c.dtype)
        if is_adapted(c, "embedding"):
            x = self.adapted(x, tokens)
        return x * jnp.asarray(c.hidden_size**0.5, c.dtype) if c.scale_embeddings else x

    def adapted(self, x: Array, tokens: Array) -> Array:
        """Embeddings [B, T, D] with their adapter."""
        adapter, leaves = self.config.adapter, self.embedding_adapter(self.embedding)
        own = jnp.take(leaves["lora_a"], tokens, axis=0, mode="clip").astype(x.dtype)
        x = x + adapter.scale * (own @ leaves["lora_b"].astype(x.dtype))
        return x if adapter.kind != "dora" else x * gains(adapter, leaves, self.embedding).astype(x.dtype)

    def all_layers(self, carry: tuple, shared: Shared, routes: Array | None) -> tuple[tuple, Routing | None]:
        """Dense layers, then those with experts; either may be missing."""
        c, dense, routing = self.config, dense_layers(self.config), None
        layers, kinds = jnp.arange(c.num_layers), jnp.asarray(c.kind_of_layer, jnp.int32)
        if c.experts is None or dense:
            carry, _ = self.layers(carry, Numbered(layers[:dense], kinds[:dense], None), shared)
        if c.experts is not None:
            carry, routing = self.sparse_layers(carry, Numbered(layers[dense:], kinds[dense:], routes), shared)
        return carry, routing

    def shared(self, positions: Array, segments: Array, cache: Cache | None) -> tuple[Shared, Array | None]:
        """What the layers share, and the positions of the cache's slots after this call."""
        kinds, width = self.config.kinds, self.config.rotary_dim
        angles = tuple(rotary.angles(kind, width, positions) for kind in kinds)
        if cache is None:
            splash = uses_splash(self.config.attention)
            masks = tuple(None if splash else packed_mask(segments, kind.window) for kind in kinds)
            return Shared(angles, masks, segments, None), None
        positions = jnp.where(segments > 0, positions, -1).astype(jnp.int32)
        slots = jax.lax.dynamic_update_slice(cache.positions, positions, (0, cache.index))
        masks = tuple(cached_mask(positions, slots, kind.window) for kind in kinds)
        return Shared(angles, masks, segments, cache.index), slots

    def unembedding(self) -> Array:
        """Matrix [V, D] of the output head with its adapter, in the dtype of the computation."""
        if not self.config.language_head:
            raise ValueError("language_head=False: this network has no logits, only values")
        table = self.embedding if self.config.tie_embeddings else self.head
        if is_adapted(self.config, "head"):
            table = merged(self.config, self.head_adapter(table) | {"kernel": table.T}).T
        return table.astype(self.config.dtype)

    def unembed(self, hidden: Array) -> Array:
        """Logits [..., V], float32, of hidden states [..., D]."""
        logits = jnp.einsum("...d,vd->...v", hidden, self.unembedding(), preferred_element_type=jnp.float32)
        logits = softcapped(logits, self.config.logit_softcap)
        return constrain(logits, "batch", "length", "vocab") if logits.ndim == 3 else logits

    def value_outputs(self, hidden: Array) -> Array:
        """Outputs [..., n] of the value head, float32, of hidden states [..., D]."""
        return jnp.einsum("...d,nd->...n", hidden.astype(jnp.float32), self.value_head)

    def value(self, hidden: Array) -> Array:
        """Values [...]: the one output, or the mean that bins or quantiles stand for; plain outputs [..., n] as they are."""
        c, outputs = self.config, self.value_outputs(hidden)
        if c.value_kind == "bins":
            return jax.nn.softmax(outputs) @ jnp.linspace(*c.value_range, c.value_head)
        if c.value_kind == "quantiles":
            return outputs.mean(axis=-1)
        return outputs[..., 0] if c.value_head == 1 else outputs

    def everything(self, tokens: Array) -> None:
        """Touches every parameter, for `init`."""
        hidden = self.hidden(tokens)
        if self.config.language_head:
            self.unembed(hidden)


def dense_layers(config: DecoderConfig) -> int:
    """Number of layers at the bottom that have an MLP."""
    return config.num_layers if config.experts is None else config.experts.dense_layers
