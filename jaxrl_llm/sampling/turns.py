"""Contexts of slots that have one each: prompts are put there, tails are laid behind them, and more is read behind both."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxrl_llm.sampling.engine import by_shard, column_axes

ROWS = 8  # contexts of a shard behind which more is read at a time, where there are few
TOKENS = 2048  # that are read in all of them at a time, where there are many
CHUNKS = (16, 64, 256)  # tokens that are read behind a context at a time: few widths mean few programs


@functools.partial(jax.jit, donate_argnames=("contexts",))
def placed(contexts, fresh, rows, of_fresh):
    """The contexts of S slots with some of C others, no wider, in their place.

    Args:
      contexts: as `network.read` gives them.
      fresh: the same of others.
      rows: int [Q r], numbers within each shard; beyond its slots for none.
      of_fresh: int [Q r], which of the others.
    """
    return by_shard(_placed, (fresh,), contexts, rows, of_fresh, rows=True)


def _placed(fresh, contexts, rows, of_fresh):
    def put(own, new):
        return own.at[rows].set(grown(new, (new.shape[0], *own.shape[1:]))[of_fresh], mode="drop")

    return jax.tree.map(put, contexts, fresh)


def grown(leaf, shape: tuple[int, ...]):
    """The array with zeros behind it in each axis."""
    return jnp.pad(leaf, [(0, size - own) for own, size in zip(leaf.shape, shape, strict=True)])


@functools.partial(jax.jit, static_argnames=("network",), donate_argnames=("contexts",))
def kept(network, contexts, tails, lengths, starts, counts):
    """The contexts with columns of their slots' tails behind them.

    Args:
      network: with `init_tails`.
      contexts: of S slots, with room for them.
      tails: of the slots.
      lengths: int [S], tokens of each context.
      starts: int [S], first column of each tail.
      counts: int [S], columns; 0 for none.
    """
    return by_shard(functools.partial(_kept, network), (), contexts, tails, lengths, starts, counts, rows=True)


def _kept(network, contexts, tails, lengths, starts, counts):
    order, axes = jnp.argsort(counts == 0, stable=True), column_axes(network, counts.shape[0])

    def laid(number, contexts):
        slot = order[number]
        start, length, count = starts[slot], lengths[slot], counts[slot]

        def put(context, tail, axis):
            if axis < 0:  # a state, which has no columns
                return context.at[slot].set(tail[slot])
            if context.ndim < tail.ndim:  # what is behind the last token stands for all
                return context.at[slot].set(lax.dynamic_index_in_dim(tail[slot], start + count - 1, axis - 1, keepdims=False))
            width, axis = context.shape[axis], axis - 1
            own = lax.slice_in_dim(jnp.roll(tail[slot], -start, axis), 0, min(width, tail.shape[axis + 1]), axis=axis)
            sizes = [width if place == axis else size for place, size in enumerate(own.shape)]
            columns = jnp.arange(width).reshape([-1 if place == axis else 1 for place in range(own.ndim)])
            new = jnp.roll(grown(own, tuple(sizes)), length, axis)
            return context.at[slot].set(jnp.where((columns >= length) & (columns < length + count), new, context[slot]))

        return jax.tree.map(put, contexts, tails, axes)

    return lax.fori_loop(0, (counts > 0).sum(), laid, contexts)


@functools.partial(jax.jit, static_argnames=("network",), donate_argnames=("contexts",))
def extended(network, params, layers, contexts, tokens, lengths, before, rows):
    """The contexts of S slots with more tokens behind some of them, and their experts [Q r, n, layers, k] or None.

    Args:
      network: with `extend`.
      params: its parameters.
      layers: those of its layers.
      contexts: with room for n tokens more.
      tokens: int [Q r, n], right-padded.
      lengths: int [Q r], how many of them count.
      before: int [Q r], tokens of each context.
      rows: int [Q r], as in `placed`.
    """
    own = contexts, tokens, lengths, before, rows
    return by_shard(functools.partial(_extended, network), (params, layers), *own, rows=True)


def _extended(network, params, layers, contexts, tokens, lengths, before, rows):
    own = jax.tree.map(lambda leaf: leaf.at[rows].get(mode="clip"), contexts)
    own, experts = network.extend(params, layers, tokens, lengths, own, before)
    return jax.tree.map(lambda leaf, new: leaf.at[rows].set(new, mode="drop"), contexts, own), experts
