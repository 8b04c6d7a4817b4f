"""The decoder transformer: one Linen definition for all families, its layers stacked and scanned."""

from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxrl_llm.networks import rotary
from jaxrl_llm.networks.attention import WITHOUT_WINDOW, attend, blocks_of, reach_of, uses_kernel
from jaxrl_llm.networks.axes import constrain
from jaxrl_llm.networks.blocks import softcapped
from jaxrl_llm.networks.config import REMAT, DecoderConfig
from jaxrl_llm.networks.experts import Experts, Routing
from jaxrl_llm.networks.lookup import looked_up
from jaxrl_llm.networks.matrices import gains, is_adapted, merged, times
from jaxrl_llm.networks.modules import Mlp, Norm, Projection, VocabularyAdapter, named, residual_gain
from jaxrl_llm.networks.past import AXES, Cells, LayerPast, Sight, cells_of, each_field, past_attention, written
from jaxrl_llm.numerics import materialised

Array = jax.Array


@flax.struct.dataclass
class Shared:
    """What all layers of one call share: who sees whom and angles of the rotary embedding, for each kind of layer.

    Layers that are to `keep` them give their keys and values [B, T, K, H]. A step of decoding has `sight` in place of `reach`,
    `positions`, and what each kind of layer makes of them: tokens of the window, and the blocks of long rows.
    """

    angles: tuple[tuple[Array, Array], ...]
    gains: tuple[Array, ...]  # of queries, see `rotary.query_gain`
    reach: Array | None = None
    positions: Array | None = None
    windows: tuple[Array, ...] = ()
    blocks: tuple[Any, ...] = ()
    sight: Sight | None = None
    keep: bool = flax.struct.field(pytree_node=False, default=False)


class Numbered(NamedTuple):
    """What is told to each layer: the number of its kind, experts that it must use [B, T, k], and what lies behind a step."""

    kind: Array | int
    forced: Array | None = None
    past: LayerPast | None = None


def gains_of(config: DecoderConfig, positions: Array) -> tuple[Array, ...]:
    """What queries of each kind of layer are multiplied by."""
    return tuple(rotary.query_gain(kind, positions) for kind in config.kinds)


def of_kind(values: tuple, kind: Array):
    """The one of `values`, trees of equal shapes, that belongs to a layer's kind."""
    if len(values) == 1:
        return values[0]
    if isinstance(kind, int):
        return values[kind]
    return jax.tree.map(lambda *leaves: jax.lax.select_n(kind, *leaves), *values)


class Attention(nn.Module):
    """Causal attention of grouped heads, over the tokens given, or of one token a slot over what lies behind it."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Array, shared: Shared, own: Numbered) -> tuple[Array, Any]:
        c = self.config
        angles = of_kind(shared.angles, own.kind)
        query = self.heads("query", "heads", c.num_heads, x, angles)
        if c.scales_queries:
            query = (query * of_kind(shared.gains, own.kind)).astype(query.dtype)
        key = self.heads("key", "kv_heads", c.num_kv_heads, x, angles)
        value = self.heads("value", "kv_heads", c.num_kv_heads, x, angles)
        sinks = self.param("sinks", named(nn.initializers.zeros, "heads"), (c.num_heads,), c.param_dtype) if c.sinks else None
        if own.past is not None:
            past = written(own.past, key[:, 0], value[:, 0], shared.sight.column)
            options = {"scale": c.query_scale, "softcap": c.attention_softcap, "kernel": uses_kernel(c.attention)}
            options["sinks"] = sinks
            # The layers of decoding are not scanned: their kinds are known when the program is made.
            mixed = past_attention(query[:, 0], past, shared.sight, c.kinds[own.kind].window, **options)[:, None]
            return self.out(mixed), past
        seen = (of_kind(shared.blocks, own.kind), of_kind(shared.windows, own.kind))
        mixed = attend(c, query, key, value, shared.reach, shared.positions, *seen, sinks)
        return self.out(mixed), (key, value) if shared.keep else None

    def out(self, mixed: Array) -> Array:
        """What goes from the heads [B, T, N, H] into the residual stream."""
        c = self.config
        mixed = constrain(mixed, "batch", "length", "heads", "head_dim")
        shape, axes = (*mixed.shape[2:], c.hidden_size), ("heads", "head_dim", "embed")
        return Projection(c, shape, axes, inputs=2, bias=c.output_bias, gain=residual_gain(c), name="output")(mixed)

    def heads(self, name: str, axis: str, count: int, x: Array, angles: tuple[Array, Array]) -> Array:
        """Queries, keys or values [B, T, heads, H], normalised and turned where the family wants it."""
        c = self.config
        shape, axes = (c.hidden_size, count, c.head_dim), ("embed", axis, "head_dim")
        projected = Projection(c, shape, axes, bias=c.attention_bias, name=name)(x)
        projected = constrain(projected, "batch", "length", axis, "head_dim")
        if name == "value":
            return projected
        if c.qk_norm_after_rope:
            return self.normed(name, axis, rotary.rotate(projected, *angles, c.rope_pairs))
        return rotary.rotate(self.normed(name, axis, projected), *angles, c.rope_pairs)

    def normed(self, name: str, axis: str, x: Array) -> Array:
        """Queries or keys [B, T, heads, H], normalised where the family wants it."""
        c = self.config
        if c.qk_norm == "none":
            return x
        return Norm(c, ("head_dim",) if c.qk_norm == "head" else (axis, "head_dim"), name=f"{name}_norm")(x)


class Layer(nn.Module):
    """One layer, in the form that `nn.scan` wants: it gives the residual stream, and its routing with what it keeps."""

    config: DecoderConfig
    sparse: bool = False

    @nn.compact
    def __call__(self, x: Array, own: Numbered, shared: Shared) -> tuple[Array, tuple[Routing | None, Any]]:
        normed = self.norm("attention_norm", x) if self.config.pre_norms else x
        mixed, kept = Attention(self.config, name="attention")(normed, shared, own)
        x = constrain(x + self.added("attention_post_norm", mixed), "batch", "length", "activation_embed")
        normed, routing = self.norm("mlp_norm", x) if self.config.pre_norms else x, None
        if self.sparse:
            mixed, routing = Experts(self.config, name="experts")(normed, own.forced)
        else:
            mixed = Mlp(self.config, self.config.intermediate_size, name="mlp")(normed)
        return constrain(x + self.added("mlp_post_norm", mixed), "batch", "length", "activation_embed"), (routing, kept)

    def norm(self, name: str, x: Array) -> Array:
        """The norm called `name`."""
        return Norm(self.config, name=name)(x)

    def added(self, name: str, x: Array) -> Array:
        """What goes into the residual stream: normalised and scaled where the family wants it."""
        c = self.config
        x = self.norm(name, x) if c.post_norms else x
        return x if c.residual_scale == 1.0 else x * jnp.asarray(c.residual_scale, x.dtype)


class LayerAlone(nn.Module):
    """A layer outside of its stack, one name down as there: by their paths matrices know whether they are adapted."""

    config: DecoderConfig
    sparse: bool = False

    @nn.compact
    def __call__(self, x: Array, own: Numbered, shared: Shared) -> tuple[Array, tuple[Routing | None, Any]]:
        return Layer(self.config, self.sparse, name="layer")(x, own, shared)


def scanned_layers(config: DecoderConfig, count: int, sparse: bool) -> nn.Module:
    """Layers as one module whose parameters have a leading axis of layers; compile time does not grow with depth."""
    layer = Layer
    if config.remat != "none":
        layer = nn.remat(Layer, policy=REMAT[config.remat], prevent_cse=False)
    scanned = nn.scan(
        layer, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=(0, nn.broadcast), length=count,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )  # fmt: skip
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
        if c.embedding_norm:
            self.first_norm = Norm(c)
        if c.language_head and not c.tie_embeddings:
            self.head = self.param("head", table, shape, c.param_dtype)
        if is_adapted(c, "embedding"):
            self.embedding_adapter = VocabularyAdapter(c)
        if c.language_head and is_adapted(c, "head"):
            self.head_adapter = VocabularyAdapter(c)
        if c.value_head:
            zeros = named(nn.initializers.zeros, "values", "embed")
            self.value_head = self.param("value_head", zeros, (c.value_head, c.hidden_size), "float32")

    def hidden(self, tokens: Array, positions=None, segments=None, reach=None) -> Array:
        """Hidden states [B, T, D] after the final norm."""
        return self.routed(tokens, positions, segments, reach=reach)[0]

    def routed(self, tokens: Array, positions=None, segments=None, routes=None, reach=None) -> tuple[Array, Routing | None]:
        """Hidden states, and the `Routing` of layers with experts or None.

        `routes`, int32 [layers, B, T, k], are experts to use; -1 leaves the choice to the router. `reach` stands in place of
        `segments` where rows hold trees, see `attention`.
        """
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        if reach is None:
            reach = reach_of(jnp.ones_like(tokens) if segments is None else segments)
        x = constrain(self.embed(tokens), "batch", "length", "activation_embed")
        x, routing, _ = self.all_layers(x, self.shared(positions, reach), routes)
        return constrain(self.final_norm(x), "batch", "length", "activation_embed"), routing

    def read(self, tokens: Array, positions: Array, reach: Array) -> tuple[tuple[Array, Array], Routing | None]:
        """Keys and values of the tokens, two arrays [layers, B, T, K, H], and the `Routing` of layers with experts."""
        x = constrain(self.embed(tokens), "batch", "length", "activation_embed")
        _, routing, kept = self.all_layers(x, self.shared(positions, reach).replace(keep=True), None)
        return kept, routing

    def normed(self, x: Array) -> Array:
        """Hidden states of what the last layer gives."""
        return self.final_norm(x)

    def embed(self, tokens: Array) -> Array:
        """What the residual stream begins with, [B, T, D]."""
        c = self.config
        x = looked_up(self.embedding, tokens, c.dtype)
        if is_adapted(c, "embedding"):
            x = self.adapted(x, tokens)
        x = x * jnp.asarray(c.hidden_size**0.5, c.dtype) if c.scale_embeddings else x
        x = x if c.embedding_scale == 1.0 else x * jnp.asarray(c.embedding_scale, c.dtype)
        return self.first_norm(x) if c.embedding_norm else x

    def adapted(self, x: Array, tokens: Array) -> Array:
        """Embeddings [B, T, D] with their adapter."""
        adapter, leaves = self.config.adapter, self.embedding_adapter(self.embedding)
        own = jnp.take(leaves["lora_a"], tokens, axis=0, mode="clip").astype(x.dtype)
        x = x + adapter.scale * (own @ leaves["lora_b"].astype(x.dtype))
        return x if adapter.kind != "dora" else x * gains(adapter, leaves, self.embedding).astype(x.dtype)

    def all_layers(self, x: Array, shared: Shared, routes: Array | None) -> tuple[Array, Routing | None, Any]:
        """Dense layers, then those with experts; either may be missing. With the routing, and what all layers keep."""
        c, dense, routing, kept = self.config, dense_layers(self.config), None, []
        kinds = jnp.asarray(c.kind_of_layer, jnp.int32)
        if c.experts is None or dense:
            x, (_, found) = self.layers(x, Numbered(kinds[:dense]), shared)
            kept.append(found)
        if c.experts is not None:
            x, (routing, found) = self.sparse_layers(x, Numbered(kinds[dense:], routes), shared)
            kept.append(found)
        return x, routing, jax.tree.map(lambda *parts: jnp.concatenate(parts), *kept)

    def shared(self, positions: Array, reach: Array) -> Shared:
        """What the layers share."""
        kinds, width = self.config.kinds, self.config.rotary_dim
        angles = tuple(rotary.angles(kind, width, positions) for kind in kinds)
        windows = tuple(jnp.int32(WITHOUT_WINDOW if kind.window is None else kind.window) for kind in kinds)
        blocks = tuple(blocks_of(self.config, reach, positions, window) for window in windows)
        return Shared(angles, gains_of(self.config, positions), reach, positions, windows, blocks)

    def unembedding(self) -> Array:
        """Matrix [V, D] of the output head with its adapter, in the dtype of the computation."""
        if not self.config.language_head:
            raise ValueError("language_head=False: this network has no logits, only values")
        table = self.embedding if self.config.tie_embeddings else self.head
        if is_adapted(self.config, "head"):
            table = merged(self.config, self.head_adapter(table) | {"kernel": table.T}).T
        table = table.astype(self.config.dtype)
        return table if self.config.logit_divisor == 1.0 else table / jnp.asarray(self.config.logit_divisor, table.dtype)

    def unembed(self, hidden: Array) -> Array:
        """Logits [..., V], float32, of hidden states [..., D]."""
        logits = softcapped(times(hidden, self.unembedding().T, jnp.float32), self.config.logit_softcap)
        return constrain(logits, *("batch", "length")[: logits.ndim - 1], "vocab")

    def value_outputs(self, hidden: Array) -> Array:
        """Outputs [..., n] of the value head, float32, of hidden states [..., D]."""
        return jnp.einsum("...d,nd->...n", hidden.astype(jnp.float32), self.value_head)

    def value(self, hidden: Array) -> Array:
        """Values [...]: the one output, or, of several, these [..., n]."""
        outputs = self.value_outputs(hidden)
        return outputs[..., 0] if self.config.value_head == 1 else outputs

    def everything(self, tokens: Array) -> None:
        """Touches every parameter, for `init`."""
        hidden = self.hidden(tokens)
        if self.config.language_head:
            self.unembed(hidden)


def step(config: DecoderConfig, params, layers: list, token: Array, contexts: list, tails: list, sight: Sight):
    """Reads one token a slot: hidden states [S, D], the tails with it, and experts [S, layers, k] or None.

    Args:
      config: of the decoder.
      params: its parameters.
      layers: those of each layer, see `each_layer`.
      token: int [S].
      contexts: what each layer keeps of them, see `read_contexts`.
      tails: likewise, see `init_tails`.
      sight: of the step.
    """
    module, variables = Decoder(config), {"params": params}
    angles = tuple(rotary.angles(kind, config.rotary_dim, sight.position[:, None]) for kind in config.kinds)
    # Otherwise each layer computes their sines anew, which takes longer than turning by them.
    shared = Shared(jax.tree.map(materialised, angles), gains_of(config, sight.position[:, None]), sight=sight)
    x, routes, written_tails = module.apply(variables, token[:, None], method="embed"), [], []
    for number, (own, kind) in enumerate(zip(layers, config.kind_of_layer, strict=True)):
        sparse = number >= dense_layers(config)
        at = Numbered(kind, past=LayerPast(contexts[number], tails[number]))
        x, (routing, past) = LayerAlone(config, sparse).apply({"params": {"layer": own}}, x, at, shared)
        written_tails.append(past.tails)
        routes += [routing.experts[:, 0]] if sparse else []
    hidden = module.apply(variables, x[:, 0], method="normed")
    return hidden, written_tails, jnp.stack(routes, axis=1) if routes else None


def read_contexts(config: DecoderConfig, params, tokens: Array, lengths: Array):
    """`Cells` of each layer for C right-padded contexts of T tokens, and experts [C, T, layers, k].

    Args:
      config: of the decoder.
      params: its parameters.
      tokens: int [C, T].
      lengths: int [C].
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    reach = jnp.where(positions < lengths[:, None], lengths[:, None], 0)
    (keys, values), routing = Decoder(config).apply({"params": params}, tokens, positions, reach, method="read")
    laid_out = keys.transpose(0, 1, 3, 4, 2), values.transpose(0, 1, 3, 2, 4)
    contexts = [cells_of(key, value, config.cache_dtype or config.dtype) for key, value in zip(*laid_out, strict=True)]
    return contexts, None if routing is None else jnp.moveaxis(routing.experts, 0, 2)


def init_tails(config: DecoderConfig, slots: int, width: int):
    """Empty `Cells` of each layer for S tails of W columns."""
    sizes = {"batch": slots, "kv_heads": config.num_kv_heads, "head_dim": config.head_dim, "length": width}

    def cells() -> Cells:
        keys, values = (jnp.zeros([sizes[axis] for axis in AXES[name]]) for name in ("keys", "values"))
        made = cells_of(keys, values, config.cache_dtype or config.dtype)
        return each_field(lambda axes, leaf: constrain(leaf, *axes), made)

    return [cells() for _ in range(config.num_layers)]


def each_layer(config: DecoderConfig, params) -> list:
    """The parameters of each layer apart: as they are laid out for decoding, once for all its steps."""
    dense = dense_layers(config)
    stacks = [(params["layers"], dense)] if config.experts is None or dense else []
    stacks += [(params["sparse_layers"], config.num_layers - dense)] if config.experts else []
    return [jax.tree.map(lambda leaf, n=n: leaf[n], stack) for stack, count in stacks for n in range(count)]


def dense_layers(config: DecoderConfig) -> int:
    """Number of layers at the bottom that have an MLP."""
    return config.num_layers if config.experts is None else config.experts.dense_layers
