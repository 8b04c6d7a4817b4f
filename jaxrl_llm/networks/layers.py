"""Layers, stacked where the shapes of their parameters are the same, and run one after the other."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.networks.axes import constrain
from jaxrl_llm.networks.config import REMAT, DecoderConfig, LayerShape
from jaxrl_llm.networks.delta import DeltaRule
from jaxrl_llm.networks.experts import Experts, Routing
from jaxrl_llm.networks.mixers import Attention, LatentAttention
from jaxrl_llm.networks.modules import Mlp, Norm, Projection, activate, named, residual_gain
from jaxrl_llm.networks.shared import Numbered, Shared, kinds_of

Array = jax.Array
_MIXERS = {"attention": Attention, "latent": LatentAttention, "delta": DeltaRule}


class Layer(nn.Module):
    """One layer, in the form that `nn.scan` wants: it gives the residual stream, and its routing with what it keeps."""

    config: DecoderConfig
    shape: LayerShape

    @nn.compact
    def __call__(self, x: Array, own: Numbered, shared: Shared) -> tuple[Array, tuple[Routing | None, Any]]:
        normed = self.norm("attention_norm", x) if self.config.pre_norms else x
        name = "delta" if self.shape.mixer == "delta" else "attention"
        mixed, kept = _MIXERS[self.shape.mixer](self.config, self.shape, name=name)(normed, shared, own)
        x = constrain(x + self.added("attention_post_norm", mixed), "batch", "length", "activation_embed")
        normed, routing = self.norm("mlp_norm", x) if self.config.pre_norms else x, None
        if self.shape.width is not None:
            mixed = Mlp(self.config, self.shape.width, name="mlp")(normed)
        if self.shape.sparse and self.shape.width is not None:
            more, routing = Experts(self.config, name="experts")(self.norm("experts_norm", x), own.forced, x)
            mixed = self.norm("mlp_own_post_norm", mixed) + self.norm("experts_post_norm", more)
        elif self.shape.sparse:
            mixed, routing = Experts(self.config, name="experts")(normed, own.forced)
        x = constrain(x + self.added("mlp_post_norm", mixed), "batch", "length", "activation_embed")
        return self.scaled(self.with_embedding(x, own.embedded)), (routing, kept)

    def with_embedding(self, x: Array, embedded: Array | None) -> Array:
        """The residual stream with the layer's own embedding of the tokens (Gemma 3n, https://ai.google.dev/gemma/docs)."""
        if embedded is None:
            return x
        c, shape, axes = self.config, (self.config.hidden_size, self.config.per_layer_width), ("embed", "per_layer")
        gate = activate(c, Projection(c, shape, axes, name="per_layer_gate")(x)) * embedded
        added = Projection(c, shape[::-1], axes[::-1], gain=residual_gain(c), name="per_layer_output")(gate)
        return constrain(x + self.norm("per_layer_post_norm", added), "batch", "length", "activation_embed")

    def scaled(self, x: Array) -> Array:
        """The residual stream times the layer's number."""
        if not self.config.layer_scales:
            return x
        scale = self.param("layer_scale", named(nn.initializers.ones, None), (1,), self.config.param_dtype)
        return x * jax.lax.stop_gradient(scale).astype(x.dtype)

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
    shape: LayerShape

    @nn.compact
    def __call__(self, x: Array, own: Numbered, shared: Shared) -> tuple[Array, tuple[Routing | None, Any]]:
        return Layer(self.config, self.shape, name="layer")(x, own, shared)


def stacked_layers(config: DecoderConfig, shape: LayerShape, count: int) -> nn.Module:
    """A stack as one module, which makes its parameters, with a leading axis of layers."""
    scanned = nn.scan(
        Layer, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=(0, nn.broadcast), length=count,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )  # fmt: skip
    return scanned(config, shape)


class Run(NamedTuple):
    """Layers of one shape that follow one another, in each of some periods."""

    shape: LayerShape
    layers: np.ndarray  # int [periods, count], their numbers
    places: np.ndarray  # likewise, within their stack


def plan(config: DecoderConfig) -> list[list[Run]]:
    """The layers as periods, so that the program does not grow with the number of layers: of a period, it has each run once."""
    shapes, runs = [config.kinds[kind].shape for kind in config.kind_of_layer], []
    for layer, shape in enumerate(shapes):
        if runs and shapes[layer - 1] == shape:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    alike = [(shapes[run[0]], len(run)) for run in runs]
    found, at = [], 0
    while at < len(runs):
        length, times = _repeated(alike[at:])
        periods = [runs[at + period * length : at + (period + 1) * length] for period in range(times)]
        found.append([_run(config, alike[at + n][0], [period[n] for period in periods]) for n in range(length)])
        at += length * times
    return found


def _repeated(items: list) -> tuple[int, int]:
    """Length and number of the periods at the beginning that are the most items together; one alone where none repeats."""
    best = (1, 1)
    for length in range(1, len(items) // 2 + 1):
        times = 1
        while items[times * length : (times + 1) * length] == items[:length]:
            times += 1
        if times > 1 and length * times > best[0] * best[1]:
            best = (length, times)
    return best


def _run(config: DecoderConfig, shape: LayerShape, layers: list[list[int]]) -> Run:
    stack = {layer: place for place, layer in enumerate(config.stacks[shape])}
    return Run(shape, np.array(layers), np.array([[stack[layer] for layer in own] for own in layers]))


def shape_and_kind(config: DecoderConfig, layer: int) -> tuple[LayerShape, int]:
    """Shape of a layer, and the number of its kind among the kinds of that shape."""
    kind = config.kinds[config.kind_of_layer[layer]]
    return kind.shape, kinds_of(config, kind.shape).index(kind)


def run_layers(
    config: DecoderConfig, stacks: dict[str, Any], x: Array, shared: Shared, routes: Array | None, embedded: Array | None
):  # fmt: skip
    """All layers: what the last one gives, the routing of those with experts, and what each keeps.

    Args:
      config: of the decoder.
      stacks: parameters of each stack.
      x: [B, T, D], what the first layer reads.
      shared: what all layers are told.
      routes: int32 [layers, B, T, k], or None.
      embedded: embeddings of the layers' own, [layers, B, T, P], or None.
    """
    kinds = np.array([shape_and_kind(config, layer)[1] for layer in range(config.num_layers)], np.int32)
    sparse = np.cumsum([config.kinds[kind].shape.sparse for kind in config.kind_of_layer]) - 1
    routed, kept, lent = [], [None] * config.num_layers, {}
    for runs in plan(config):
        inputs = [
            (
                jax.tree.map(lambda leaf, run=run: _taken(leaf, run.places), stacks[run.shape.stack]),
                jnp.asarray(kinds[run.layers]),
                None if routes is None or not run.shape.sparse else _taken(routes, sparse[run.layers]),
                None if embedded is None else _taken(embedded, run.layers),
            )
            for run in runs
        ]
        (x, lent), outputs = _periods(config, [run.shape for run in runs], (x, lent), inputs, shared)
        for run, (routing, own) in zip(runs, outputs, strict=True):
            flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (routing, own))
            if routing is not None:
                routed.append((run.layers.ravel(), flat[0]))
            if shared.keep:
                for place, layer in enumerate(run.layers.ravel()):
                    kept[layer] = jax.tree.map(lambda leaf, place=place: leaf[place], flat[1])
    return x, _in_order(routed), kept


def _taken(leaf: Array, places: np.ndarray) -> Array:
    """Entries of a leaf [n, ...] at places [periods, count], without a copy where these are all, in order."""
    flat = places.ravel()
    if np.array_equal(flat, np.arange(flat[0], flat[0] + flat.size)):
        own = leaf if flat.size == leaf.shape[0] else leaf[flat[0] : flat[0] + flat.size]
        return own.reshape(*places.shape, *leaf.shape[1:])
    return leaf[places]


def _in_order(parts: list[tuple[np.ndarray, Any]]):
    """One tree of those of several layers each, in the order of the layers; None of none."""
    if not parts:
        return None
    layers = np.concatenate([own for own, _ in parts])
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(tree for _, tree in parts))
    return joined if (np.diff(layers) > 0).all() else jax.tree.map(lambda leaf: leaf[np.argsort(layers)], joined)


def _periods(config: DecoderConfig, shapes: list[LayerShape], carry: tuple[Array, dict], inputs: list, shared: Shared):
    """Runs of layers, period after period; outputs have the leading axes [periods, count], as inputs do.

    With the residual stream goes what layers lend: keys and values of the last layer of each stack.
    """

    def layer_of(shape: LayerShape):
        def layer(x, own, lent, shared):
            params, kind, forced, embedded = own
            told = Numbered(kind, forced, embedded=embedded, lent=lent)
            return LayerAlone(config, shape, parent=None).apply({"params": {"layer": params}}, x, told, shared)

        return jax.checkpoint(layer, policy=REMAT[config.remat], prevent_cse=False) if config.remat != "none" else layer

    def run_of(shape: LayerShape):
        layer = layer_of(shape)

        def run(carry, own):
            x, lent = carry
            x, (routing, kept) = layer(x, own, lent.get(shape.lender) if shape.values == "lent" else None, shared)
            if config.reusing_layers and shape.values != "lent":
                lent = lent | {shape.stack: kept}
            return (x, lent), (routing, kept if shared.keep else None)

        return run

    def period(carry, inputs):
        outputs = []
        for shape, own in zip(shapes, inputs, strict=True):
            carry, found = jax.lax.scan(run_of(shape), carry, own)
            outputs.append(found)
        return carry, outputs

    # What goes through a scan is there from its beginning.
    (x, lent), first = carry, jax.tree.map(lambda leaf: leaf[0, 0], inputs)
    for shape, own in zip(shapes, first, strict=True):
        if config.reusing_layers and shape.values != "lent" and shape.stack not in lent:
            made = jax.eval_shape(lambda x, own, shape=shape: layer_of(shape)(x, own, None, shared)[1][1], x, own)
            lent = lent | {shape.stack: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), made)}
    if jax.tree.leaves(inputs[0])[0].shape[0] > 1:
        return jax.lax.scan(period, (x, lent), inputs)
    carry, outputs = period((x, lent), jax.tree.map(lambda leaf: leaf[0], inputs))
    return carry, jax.tree.map(lambda leaf: leaf[None], outputs)
