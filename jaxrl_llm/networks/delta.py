"""Layers of the gated delta rule: a state of fixed size in place of keys and values (Gated DeltaNet)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.networks.axes import constrain
from jaxrl_llm.networks.config import DecoderConfig, LayerShape
from jaxrl_llm.networks.modules import Norm, Projection, named, residual_gain
from jaxrl_llm.networks.past import Sight
from jaxrl_llm.networks.recurrent import State, convolved, delta_rule, normalised, of_slots, step
from jaxrl_llm.networks.shared import Numbered, Shared

Array = jax.Array


def _where_live(sight: Sight, new: Array, old: Array) -> Array:
    live = sight.cell < sight.lengths.shape[0] * sight.places
    return jnp.where(live.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


class DeltaRule(nn.Module):
    """Queries, keys and values behind short convolutions, the gated delta rule, and a gated norm of what it gives.

    Source: https://arxiv.org/abs/2412.06464
    """

    config: DecoderConfig
    shape: LayerShape

    @nn.compact
    def __call__(self, x: Array, shared: Shared, own: Numbered) -> tuple[Array, Any]:
        sizes = self.config.delta
        of_keys, of_values = (sizes.key_heads, sizes.key_dim), (sizes.value_heads, sizes.value_dim)
        heads = {"query": of_keys, "key": of_keys, "value": of_values}
        inputs = [self.projected(name, size, x) for name, size in heads.items()]
        filters = [self.filter(name, size) for name, size in heads.items()]
        strength = jax.nn.sigmoid(self.projected("strength", (sizes.value_heads,), x).astype(jnp.float32))
        decay = self.decay(self.projected("decay", (sizes.value_heads,), x))
        if isinstance(own.past, State):
            return self.behind(x, inputs, filters, decay, strength, own.past, shared)
        if own.past is not None:
            state = of_slots(own.past.contexts, own.past.tails, shared.sight)
            windows = [jnp.concatenate([past, new], axis=1) for past, new in zip(state.inputs, inputs, strict=True)]
            mixed = [jax.nn.silu(jnp.einsum("swhd,hdw->shd", x, own)) for x, own in zip(windows, filters, strict=True)]
            given, matrix = step(state.matrix, *self.prepared(mixed), decay[:, 0], strength[:, 0])
            found = State(matrix, tuple(window[:, 1:] for window in windows))
            # A slot whose sample is over keeps what it has read, so that it can go on from there.
            tails = jax.tree.map(functools.partial(_where_live, shared.sight), found, state)
            return self.out(x, given[:, None]), own.past.replace(tails=tails)
        real = (shared.reach > 0)[..., None].astype(jnp.float32)
        mixed = [convolved(one, own, shared.chunks) for one, own in zip(inputs, filters, strict=True)]
        given, matrix = delta_rule(*self.prepared(mixed), decay * real, strength * real, shared.chunks)
        kept = State(matrix, tuple(self.last(one, shared.reach) for one in inputs)) if shared.keep else None
        return self.out(x, given), kept

    def behind(self, x: Array, inputs: list, filters: list, decay: Array, strength: Array, past: State, shared: Shared):
        """Tokens [C, n] behind states, of which those count where `shared.reach` is not 0."""
        count, real = x.shape[1], shared.reach[..., None].astype(jnp.float32)
        windows = [jnp.concatenate(pair, axis=1) for pair in zip(past.inputs, inputs, strict=True)]
        width = self.config.delta.kernel

        def convolved_behind(window, weights):
            return jax.nn.silu(sum(window[:, place : place + count] * weights[..., place] for place in range(width)))

        mixed = [convolved_behind(*pair) for pair in zip(windows, filters, strict=True)]
        tokens = (*self.prepared(mixed), decay * real, strength * real)

        def advance(matrix, now):
            given, matrix = step(matrix, *now)
            return matrix, given

        matrix, given = jax.lax.scan(advance, past.matrix, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), tokens))
        ends = shared.reach.sum(axis=1)
        last = jax.vmap(lambda window, end: jax.lax.dynamic_slice_in_dim(window, end, width - 1, axis=0))
        kept = State(matrix, tuple(last(window, ends) for window in windows))
        return self.out(x, jnp.moveaxis(given, 0, 1)), kept

    def projected(self, name: str, size: tuple[int, ...], x: Array) -> Array:
        """[B, T, heads] or [B, T, heads, size]."""
        axes = ("heads", "head_dim")[: len(size)]
        found = Projection(self.config, (self.config.hidden_size, *size), ("embed", *axes), name=name)(x)
        return constrain(found, "batch", "length", *axes)

    def filter(self, name: str, size: tuple[int, int]) -> Array:
        """Weights [heads, size, W] of a convolution."""
        c, width = self.config, self.config.delta.kernel
        initializer = nn.initializers.variance_scaling(1.0, "fan_in", "uniform", in_axis=-1, out_axis=(), batch_axis=(0, 1))
        shape = (size[0] * size[1], 1, width)
        return (
            self.param(f"{name}_filter", named(initializer, "heads", None, None), shape, c.param_dtype)
            .reshape(*size, width)
            .astype(c.dtype)
        )

    def decay(self, x: Array) -> Array:
        """Logs of the decay of each head's state, float32 like x [B, T, heads]."""
        count, dtype = self.config.delta.value_heads, self.config.param_dtype
        rates = np.log(np.linspace(0.5, 16.0, count)).astype(np.float32)
        rate = self.param("decay_rate", named(lambda *_: jnp.asarray(rates, dtype), "heads"))
        bias = self.param("decay_bias", named(nn.initializers.ones, "heads"), (count,), dtype)
        return -jnp.exp(rate.astype(jnp.float32)) * jax.nn.softplus(x.astype(jnp.float32) + bias.astype(jnp.float32))

    def prepared(self, mixed: list[Array]) -> tuple[Array, Array, Array]:
        """Queries, keys and values [..., heads, size] of as many heads, float32."""
        shared = self.config.delta.value_heads // self.config.delta.key_heads
        query, key = (jnp.repeat(normalised(x), shared, axis=-2) for x in mixed[:2])
        return query, key, mixed[2].astype(jnp.float32)

    def last(self, x: Array, reach: Array) -> Array:
        """The last inputs [B, W - 1, heads, size] of right-padded rows; 0 where there are fewer."""
        ends = (reach > 0).sum(axis=1)[:, None] + np.arange(1 - self.config.delta.kernel, 0)
        at = jnp.maximum(ends, 0)[..., None, None]
        if not x.shape[1]:
            return jnp.zeros((x.shape[0], ends.shape[1], *x.shape[2:]), x.dtype)
        return jnp.where(ends[..., None, None] >= 0, jnp.take_along_axis(x, at, axis=1), 0)

    def out(self, x: Array, given: Array) -> Array:
        """What goes into the residual stream, from what the rule gives [B, T, heads, size]."""
        c, sizes = self.config, (self.config.delta.value_heads, self.config.delta.value_dim)
        gate = self.projected("gate", sizes, x).astype(jnp.float32)
        normed = Norm(c, ("head_dim",), offset=0.0, name="norm")(given.astype(c.dtype))
        mixed = constrain(
            (normed.astype(jnp.float32) * jax.nn.silu(gate)).astype(c.dtype), "batch", "length", "heads", "head_dim"
        )
        shape = (*sizes, c.hidden_size)
        return Projection(c, shape, ("heads", "head_dim", "embed"), inputs=2, gain=residual_gain(c), name="output")(mixed)
