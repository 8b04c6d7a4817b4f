"""Decoding of networks that offer nothing but `apply`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Cacheless:
    """Gives a causal `apply(params, tokens [N, T]) -> logits [N, T, V]` the methods that the slot engine calls.

    The past is the text itself, and every step runs the whole of it: slow, and [N, T, V] logits in memory, but any causal
    network samples. `apply` sees rows padded on the right, and needs no notion of padding.
    """

    apply: Callable[..., Any]

    def read(self, params, tokens, lengths):
        return tokens, None

    def extend(self, params, layers, tokens, lengths, contexts, before):
        place = jax.vmap(jax.lax.dynamic_update_slice_in_dim, in_axes=(0, 0, 0, None))
        return place(contexts, tokens, before, 0), None

    def each_layer(self, params):
        return []

    def init_tails(self, slots: int, width: int):
        return jnp.zeros((slots, width), jnp.int32)

    def step(self, params, layers, token, contexts, tails, sight):
        tails = jax.lax.dynamic_update_slice(tails, token[:, None], (0, sight.column))
        context = jnp.minimum(sight.cell // sight.places, len(contexts) - 1)
        length, place = sight.lengths[context][:, None], jnp.arange(contexts.shape[1] + tails.shape[1])
        inside = jnp.minimum(place, contexts.shape[1] - 1)
        behind = jnp.clip(sight.start[:, None] + place - length, 0, tails.shape[1] - 1)
        text = jnp.where(place < length, contexts[context][:, inside], jnp.take_along_axis(tails, behind, axis=1))
        # What stands behind the token of this step is not said yet.
        text = jnp.where(place <= sight.position[:, None], text, 0)
        return self.apply(params, text)[jnp.arange(len(token)), sight.position], tails, None

    def unembed(self, params, hidden):
        return hidden
