"""Masked attention of several heads, in several implementations that agree.

Queries are [B, T, N, H]; keys and values [B, T, K, H]; query head n reads key head n // (N / K). Logits are multiplied by
`scale`, 1 / sqrt(H) by default, and capped at `softcap`, where there is one: x becomes softcap * tanh(x / softcap). Softmax is
taken in float32; `sinks` [N], where there are any, are logits that take part in its sum and give no value
(https://arxiv.org/abs/2309.17453). Who sees whom is said by `reach` [B, T], the first column behind all that goes on from a
token, and by
`positions`: query q sees key k where k <= q < reach[k] and positions[q] - positions[k] < window. So a row may hold several
sequences, and trees of them that share their beginnings. A query that sees nothing gives a finite result that means nothing.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxrl_llm.networks.axes import current_spec
from jaxrl_llm.networks.blocks import ALL, Queries, block_size, blocked_attention, softcapped, visible_blocks
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


def reach_mask(
    reach: jax.Array, positions: jax.Array, window: jax.Array | int = WITHOUT_WINDOW, queries: Queries = ALL
) -> jax.Array:
    """Mask [B, T, S], True where a query, the second axis, may see a key, for rows [B, S] of which T columns ask."""
    index, asking = jnp.arange(reach.shape[1]), queries.of(positions)
    column = (queries.first + jnp.arange(asking.shape[1]))[:, None]
    seen = (column >= index) & (column < reach[:, None, :])
    return seen & (asking[:, :, None] - positions[:, None, :] < window)


def reference_attention(
    query, key, value, mask, *, scale: float | None = None, softcap: float | None = None, sinks=None
) -> jax.Array:  # fmt: skip
    """The formula written out, in float32: softmax(scale q k) v. Returns [B, T, N, H]."""
    shared = query.shape[2] // key.shape[2]
    q, k, v = (x.astype(jnp.float32) for x in (query, key, value))
    k, v = (jnp.repeat(x, shared, axis=2) for x in (k, v))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = softcapped(scale * jnp.einsum("btnh,bsnh->bnts", q, k), softcap)
    logits = jnp.where(mask[:, None], logits, jnp.finfo(jnp.float32).min)
    weights = _softmax(logits, None if sinks is None else sinks[None, :, None, None])
    return jnp.einsum("bnts,bsnh->btnh", weights, v).astype(query.dtype)


def _softmax(logits: jax.Array, sinks: jax.Array | None) -> jax.Array:
    """Over the last axis, with a logit more for each row where there are sinks."""
    if sinks is None:
        return jax.nn.softmax(logits, axis=-1)
    sinks = jnp.broadcast_to(sinks.astype(jnp.float32), (*logits.shape[:-1], 1))
    return jax.nn.softmax(jnp.concatenate([logits, sinks], axis=-1), axis=-1)[..., :-1]


def dense_attention(
    query, key, value, mask, *, scale: float | None = None, softcap: float | None = None, sinks=None
) -> jax.Array:  # fmt: skip
    """As `reference_attention`, with the heads that share a key in one product; products accumulate in float32."""
    grouped = query.reshape(*query.shape[:2], key.shape[2], -1, query.shape[-1])
    logits = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32)
    logits = softcapped(logits * (query.shape[-1] ** -0.5 if scale is None else scale), softcap)
    logits = jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min)
    grouped_sinks = None if sinks is None else sinks.reshape(key.shape[2], -1)[:, :, None, None]
    weights = _softmax(logits, grouped_sinks).astype(query.dtype)
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights, value, preferred_element_type=jnp.float32)
    return mixed.astype(query.dtype).reshape(*query.shape[:3], -1)


def uses_kernel(name: str) -> bool:
    """Whether attention called `name` is the kernel for TPU on this platform."""
    return name == "pallas" or (name == "auto" and jax.default_backend() == "tpu")


def _by_kernel(config: DecoderConfig) -> bool:
    """Whether the kernel computes the attention of `config`: keys and values of unlike widths, as of latents, it does not."""
    return uses_kernel(config.attention) and config.latent is None


def blocks_of(config: DecoderConfig, reach: jax.Array, positions: jax.Array, window: jax.Array):
    """What `attend` has to know of blocks, the same for all layers with this window; None where it computes all weights."""
    kernel = _by_kernel(config)
    if not kernel and (config.attention == "reference" or reach.shape[1] <= DENSE * block_size()):
        return None
    listing = kernel_blocks if kernel else visible_blocks
    rows, columns = current_spec(("batch", "length"), reach.shape) or (None, None)
    if columns is None:
        return listing(reach, positions, window)

    def own(reach, positions, window):
        return listing(reach, positions, window, own_queries(columns, reach.shape[1]))

    # Each device has lists for its own queries; along the columns they stand one behind the other.
    specs = (PartitionSpec(rows), PartitionSpec(rows), PartitionSpec())
    return jax.shard_map(own, in_specs=specs, out_specs=PartitionSpec(rows, columns), check_vma=False)(reach, positions, window)


def own_queries(columns, length: int) -> Queries:
    """The columns of rows of this length that a device asks for, within `shard_map`, where mesh axes split them."""
    count = length // jax.lax.axis_size(columns)
    return Queries(jax.lax.axis_index(columns) * count, count)


def attend(config: DecoderConfig, query, key, value, reach, positions, blocks, window, sinks=None) -> jax.Array:
    """The attention that `config` asks for, among the tokens given, split over the mesh where the compiler cannot do it.

    Kernels are split by rows and heads, with keys and values that have the heads that each shard needs. Where columns are
    split, a device has the queries of its own, and gathers keys and values of the others, which are few heads. As later
    columns see more, devices with the last ones have up to twice the mean to do.

    Args:
      config: of the network.
      query: [B, T, N, H].
      key, value: [B, T, K, H].
      reach, positions: int [B, T].
      blocks: of `blocks_of`, for this window.
      window: int [], tokens that are seen.
      sinks: [N], or None.
    """
    run, inputs = functools.partial(_attend, config), (query, key, value, reach, positions, blocks, window, sinks)
    spec = current_spec(("batch", "length", "heads", None), query.shape)
    if spec is None or not (_by_kernel(config) or spec[1]):
        return run(*inputs)
    if spec != current_spec(("batch", "length", "kv_heads", None), key.shape):
        key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    rows, of_blocks = PartitionSpec(spec[0]), PartitionSpec(*spec[:2])
    specs = (spec, spec, spec, rows, rows, of_blocks, PartitionSpec(), PartitionSpec(spec[2]))
    split = jax.shard_map(functools.partial(run, columns=spec[1]), in_specs=specs, out_specs=spec, check_vma=False)
    return split(query, key, value, *inputs[3:])


def _attend(config: DecoderConfig, query, key, value, reach, positions, blocks, window, sinks, columns=None) -> jax.Array:
    """Attention on one device, of whose columns mesh axes have left it a part."""
    queries = ALL
    if columns is not None:
        queries = own_queries(columns, reach.shape[1])
        key, value = (jax.lax.all_gather(x, columns, axis=1, tiled=True) for x in (key, value))
    options = {"scale": config.query_scale, "softcap": config.attention_softcap, "sinks": sinks}
    if _by_kernel(config):
        return kernel_attention(query, key, value, reach, positions, blocks, window, queries, **options)
    if blocks is not None:
        return blocked_attention(query, key, value, reach, positions, blocks, window, queries, **options)
    chosen = reference_attention if config.attention == "reference" else dense_attention
    return chosen(query, key, value, reach_mask(reach, positions, window, queries), **options)
