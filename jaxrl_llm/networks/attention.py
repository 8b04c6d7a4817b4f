"""Masked attention of several heads, in several implementations that agree.

Queries are [B, T, N, H]; keys and values [B, S, K, H]; query head n reads key head n // (N / K). Logits are scaled by
1 / sqrt(H); softmax is taken in float32. A mask is bool [B, T, S], True where a query may see a key; a query that sees
nothing gives a finite result that means nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from jaxrl_llm.networks.axes import current_spec

QUERY_BLOCK = 128  # queries whose attention weights exist at a time, in rows longer than twice as many
LANES = 128  # of a TPU's vector registers; splash attention wants lengths that are a multiple of it


def packed_mask(segments: jax.Array) -> jax.Array:
    """Causal mask [B, T, T] of rows that hold several sequences: each token sees its own segment, up to itself.

    Padding is a segment like the others, so that its outputs are finite and nothing else sees it.
    """
    index = jnp.arange(segments.shape[1])
    return (index[:, None] >= index) & (segments[:, :, None] == segments[:, None, :])


def cached_mask(positions: jax.Array, slot_positions: jax.Array) -> jax.Array:
    """Mask [B, T, S] of queries at `positions` [B, T] over cache slots at `slot_positions` [B, S], -1 where empty."""
    slots = slot_positions[:, None, :]
    return (slots >= 0) & (slots <= positions[:, :, None])


def reference_attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """The formula written out, in float32: softmax(q k / sqrt(H)) v. Returns [B, T, N, H]."""
    shared = query.shape[2] // key.shape[2]
    q, k, v = (x.astype(jnp.float32) for x in (query, key, value))
    k, v = (jnp.repeat(x, shared, axis=2) for x in (k, v))
    logits = jnp.einsum("btnh,bsnh->bnts", q, k) / jnp.sqrt(query.shape[-1])
    logits = jnp.where(mask[:, None], logits, jnp.finfo(jnp.float32).min)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits, axis=-1), v).astype(query.dtype)


def xla_attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """As `reference_attention`, by `jax.nn.dot_product_attention`.

    Long rows are taken a block of queries at a time, forward and backward, so that weights [B, N, T, S] never exist.
    """

    @jax.checkpoint
    def block_attention(block):
        return jax.nn.dot_product_attention(block[0], key, value, mask=block[1][:, None], implementation="xla")

    rows, length = query.shape[:2]
    if length <= 2 * QUERY_BLOCK:
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None], implementation="xla")
    blocks = [_query_blocks(x) for x in (query, mask)]
    mixed = jnp.swapaxes(jax.lax.map(block_attention, blocks), 0, 1)
    return mixed.reshape(rows, -1, *query.shape[2:])[:, :length]


def _query_blocks(x: jax.Array) -> jax.Array:
    """[B, T, ...] padded and split to [blocks, B, QUERY_BLOCK, ...]."""
    padded = jnp.pad(x, [(0, 0), (0, -x.shape[1] % QUERY_BLOCK)] + [(0, 0)] * (x.ndim - 2))
    return jnp.swapaxes(padded.reshape(x.shape[0], -1, QUERY_BLOCK, *x.shape[2:]), 0, 1)


def cached_attention(query: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """As `reference_attention`, of queries [B, T, N, H] over a layer of a cache: keys [B, K, H, S], values [B, K, S, H].

    In these layouts both products read the cache as it lies; in that of the other functions here, a decoding step would
    transpose all of it first. Keys and values are widened or narrowed to the dtype of the queries.
    """
    rows, length, heads, width = query.shape
    shared = (rows, keys.shape[1], heads // keys.shape[1], length, width)  # B, K, G, T, H
    grouped = jnp.moveaxis(query, 1, 2).reshape(*shared[:2], -1, width)
    keys, values = keys.astype(query.dtype), values.astype(query.dtype)
    logits = jnp.matmul(grouped, keys, preferred_element_type=jnp.float32).reshape(*shared[:4], -1) * width**-0.5
    logits = jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype).reshape(*grouped.shape[:3], -1)
    mixed = jnp.matmul(weights, values, preferred_element_type=jnp.float32).astype(query.dtype)
    return jnp.moveaxis(mixed.reshape(rows, heads, length, width), 2, 1)


def splash_attention(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    """As `reference_attention` under `packed_mask(segments)`, by the Pallas kernel for TPU, which never holds the logits.

    Kernels are not partitioned by the compiler: with a mesh (`jax.set_mesh`) and logical axis rules, rows and heads are
    split here. Lengths are padded to a multiple of 128.
    """
    padding = [(0, 0), (0, -query.shape[1] % LANES)]
    padded = [jnp.pad(x, [*padding, (0, 0), (0, 0)]) for x in (query, key, value)]
    spec = current_spec(("batch", None, "heads", None), query.shape)
    run = _splash_rows
    if spec is not None:
        run, padded[1:] = _split_splash(spec, *padded)
    return run(*padded, jnp.pad(segments, padding))[:, : query.shape[1]]


def _splash_rows(query, key, value, segments):
    length, heads = query.shape[1:3]
    block = next(size for size in (512, 256, LANES) if length % size == 0)
    forward = {"block_q": block, "block_kv": block, "block_kv_compute": block}
    backward = {"block_q_dkv": block, "block_kv_dkv": block, "block_kv_dkv_compute": block}
    sizes = splash.BlockSizes(**forward, **backward, use_fused_bwd_kernel=True)
    mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * heads)
    kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes)
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    by_head = (x.swapaxes(1, 2) for x in (scaled, key, value))
    return jax.vmap(kernel)(*by_head, splash.SegmentIds(segments, segments)).swapaxes(1, 2)


def _split_splash(spec: PartitionSpec, query, key, value):
    """The kernel over the shards of the mesh, with keys and values that have the heads that each shard needs."""
    if spec != current_spec(("batch", None, "kv_heads", None), key.shape):
        key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    specs = (spec, spec, spec, PartitionSpec(*spec[:2]))
    return jax.shard_map(_splash_rows, in_specs=specs, out_specs=spec, check_vma=False), (key, value)


def uses_splash(name: str) -> bool:
    """Whether attention called `name`, without a cache, is splash attention on this platform."""
    return name == "splash" or (name == "auto" and jax.default_backend() == "tpu")


def attend(name: str, query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, mask: jax.Array | None):
    """Attention called `name` (one of `config.ATTENTION`); without a mask, splash attention within `segments`."""
    if mask is None:
        return splash_attention(query, key, value, segments)
    return (reference_attention if name == "reference" else xla_attention)(query, key, value, mask)
