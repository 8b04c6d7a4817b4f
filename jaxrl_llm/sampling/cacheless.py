"""Decoding of networks that offer nothing but `apply`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Cacheless:
    """Gives a causal `apply(params, tokens [N, T]) -> logits [N, T, V]` the methods that `decode` calls.

    The cache is the text itself, each row without gaps, and every step runs the whole of it: slow, and [N, T, V] logits in
    memory, but any causal network samples. `apply` sees rows padded on the right, and needs no notion of padding.
    """

    apply: Callable[..., Any]

    def init_cache(self, rows: int, length: int):
        return jnp.zeros((rows, length), jnp.int32)

    def hidden(self, params, tokens, positions=None, segments=None, cache=None):
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        cache = cache.at[jnp.arange(tokens.shape[0])[:, None], positions].set(tokens)
        logits = self.apply(params, cache)
        return jnp.take_along_axis(logits, positions[:, :, None], axis=1), cache

    def unembed(self, params, hidden):
        return hidden
