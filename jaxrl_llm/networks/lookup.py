"""Embeddings of tokens from a table that a mesh has split by vocabulary and width."""

import functools

import jax
import jax.numpy as jnp

from jaxrl_llm.networks.axes import Split, first_of, parts, split_of


def looked_up(table, tokens, dtype):
    """Rows [B, T, D] of `table` [V, D] for tokens int [B, T], in a dtype; a token outside of it is its first or last one.

    On a mesh the devices that share out the width exchange what each has of the others' tokens. The partitioner would give
    the embeddings of all tokens of the batch to every device, and their gradients.
    """
    split = split_of(tokens.shape, table.shape) if tokens.ndim == 2 else Split()
    if not split.width or not set(split.width) <= set(split.rows + split.columns):
        return jnp.take(table, tokens, axis=0, mode="clip").astype(dtype)
    like = jax.ShapeDtypeStruct(table.shape, table.dtype)
    return _exchanged(split, jnp.dtype(dtype), like, table, jnp.clip(tokens, 0, table.shape[0] - 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _exchanged(split: Split, dtype, like: jax.ShapeDtypeStruct, table, tokens):
    of_tokens, of_table = split.specs

    def local(table, tokens):
        places, here = _places(split, table, tokens)
        found = jnp.where(here[..., None], table[places], 0.0).astype(dtype)
        own = jax.lax.all_to_all(found, split.width, 0, 3, tiled=True)[0]
        return jax.lax.psum(own, split.vocabulary) if split.vocabulary else own

    return jax.shard_map(local, in_specs=(of_table, of_tokens), out_specs=of_tokens, check_vma=False)(table, tokens)


def _places(split: Split, table, tokens):
    """Places [n, b, t] in a device's part of the table, of the tokens of all devices that share out its width; which it has."""
    places = jax.lax.all_gather(tokens, split.width) - first_of(split.vocabulary, table.shape[0])
    here = (places >= 0) & (places < table.shape[0])
    return jnp.where(here, places, 0), here


def _forward(split: Split, dtype, like, table, tokens):
    return _exchanged(split, dtype, like, table, tokens), tokens


def _backward(split: Split, dtype, like, tokens, gradient):
    of_tokens, of_table = split.specs

    def local(tokens, gradient):
        pieces = jnp.stack(jnp.split(gradient, parts(split.width), axis=-1))
        theirs = jax.lax.all_to_all(pieces, split.width, 0, 0, tiled=True).astype(jnp.float32)
        zeros = jnp.zeros((like.shape[0] // parts(split.vocabulary), theirs.shape[-1]), jnp.float32)
        places, here = _places(split, zeros, tokens)
        found = zeros.at[places].add(jnp.where(here[..., None], theirs, 0.0))
        others = tuple(axis for axis in split.rows + split.columns if axis not in split.width)
        return (jax.lax.psum(found, others) if others else found).astype(like.dtype)

    of_both = jax.shard_map(local, in_specs=(of_tokens, of_tokens), out_specs=of_table, check_vma=False)
    return of_both(tokens, gradient), None


_exchanged.defvjp(_forward, _backward)
