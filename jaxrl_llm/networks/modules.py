"""The small modules that layers are made of: leaves of their matrices, norms, linear maps, the gated MLP.

`matrices` says what the leaves are and what they compute.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_llm.networks.axes import constrain, current_column_shards
from jaxrl_llm.networks.codes import codes_shape, encode
from jaxrl_llm.networks.config import DecoderConfig
from jaxrl_llm.networks.matrices import Leaves, dense, flat, is_adapted, is_quantized, lengths, merged, product

Array = jax.Array


def named(initializer, *axes: str | None):
    """Initializer of a parameter whose axes have these names; "embed" is the residual stream's width in parameters only."""
    return nn.with_logical_partitioning(initializer, axes)


def make_leaves(
    module: nn.Module, initializer, shape: tuple[int, ...], axes: tuple[str, ...], inputs: int = 1, leading: int = 0
) -> Leaves:
    """Leaves of the matrix that `module` is, called by its path within a layer.

    Args:
      module: has a `config` and is at work (in a compact method).
      initializer, shape: of the kernel.
      axes: names of its axes.
      inputs: axes that are contracted.
      leading: axes before them.
    """
    c, name = module.config, ".".join(module.path[1:])
    if is_quantized(c, name):
        leaves = _make_codes(module, initializer, shape, axes, inputs, leading)
    else:
        leaves = {"kernel": module.param("kernel", named(initializer, *axes), shape, c.param_dtype)}
    if not is_adapted(c, name):
        return leaves

    def length() -> Array:
        return lengths(dense(c, leaves, inputs, leading))

    return leaves | make_adapter(module, name, shape, axes, length, inputs, leading)


def _make_codes(module: nn.Module, initializer, shape, axes, inputs: int, leading: int) -> Leaves:
    kind = module.config.quantization.kind
    ends = leading + inputs
    rows = codes_shape(kind, math.prod(shape[leading:ends]))

    # Codes and scales come from one kernel; outside of `init` nothing is drawn.
    key = module.make_rng("params") if module.is_initializing() else jax.random.key(0)

    def make(index: int, name: str) -> Array:
        def start(_):
            encoded = encode(kind, flat(initializer(key, shape, jnp.float32), inputs, leading))
            return encoded[index].reshape(*shape[:leading], rows[index], *shape[ends:])

        return module.param(name, named(start, *axes[: leading + 1], *axes[ends:]))

    return {"codes": make(0, "codes"), "scales": make(1, "scales")}


def draw_change(name: str, fan_in: int) -> dict[str, Callable]:
    """Initializers of A and B over the matrix called `name`, as PEFT has them: one of the two is zero."""
    if name == "embedding":
        return {"lora_a": nn.initializers.zeros, "lora_b": nn.initializers.normal(1.0)}
    bound = fan_in**-0.5
    uniform = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
    return {"lora_a": uniform, "lora_b": nn.initializers.zeros}


def make_adapter(
    module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], length: Callable[[], Array], inputs: int = 1,
    leading: int = 0,
) -> Leaves:  # fmt: skip
    """Leaves of an adapter that changes nothing yet, float32, over the kernel of a matrix.

    Args:
      module: has a `config` and is at work.
      name: of the matrix.
      shape: of the kernel.
      axes: names of its axes.
      length: gives the lengths of the kernel's columns.
      inputs: axes that are contracted.
      leading: axes before them.
    """
    adapter, ends = module.config.adapter, leading + inputs
    draw = draw_change(name, math.prod(shape[leading:ends]))
    shape_a, axes_a = (*shape[:ends], adapter.rank), (*axes[:ends], "rank")
    shape_b, axes_b = (*shape[:leading], adapter.rank, *shape[ends:]), (*axes[:leading], "rank", *axes[ends:])
    leaves = {
        "lora_a": module.param("lora_a", named(draw["lora_a"], *axes_a), shape_a, "float32"),
        "lora_b": module.param("lora_b", named(draw["lora_b"], *axes_b), shape_b, "float32"),
    }
    if adapter.kind != "dora":
        return leaves
    start = named(lambda key: length().reshape(shape[ends:]), *axes[ends:])
    return leaves | {"magnitude": module.param("magnitude", start)}


class VocabularyAdapter(nn.Module):
    """Leaves of the adapter of the embedding table [V, D], or of the head, whose matrix is [D, V]."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, table: Array) -> Leaves:
        name, sizes = self.name.removesuffix("_adapter"), {"vocab": self.config.vocab_size, "embed": self.config.hidden_size}
        axes, matrix = (("vocab", "embed"), table) if name == "embedding" else (("embed", "vocab"), table.T)
        return make_adapter(self, name, tuple(sizes[axis] for axis in axes), axes, lambda: lengths(matrix))


def residual_gain(config: DecoderConfig) -> float:
    """Variance of what a new network adds to its residual stream, so that all 2 L additions together have variance 1."""
    return 0.5 / config.num_layers


def activate(config: DecoderConfig, x: Array) -> Array:
    """The non-linearity of the MLP."""
    if config.activation == "relu2":
        return jnp.square(nn.relu(x))
    return nn.silu(x) if config.activation == "silu" else nn.gelu(x, approximate=True)


def gated(config: DecoderConfig, gate: Array, up: Array) -> Array:
    """Inner values of a gated MLP, from its two projections; clipped they are gate sigmoid(1.702 gate) (up + 1), as in gpt-oss.

    Source: https://arxiv.org/abs/2508.10925
    """
    if config.activation != "clipped_swiglu":
        return activate(config, gate) * up
    gate = jnp.minimum(gate, config.swiglu_limit)
    return gate * jax.nn.sigmoid(1.702 * gate) * (jnp.clip(up, -config.swiglu_limit, config.swiglu_limit) + 1)


class Norm(nn.Module):
    """Root-mean-square norm over the last axes, in float32 (https://arxiv.org/abs/1910.07467)."""

    config: DecoderConfig
    axes: tuple[str, ...] = ("embed",)
    scaled: bool = True
    offset: float | None = None  # `norm_offset` by default

    @nn.compact
    def __call__(self, x: Array) -> Array:
        offset = self.config.norm_offset if self.offset is None else self.offset
        last = tuple(range(-len(self.axes), 0))
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=last, keepdims=True) + self.config.norm_epsilon)
        if not (self.config.norm_scales and self.scaled):
            return normed.astype(x.dtype)
        ones = named(nn.initializers.constant(1.0 - offset), *self.axes)
        scale = self.param("scale", ones, x.shape[-len(self.axes) :], self.config.param_dtype)
        return (normed * (scale.astype(jnp.float32) + offset)).astype(x.dtype)


class Projection(nn.Module):
    """Linear map of the last `inputs` axes of x. `shape` and `axes` are those of the kernel, inputs first.

    Without x it gives the kernel, float32, with its adapter.
    """

    config: DecoderConfig
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    inputs: int = 1
    bias: bool = False
    gain: float = 1.0  # variance of the outputs at initialisation, over that of the inputs

    @nn.compact
    def __call__(self, x: Array | None) -> Array:
        ins, outs = tuple(range(self.inputs)), tuple(range(self.inputs, len(self.shape)))
        initializer = nn.initializers.variance_scaling(self.gain, "fan_in", "truncated_normal", ins, outs)
        leaves = make_leaves(self, initializer, self.shape, self.axes, self.inputs)
        if x is None:
            return merged(self.config, leaves, self.inputs).reshape(self.shape)
        # As one matrix product of all tokens: with separate batch and length axes, XLA's CPU backend takes twice as long
        # for the gradients. Where a mesh splits the columns, it would have to bring them together for that.
        fan_in, by_token = math.prod(self.shape[: self.inputs]), x.shape[: x.ndim - self.inputs]
        y = product(self.config, leaves, x.reshape(*(by_token if current_column_shards() > 1 else (-1,)), fan_in), self.inputs)
        y = y.reshape(*by_token, *self.shape[self.inputs :])
        if not self.bias:
            return y
        axes, shape = self.axes[self.inputs :], self.shape[self.inputs :]
        return y + self.param("bias", named(nn.initializers.zeros, *axes), shape, self.config.param_dtype).astype(y.dtype)


class Mlp(nn.Module):
    """MLP, gated (https://arxiv.org/abs/2002.05202) or of two matrices."""

    config: DecoderConfig
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        shape, axes = (c.hidden_size, self.width), ("embed", "mlp")
        up = Projection(c, shape, axes, bias=c.mlp_bias, name="up")(x)
        if c.gated_mlp:
            inner = gated(c, Projection(c, shape, axes, bias=c.mlp_bias, name="gate")(x), up)
        else:
            inner = activate(c, up)
        inner = constrain(inner, "batch", "length", "mlp")
        return Projection(c, shape[::-1], axes[::-1], bias=c.mlp_bias, gain=residual_gain(c), name="down")(inner)
