"""Masked attention of several heads, in several implementations that agree.

Queries are [B, T, N, H]; keys and values [B, S, K, H]; query head n reads key head n // (N / K). Logits are multiplied by
`scale`, 1 / sqrt(H) by default, and capped at `softcap`, where there is one: x becomes softcap * tanh(x / softcap).
Softmax is taken in float32. A mask is bool [B, T, S], True where a query may see a key; a query that sees nothing gives a
finite result that means nothing.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from jaxrl_llm.networks.axes import current_spec
from jaxrl_llm.networks.config import DecoderConfig

QUERY_BLOCK = 128  # queries whose attention weights exist at a time, in rows longer than twice as many
LANES = 128  # of a TPU's vector registers; splash attention wants lengths that are a multiple of it


def packed_mask(segments: jax.Array, window: int | None = None) -> jax.Array:
    """Causal mask [B, T, T] of rows that hold several sequences: each token sees its own segment, up to itself.

    With a window, it sees the last `window` tokens alone, itself among them. Padding is a segment like the others, so
    that its outputs are finite and nothing else sees it.
    """
    index = jnp.arange(segments.shape[1])
    causal = index[:, None] >= index
    near = causal if window is None else causal & (index[:, None] - index < window)
    return near & (segments[:, :, None] == segments[:, None, :])


def softcapped(logits: jax.Array, cap: float | None) -> jax.Array:
    """`cap * tanh(logits / cap)`, or the logits themselves where there is no cap (Gemma 2, https://arxiv.org/abs/2408.00118)."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def reference_attention(query, key, value, mask, *, scale: float | None = None, softcap: float | None = None) -> jax.Array:
    """The formula written out, in float32: softmax(scale q k) v. Returns [B, T, N, H]."""
    shared = query.shape[2] // key.shape[2]
    q, k, v = (x.astype(jnp.float32) for x in (query, key, value))
    k, v = (jnp.repeat(x, shared, axis=2) for x in (k, v))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = softcapped(scale * jnp.einsum("btnh,bsnh->bnts", q, k), softcap)
    logits = jnp.where(mask[:, None], logits, jnp.finfo(jnp.float32).min)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits, axis=-1), v).astype(query.dtype)


def xla_attention(query, key, value, mask, *, scale: float | None = None, softcap: float | None = None) -> jax.Array:
    """As `reference_attention`, by `jax.nn.dot_product_attention` where there is no cap.

    Long rows are taken a block of queries at a time, forward and backward, so that weights [B, N, T, S] never exist.
    """

    def whole(query, mask):
        if softcap is not None:
            return _capped_attention(query, key, value, mask, scale, softcap)
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None], scale=scale, implementation="xla")

    rows, length = query.shape[:2]
    if length <= 2 * QUERY_BLOCK:
        return whole(query, mask)
    blocks = [_query_blocks(x) for x in (query, mask)]
    mixed = jnp.swapaxes(jax.lax.map(jax.checkpoint(lambda block: whole(*block)), blocks), 0, 1)
    return mixed.reshape(rows, -1, *query.shape[2:])[:, :length]


def _capped_attention(query, key, value, mask, scale: float | None, softcap: float):
    """Attention with capped logits; products accumulate in float32 whatever the dtype of the heads."""
    grouped = query.reshape(*query.shape[:2], key.shape[2], -1, query.shape[-1])
    logits = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32)
    logits = softcapped(logits * (query.shape[-1] ** -0.5 if scale is None else scale), softcap)
    logits = jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype)
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights, value, preferred_element_type=jnp.float32)
    return mixed.astype(query.dtype).reshape(query.shape)


def _query_blocks(x: jax.Array) -> jax.Array:
    """[B, T, ...] padded and split to [blocks, B, QUERY_BLOCK, ...]."""
    padded = jnp.pad(x, [(0, 0), (0, -x.shape[1] % QUERY_BLOCK)] + [(0, 0)] * (x.ndim - 2))
    return jnp.swapaxes(padded.reshape(x.shape[0], -1, QUERY_BLOCK, *x.shape[2:]), 0, 1)


def splash_attention(query, key, value, segments, *, window=None, scale=None, softcap=None) -> jax.Array:
    """As `reference_attention` under `packed_mask(segments, window)`, by the Pallas kernel for TPU, which holds no logits.

    Kernels are not partitioned by the compiler: with a mesh (`jax.set_mesh`) and logical axis rules, rows and heads are
    split here. Lengths are padded to a multiple of 128.
    """
    padding = [(0, 0), (0, -query.shape[1] % LANES)]
    padded = [jnp.pad(x, [*padding, (0, 0), (0, 0)]) for x in (query, key, value)]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    run = functools.partial(_splash_rows, window, scale, softcap)
    spec = current_spec(("batch", None, "heads", None), query.shape)
    if spec is not None:
        run, padded[1:] = _split_splash(run, spec, *padded)
    return run(*padded, jnp.pad(segments, padding))[:, : query.shape[1]]


def _splash_rows(window, scale, softcap, query, key, value, segments):
    length, heads = query.shape[1:3]
    block = next(size for size in (512, 256, LANES) if length % size == 0)
    forward = {"block_q": block, "block_kv": block, "block_kv_compute": block}
    backward = {"block_q_dkv": block, "block_kv_dkv": block, "block_kv_dkv_compute": block}
    sizes = splash.BlockSizes(**forward, **backward, use_fused_bwd_kernel=True)
    shape = (length, length)
    near = splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (window - 1, 0), offset=0)
    settings = {"head_shards": 1, "q_seq_shards": 1, "block_sizes": sizes, "attn_logits_soft_cap": softcap}
    kernel = splash.make_splash_mha(splash.MultiHeadMask([near] * heads), **settings)
    scaled = query * jnp.asarray(scale, query.dtype)
    by_head = (x.swapaxes(1, 2) for x in (scaled, key, value))
    return jax.vmap(kernel)(*by_head, splash.SegmentIds(segments, segments)).swapaxes(1, 2)


def _split_splash(run, spec: PartitionSpec, query, key, value):
    """The kernel over the shards of the mesh, with keys and values that have the heads that each shard needs."""
    if spec != current_spec(("batch", None, "kv_heads", None), key.shape):
        key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    specs = (spec, spec, spec, PartitionSpec(*spec[:2]))
    return jax.shard_map(run, in_specs=specs, out_specs=spec, check_vma=False), (key, value)


def uses_splash(name: str) -> bool:
    """Whether attention called `name`, without a cache, is splash attention on this platform."""
    return name == "splash" or (name == "auto" and jax.default_backend() == "tpu")


def attend(config: DecoderConfig, query, key, value, segments: jax.Array, mask: jax.Array | None, kind) -> jax.Array:
    """The attention that `config` asks for; without a mask, splash attention with the window of the layer's `kind`."""
    options = {"scale": config.query_scale, "softcap": config.attention_softcap}
    if mask is not None:
        chosen = reference_attention if config.attention == "reference" else xla_attention
        return chosen(query, key, value, mask, **options)
    kernels = [functools.partial(splash_attention, window=kind.window, **options) for kind in config.kinds]
    return jax.lax.switch(kind, kernels, query, key, value, segments)
