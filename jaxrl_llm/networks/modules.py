"""The small modules that layers are made of: norms, linear maps, the gated MLP."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_llm.networks.axes import constrain, current_column_shards
from jaxrl_llm.networks.config import DecoderConfig
from jaxrl_llm.networks.leaves import make_leaves, named
from jaxrl_llm.networks.matrices import product

Array = jax.Array


def residual_gain(config: DecoderConfig) -> float:
    """Variance of what a new network adds to its residual stream, so that all 2 L additions together have variance 1."""
    return 0.5 / config.num_layers


def activate(config: DecoderConfig, x: Array) -> Array:
    """The non-linearity of the gated MLP."""
    return nn.silu(x) if config.activation == "silu" else nn.gelu(x, approximate=True)


class Norm(nn.Module):
    """Root-mean-square norm over the last axes, in float32 (https://arxiv.org/abs/1910.07467)."""

    config: DecoderConfig
    axes: tuple[str, ...] = ("embed",)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        offset, last = self.config.norm_offset, tuple(range(-len(self.axes), 0))
        ones = named(nn.initializers.constant(1.0 - offset), *self.axes)
        scale = self.param("scale", ones, x.shape[-len(self.axes) :], self.config.param_dtype)
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=last, keepdims=True) + self.config.norm_epsilon)
        return (normed * (scale.astype(jnp.float32) + offset)).astype(x.dtype)


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
        ins, outs = tuple(range(self.inputs)), tuple(range(self.inputs, len(self.shape)))
        initializer = nn.initializers.variance_scaling(self.gain, "fan_in", "truncated_normal", ins, outs)
        leaves = make_leaves(self, initializer, self.shape, self.axes, self.inputs)
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
    """Gated MLP (https://arxiv.org/abs/2002.05202)."""

    config: DecoderConfig
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        shape, axes = (c.hidden_size, self.width), ("embed", "mlp")
        gate = Projection(c, shape, axes, name="gate")(x)
        up = Projection(c, shape, axes, name="up")(x)
        inner = constrain(activate(c, gate) * up, "batch", "length", "mlp")
        return Projection(c, shape[::-1], axes[::-1], gain=residual_gain(c), name="down")(inner)
