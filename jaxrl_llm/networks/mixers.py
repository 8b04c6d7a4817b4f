"""What mixes tokens in a layer: attention of grouped heads, and attention of heads that share a latent."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_llm.networks import rotary
from jaxrl_llm.networks.attention import attend, uses_kernel
from jaxrl_llm.networks.axes import constrain
from jaxrl_llm.networks.config import DecoderConfig, LayerShape
from jaxrl_llm.networks.modules import Norm, Projection, named, residual_gain
from jaxrl_llm.networks.past import Cells, appended, attention_behind, past_attention, written
from jaxrl_llm.networks.shared import Numbered, Shared, kinds_of, of_kind

Array = jax.Array


def output(config: DecoderConfig, mixed: Array) -> Array:
    """What goes from the heads [B, T, N, H] into the residual stream."""
    mixed = constrain(mixed, "batch", "length", "heads", "head_dim")
    shape, axes = (*mixed.shape[2:], config.hidden_size), ("heads", "head_dim", "embed")
    gain = residual_gain(config)
    return Projection(config, shape, axes, inputs=2, bias=config.output_bias, gain=gain, name="output")(mixed)


def _gated(mixed: Array, gate: Array | None) -> Array:
    return mixed if gate is None else mixed * jax.nn.sigmoid(gate)


class Attention(nn.Module):
    """Causal attention of grouped heads, over the tokens given, or of one token a slot over what lies behind it."""

    config: DecoderConfig
    shape: LayerShape

    @nn.compact
    def __call__(self, x: Array, shared: Shared, own: Numbered) -> tuple[Array, Any]:
        c, shape = self.config, self.shape
        angles = of_kind(c, shape, shared.angles, own.kind)
        query, gate = self.projected("query", "heads", c.num_heads, x, 1 + c.attention_gate), None
        if c.attention_gate:
            query, gate = jnp.split(query, 2, axis=-1)
        query = self.turned("query", "heads", query, angles)
        if c.scales_queries:
            query = (query * of_kind(c, shape, shared.gains, own.kind)).astype(query.dtype)
        key, value = own.lent or (None, None)
        if shape.values != "lent":
            key, value = self.keys_and_values(x, angles)
        sinks = self.param("sinks", named(nn.initializers.zeros, "heads"), (c.num_heads,), c.param_dtype) if c.sinks else None
        if own.past is not None:
            # The layers of decoding are not scanned: their kinds are known when the program is made.
            options = {"window": kinds_of(c, shape)[own.kind].window, "scale": c.query_scale, "softcap": c.attention_softcap}
            options["sinks"] = sinks
            if isinstance(own.past, Cells):
                past = own.past if key is None else appended(own.past, key, value, shared.positions[:, 0])
                return output(c, _gated(attention_behind(query, past, shared.positions, **options), gate)), past
            past = own.past if key is None else written(own.past, key[:, 0], value[:, 0], shared.sight.column)
            mixed = past_attention(query[:, 0], past, shared.sight, kernel=uses_kernel(c.attention), **options)[:, None]
            return output(c, _gated(mixed, gate)), past
        seen = (of_kind(c, shape, shared.blocks, own.kind), of_kind(c, shape, shared.windows, own.kind))
        mixed = attend(c, query, key, value, shared.reach, shared.positions, *seen, sinks)
        keeps = shared.keep or (c.reusing_layers and shape.values != "lent")
        return output(c, _gated(mixed, gate)), (key, value) if keeps else None

    def keys_and_values(self, x: Array, angles: tuple[Array, Array]) -> tuple[Array, Array]:
        """Keys and values [B, T, K, H] of the layer's own."""
        c, count = self.config, self.shape.kv_heads
        if self.shape.values == "keys":
            value = self.projected("key", "kv_heads", count, x)
            key = self.turned("key", "kv_heads", value, angles)
        else:
            key = self.turned("key", "kv_heads", self.projected("key", "kv_heads", count, x), angles)
            value = self.projected("value", "kv_heads", count, x)
        return key, Norm(c, ("head_dim",), scaled=False, name="value_norm")(value) if c.value_norm else value

    def projected(self, name: str, axis: str, count: int, x: Array, parts: int = 1) -> Array:
        """Queries, keys or values [B, T, heads, parts * H] as they come of their matrix."""
        c = self.config
        shape, axes = (c.hidden_size, count, parts * self.shape.head_dim), ("embed", axis, "head_dim")
        projected = Projection(c, shape, axes, bias=c.attention_bias, name=name)(x)
        return constrain(projected, "batch", "length", axis, "head_dim")

    def turned(self, name: str, axis: str, projected: Array, angles: tuple[Array, Array]) -> Array:
        """Queries or keys with their norm and rotary embedding."""
        c = self.config
        if c.qk_norm_after_rope:
            return self.normed(name, axis, rotary.rotate(projected, *angles, c.rope_pairs))
        return rotary.rotate(self.normed(name, axis, projected), *angles, c.rope_pairs)

    def normed(self, name: str, axis: str, x: Array) -> Array:
        """Queries or keys [B, T, heads, H], normalised where the family wants it."""
        c = self.config
        if c.qk_norm == "none":
            return x
        return Norm(c, ("head_dim",) if c.qk_norm == "head" else (axis, "head_dim"), name=f"{name}_norm")(x)


class LatentAttention(nn.Module):
    """Attention whose keys and values are made of a latent of each token (DeepSeek-V2, https://arxiv.org/abs/2405.04434).

    A head has coordinates that are turned by the rotary embedding, whose key is one for all heads, and others that are not.
    Decoding keeps the latent and that key alone: what makes keys of latents is applied to queries, and what makes values of
    them to the mixture of latents.
    """

    config: DecoderConfig
    shape: LayerShape

    @nn.compact
    def __call__(self, x: Array, shared: Shared, own: Numbered) -> tuple[Array, Any]:
        c, sizes = self.config, self.config.latent
        angles = of_kind(c, self.shape, shared.angles, own.kind)
        query = self.query(x)
        turned = rotary.rotate(query[..., sizes.plain_dim :], *angles, c.rope_pairs)
        query = jnp.concatenate([query[..., : sizes.plain_dim], turned], axis=-1)
        down = Projection(c, (c.hidden_size, sizes.rank + sizes.rotary_dim), ("embed", "latent"), name="latent_down")(x)
        latent = Norm(c, ("latent",), name="latent_norm")(down[..., : sizes.rank])
        key = rotary.rotate(down[..., None, sizes.rank :], *angles, c.rope_pairs)
        shape = (sizes.rank, c.num_heads, sizes.plain_dim + sizes.value_dim)
        up = Projection(c, shape, ("latent", "heads", "head_dim"), name="latent_up")
        if own.past is not None:
            return self.behind(query, jnp.concatenate([latent, key[:, :, 0]], axis=-1)[:, :, None], up, shared, own)
        both = constrain(up(latent), "batch", "length", "heads", "head_dim")
        key = jnp.broadcast_to(key, (*both.shape[:3], sizes.rotary_dim))
        keys, values = jnp.concatenate([both[..., : sizes.plain_dim], key], axis=-1), both[..., sizes.plain_dim :]
        seen = (of_kind(c, self.shape, shared.blocks, own.kind), of_kind(c, self.shape, shared.windows, own.kind))
        mixed = attend(c, query, keys, values, shared.reach, shared.positions, *seen)
        kept = jnp.concatenate([latent, key[..., 0, :]], axis=-1)[:, :, None] if shared.keep else None
        return output(c, mixed), kept if kept is None else (kept, None)

    def query(self, x: Array) -> Array:
        """Queries [B, T, N, H], not turned yet."""
        c, rank = self.config, self.config.latent.query_rank
        shape, axes = (c.num_heads, self.shape.head_dim), ("heads", "head_dim")
        if rank is None:
            query = Projection(c, (c.hidden_size, *shape), ("embed", *axes), name="query")(x)
        else:
            down = Projection(c, (c.hidden_size, rank), ("embed", "latent"), name="query_down")(x)
            normed = Norm(c, ("latent",), name="query_down_norm")(down)
            query = Projection(c, (rank, *shape), ("latent", *axes), name="query_up")(normed)
        return constrain(query, "batch", "length", *axes)

    def behind(self, query: Array, kept: Array, up: Projection, shared: Shared, own: Numbered):
        """Tokens behind what is known: queries [S, n, N, H], and latents with turned keys [S, n, 1, R + r]."""
        c, sizes = self.config, self.config.latent
        matrix = up(None).astype(query.dtype)
        to_keys, to_values = matrix[..., : sizes.plain_dim], matrix[..., sizes.plain_dim :]
        asked = jnp.einsum("stnp,rnp->stnr", query[..., : sizes.plain_dim], to_keys)
        asked = jnp.concatenate([asked, query[..., sizes.plain_dim :]], axis=-1)
        scale = self.shape.head_dim**-0.5 if c.query_scale is None else c.query_scale
        options = {"scale": scale, "softcap": c.attention_softcap, "latent": sizes.rank}
        if isinstance(own.past, Cells):
            past = appended(own.past, kept, None, shared.positions[:, 0])
            mixed = attention_behind(asked, past, shared.positions, **options)
        else:
            past = written(own.past, kept[:, 0], None, shared.sight.column)
            mixed = past_attention(asked[:, 0], past, shared.sight, **options)[:, None]
        return output(c, jnp.einsum("stnr,rnv->stnv", mixed, to_values)), past
