"""Masked attention of several heads, in several implementations that agree.

Queries are [B, T, N, H]; keys and values [B, T, K, H]; query head n reads key head n // (N / K). Logits are multiplied by
`scale`, 1 / sqrt(H) by default, and capped at `softcap`, where there is one: x becomes softcap * tanh(x / softcap).
Softmax is taken in float32. Who sees whom is said by `reach` [B, T], the first column behind all that goes on from a token,
and by `positions`: query q sees key k where k <= q < reach[k] and positions[q] - positions[k] < window. So a row may hold
several sequences, and trees of them that share their beginnings. A query that sees nothing gives a finite result that
means nothing.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxrl_llm.networks.axes import current_spec
from jaxrl_llm.networks.blocks import block_size, blocked_attention, softcapped, visible_blocks
from jaxrl_llm.networks.config import DecoderConfig
from jaxrl_llm.networks.kernels import kernel_attention, kernel_blocks

WITHOUT_WINDOW = 2**30
DENSE = 2  # blocks of the longest rows whose attention weights exist all at a time


def reach_of(segments: jax.Array) -> jax.Array:
    """The first column behind the sequence of each token, int32 [B, T], for rows of sequences numbered from 1.

    Nobody sees padding, segment 0, whose reach is 0.
    """
    width = segments.shape[1]
    last = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (0, 1)), constant_values=True)
    ends = jnp.where(last, jnp.arange(1, width + 1, dtype=jnp.int32), width)
    return jnp.where(segments > 0, jax.lax.cummin(ends, axis=1, reverse=True), 0)


def reach_mask(reach: jax.Array, positions: jax.Array, window: jax.Array | int = WITHOUT_WINDOW) -> jax.Array:
    """Mask [B, T, T], True where a query, the second axis, may see a key."""
    index = jnp.arange(reach.shape[1])
    seen = (index[:, None] >= index) & (index[:, None] < reach[:, None, :])
    return seen & (positions[:, :, None] - positions[:, None, :] < window)


def reference_attention(query, key, value, mask, *, scale: float | None = None, softcap: float | None = None) -> jax.Array:
    """The formula written out, in float32: softmax(scale q k) v. Returns [B, T, N, H]."""
    shared = query.shape[2] // key.shape[2]
    q, k, v = (x.astype(jnp.float32) for x in (query, key, value))
    k, v = (jnp.repeat(x, shared, axis=2) for x in (k, v))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = softcapped(scale * jnp.einsum("btnh,bsnh->bnts", q, k), softcap)
    logits = jnp.where(mask[:, None], logits, jnp.finfo(jnp.float32).min)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits, axis=-1), v).astype(query.dtype)


def dense_attention(query, key, value, mask, *, scale: float | None = None, softcap: float | None = None) -> jax.Array:
    """As `reference_attention`, with the heads that share a key in one product; products accumulate in float32."""
    grouped = query.reshape(*query.shape[:2], key.shape[2], -1, query.shape[-1])
    logits = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32)
    logits = softcapped(logits * (query.shape[-1] ** -0.5 if scale is None else scale), softcap)
    logits = jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype)
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights, value, preferred_element_type=jnp.float32)
    return mixed.astype(query.dtype).reshape(query.shape)


def uses_kernel(name: str) -> bool:
    """Whether attention called `name` is the kernel for TPU on this platform."""
    return name == "pallas" or (name == "auto" and jax.default_backend() == "tpu")


def blocks_of(config: DecoderConfig, reach: jax.Array, positions: jax.Array, window: jax.Array):
    """What `attend` has to know of blocks, the same for all layers with this window; None where it computes all weights."""
    if uses_kernel(config.attention):
        return kernel_blocks(reach, positions, window)
    if config.attention == "reference" or reach.shape[1] <= DENSE * block_size():
        return None
    return visible_blocks(reach, positions, window)


def attend(config: DecoderConfig, query, key, value, reach, positions, blocks, window) -> jax.Array:
    """The attention that `config` asks for, among the tokens given.

    Args:
      config: of the network.
      query: [B, T, N, H].
      key: [B, T, K, H].
      value: [B, T, K, H].
      reach: int [B, T].
      positions: int [B, T].
      blocks: of `blocks_of`, for this window.
      window: int [], tokens that are seen.
    """
    options = {"scale": config.query_scale, "softcap": config.attention_softcap}
    if uses_kernel(config.attention):
        return split_kernel(query, key, value, reach, positions, blocks, window, **options)
    if blocks is not None:
        return blocked_attention(query, key, value, reach, positions, blocks, window, **options)
    chosen = reference_attention if config.attention == "reference" else dense_attention
    return chosen(query, key, value, reach_mask(reach, positions, window), **options)


def split_kernel(query, key, value, reach, positions, blocks, window, **options) -> jax.Array:
    """`kernel_attention`, its rows and heads split over the mesh.

    Kernels are not partitioned by the compiler: with a mesh (`jax.set_mesh`) and logical axis rules it is done here, with keys
    and values that have the heads that each shard needs.
    """
    run = functools.partial(kernel_attention, **options)
    spec = current_spec(("batch", None, "heads", None), query.shape)
    if spec is None:
        return run(query, key, value, reach, positions, blocks, window)
    if spec != current_spec(("batch", None, "kv_heads", None), key.shape):
        key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    rows = PartitionSpec(*spec[:1])
    specs = (spec, spec, spec, rows, rows, rows, PartitionSpec())
    return jax.shard_map(run, in_specs=specs, out_specs=spec, check_vma=False)(
        query, key, value, reach, positions, blocks, window
    )
