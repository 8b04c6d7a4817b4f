"""The decoder transformer: one Linen definition for all families, its layers stacked and scanned."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_llm.networks import rotary
from jaxrl_llm.networks.attention import WITHOUT_WINDOW, blocks_of, reach_of
from jaxrl_llm.networks.axes import constrain
from jaxrl_llm.networks.blocks import softcapped
from jaxrl_llm.networks.config import DecoderConfig, LayerShape
from jaxrl_llm.networks.experts import Routing
from jaxrl_llm.networks.layers import LayerAlone, run_layers, shape_and_kind, stacked_layers
from jaxrl_llm.networks.lookup import looked_up
from jaxrl_llm.networks.matrices import gains, is_adapted, merged, times
from jaxrl_llm.networks.modules import Norm, VocabularyAdapter, named
from jaxrl_llm.networks.past import AXES, Cells, LayerPast, Sight, cells_of, each_field
from jaxrl_llm.networks.recurrent import State, chunks_of
from jaxrl_llm.networks.shared import Numbered, Shared, gains_of
from jaxrl_llm.numerics import materialised

Array = jax.Array


class Decoder(nn.Module):
    """Embedding, layers, final norm, output head and value head. Methods are used by `apply` only."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        shape = (c.vocab_size, c.hidden_size)
        table_of = functools.partial(named, nn.initializers.truncated_normal(0.02))
        table = table_of("vocab", "embed")
        self.embedding = self.param("embedding", table, shape, c.param_dtype)
        for own, layers in c.stacks.items():
            setattr(self, own.stack, stacked_layers(c, own, len(layers)))
        self.final_norm = Norm(c)
        if c.per_layer_width:
            sizes = (c.per_layer_vocab, c.num_layers * c.per_layer_width)
            self.per_layer_embedding = self.param("per_layer_embedding", table_of("vocab", "layer"), sizes, c.param_dtype)
            inputs = named(nn.initializers.lecun_normal(), "embed", "layer")
            self.per_layer_projection = self.param("per_layer_projection", inputs, (c.hidden_size, sizes[1]), c.param_dtype)
            self.per_layer_norm = Norm(c, ("per_layer",))
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
        x, routing, _ = self.all_layers(x, self.shared(positions, reach, reach), routes, self.embed_per_layer(tokens, x))
        return constrain(self.final_norm(x), "batch", "length", "activation_embed"), routing

    def read(self, tokens: Array, positions: Array, reach: Array) -> tuple[list, Routing | None]:
        """Keys and values of the tokens, two arrays [B, T, K, H] a layer, and the `Routing` of layers with experts."""
        x = constrain(self.embed(tokens), "batch", "length", "activation_embed")
        # States are those behind the last token of each row: padding goes on from it and changes nothing.
        shared = self.shared(positions, reach, jnp.full_like(reach, 2**30)).replace(keep=True)
        _, routing, kept = self.all_layers(x, shared, None, self.embed_per_layer(tokens, x))
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

    def embed_per_layer(self, tokens: Array, x: Array) -> Array | None:
        """Embeddings of the layers' own, [layers, B, T, P]: of tokens, and of what the residual stream begins with."""
        c = self.config
        if not c.per_layer_width:
            return None
        shape = (*tokens.shape, c.num_layers, c.per_layer_width)
        own = looked_up(self.per_layer_embedding, tokens, c.dtype) * jnp.asarray(c.per_layer_width**0.5, c.dtype)
        made = jnp.matmul(x, self.per_layer_projection.astype(c.dtype)) * jnp.asarray(c.hidden_size**-0.5, c.dtype)
        both = (self.per_layer_norm(made.reshape(shape)) + own.reshape(shape)) * jnp.asarray(2.0**-0.5, c.dtype)
        return jnp.moveaxis(both, 2, 0)

    def adapted(self, x: Array, tokens: Array) -> Array:
        """Embeddings [B, T, D] with their adapter."""
        adapter, leaves = self.config.adapter, self.embedding_adapter(self.embedding)
        own = jnp.take(leaves["lora_a"], tokens, axis=0, mode="clip").astype(x.dtype)
        x = x + adapter.scale * (own @ leaves["lora_b"].astype(x.dtype))
        return x if adapter.kind != "dora" else x * gains(adapter, leaves, self.embedding).astype(x.dtype)

    def all_layers(
        self, x: Array, shared: Shared, routes: Array | None, embedded: Array | None
    ) -> tuple[Array, Routing | None, list]:  # fmt: skip
        """What the last layer gives, the routing of layers with experts, and what each layer keeps."""
        if not self.is_initializing():
            stacks = {shape.stack: self.get_variable("params", shape.stack) for shape in self.config.stacks}
            return run_layers(self.config, stacks, x, shared, routes, embedded)
        for shape, layers in self.config.stacks.items():
            heads = jnp.zeros((len(layers), *x.shape[:2], shape.kv_heads, shape.head_dim), x.dtype)
            own = None if embedded is None else embedded[: len(layers)]
            told = Numbered(jnp.zeros(len(layers), jnp.int32), embedded=own, lent=(heads, heads))
            getattr(self, shape.stack)(x, told, shared)
        return x, None, []

    def shared(self, positions: Array, reach: Array, going_on: Array) -> Shared:
        """What the layers share; `going_on` is `reach` for layers with a state."""
        kinds = self.config.kinds
        angles = tuple(rotary.angles(kind, self.config.rotary_width(kind), positions) for kind in kinds)
        windows = tuple(jnp.int32(WITHOUT_WINDOW if kind.window is None else kind.window) for kind in kinds)
        blocks = tuple(blocks_of(self.config, reach, positions, window) for window in windows)
        chunks = chunks_of(going_on) if self.config.delta else None
        return Shared(angles, gains_of(self.config, positions), reach, positions, windows, blocks, chunks)

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
    pasts = [LayerPast(*own) for own in zip(contexts, tails, strict=True)]
    shared = _of_positions(config, sight.position[:, None]).replace(sight=sight)
    x, experts, pasts = _read_on(config, params, layers, token[:, None], pasts, shared)
    hidden = Decoder(config).apply({"params": params}, x[:, 0], method="normed")
    tails = [None if past is None else past.tails for past in pasts]
    return hidden, tails, None if experts is None else experts[:, 0]


def extend(config: DecoderConfig, params, layers: list, tokens: Array, lengths: Array, contexts: list, before: Array):
    """Reads n more tokens behind C contexts: these with them, and experts [C, n, layers, k] or None.

    Args:
      config: of the decoder.
      params: its parameters.
      layers: those of each layer, see `each_layer`.
      tokens: int [C, n], right-padded.
      lengths: int [C], how many of them count.
      contexts: what each layer keeps of them, see `read_contexts`, with room for n more.
      before: int [C], tokens that they have.
    """
    columns = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    shared = _of_positions(config, before[:, None] + columns)
    shared = shared.replace(reach=(columns < lengths[:, None]).astype(jnp.int32))
    _, experts, contexts = _read_on(config, params, layers, tokens, contexts, shared)
    return contexts, experts


def _of_positions(config: DecoderConfig, positions: Array) -> Shared:
    """What layers share of tokens at these positions [B, T]."""
    angles = tuple(rotary.angles(kind, config.rotary_width(kind), positions) for kind in config.kinds)
    # Otherwise each layer computes their sines anew, which takes longer than turning by them.
    return Shared(jax.tree.map(materialised, angles), gains_of(config, positions), positions=positions)


def _read_on(config: DecoderConfig, params, layers: list, tokens: Array, pasts: list, shared: Shared):
    """Reads tokens [B, T] with what lies before them: what the layers give, experts [B, T, layers, k] or None, and the past."""
    module, variables, kept, experts = Decoder(config), {"params": params}, [], []
    x = module.apply(variables, tokens, method="embed")
    embedded = module.apply(variables, tokens, x, method="embed_per_layer")
    last = {shape.stack: numbers[-1] for shape, numbers in config.stacks.items()}
    for number, own in enumerate(layers):
        shape, kind = shape_and_kind(config, number)
        past = kept[last[shape.lender]] if shape.values == "lent" else pasts[number]
        at = Numbered(kind, past=past, embedded=None if embedded is None else embedded[number])
        x, (routing, past) = LayerAlone(config, shape).apply({"params": {"layer": own}}, x, at, shared)
        kept.append(past)
        experts += [routing.experts] if routing else []
    own = [None if shape_and_kind(config, number)[0].values == "lent" else past for number, past in enumerate(kept)]
    return x, jnp.stack(experts, axis=2) if experts else None, own


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
    kept, routing = Decoder(config).apply({"params": params}, tokens, positions, reach, method="read")
    contexts = []
    for kind, own in zip(config.kind_of_layer, kept, strict=True):
        shape = config.kinds[kind].shape
        if shape.values == "lent" or shape.mixer == "delta":
            contexts.append(None if shape.values == "lent" else own)
            continue
        keys, values = own
        values = None if values is None else values.transpose(0, 2, 1, 3)
        contexts.append(cells_of(keys.transpose(0, 2, 3, 1), values, config.cache_dtype or config.dtype))
    return contexts, None if routing is None else jnp.moveaxis(routing.experts, 0, 2)


def init_tails(config: DecoderConfig, slots: int, width: int):
    """Empty `Cells` of each layer for S tails of W columns."""

    def cells(shape: LayerShape) -> Cells | State | None:
        if shape.values == "lent":
            return None
        if shape.mixer == "delta":
            return empty_state(config, slots)
        latent = shape.mixer == "latent"
        heads, size = (1, config.latent.rank + config.latent.rotary_dim) if latent else (shape.kv_heads, shape.head_dim)
        sizes = {"batch": slots, "kv_heads": heads, "head_dim": size, "length": width}
        keys, values = (jnp.zeros([sizes[axis] for axis in AXES[name]]) for name in ("keys", "values"))
        made = cells_of(keys, None if latent else values, config.cache_dtype or config.dtype)
        return each_field(lambda axes, leaf: constrain(leaf, *axes), made)

    return [cells(config.kinds[kind].shape) for kind in config.kind_of_layer]


def empty_state(config: DecoderConfig, slots: int) -> State:
    """States of S slots that have read nothing."""
    d = config.delta
    matrix = jnp.zeros((slots, d.value_heads, d.key_dim, d.value_dim), jnp.float32)
    heads = [(d.key_heads, d.key_dim)] * 2 + [(d.value_heads, d.value_dim)]
    inputs = (jnp.zeros((slots, d.kernel - 1, *own), config.dtype) for own in heads)
    rest = tuple(constrain(one, "batch", None, "heads", None) for one in inputs)
    return State(constrain(matrix, "batch", "heads", None, None), rest)


def each_layer(config: DecoderConfig, params) -> list:
    """The parameters of each layer apart: as they are laid out for decoding, once for all its steps."""
    apart: list = [None] * config.num_layers
    for shape, layers in config.stacks.items():
        for place, layer in enumerate(layers):
            apart[layer] = jax.tree.map(lambda leaf, place=place: leaf[place], params[shape.stack])
    return apart
