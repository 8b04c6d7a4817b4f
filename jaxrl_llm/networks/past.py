"""What decoding has behind it: contexts that several sequences share, and a tail for each of them.

C contexts of up to T tokens, each read by up to P sequences at a time; S slots, each with a sequence of its own whose tail
has up to W columns. K key heads, G query heads for each, width H.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxrl_llm.networks.axes import current_spec, manual_axes
from jaxrl_llm.networks.blocks import softcapped
from jaxrl_llm.networks.tails import fits_kernel, tail_attention

Array = jax.Array
_LOWEST = jnp.finfo(jnp.float32).min


@flax.struct.dataclass
class Cells:
    """Keys and values of one layer for N sequences of W tokens."""

    keys: Array  # [N, K, H, W]
    values: Array | None = None  # [N, K, W, H]; None where they are the first coordinates of the keys
    key_scale: Array | None = None  # float32 [N, K, W] that keys are multiplied by where they are int8; None elsewhere
    value_scale: Array | None = None  # the same of the values


# Logical axes of the fields.
AXES = {
    "keys": ("batch", "kv_heads", "head_dim", "length"),
    "values": ("batch", "kv_heads", "length", "head_dim"),
    "key_scale": ("batch", "kv_heads", "length"),
    "value_scale": ("batch", "kv_heads", "length"),
}


def each_field(function: Callable[..., Array], *cells: Cells) -> Cells:
    """`function(axes, *leaves)` of each field that the cells have, which all have the same."""
    there = {name: axes for name, axes in AXES.items() if getattr(cells[0], name) is not None}
    return Cells(**{name: function(axes, *(getattr(one, name) for one in cells)) for name, axes in there.items()})


@flax.struct.dataclass
class LayerPast:
    """What one layer knows: `Cells` of C contexts, and those of the tails of S slots; or `recurrent.State`s of both."""

    contexts: Any
    tails: Any


@flax.struct.dataclass
class Sight:
    """What a step's queries see, the same in all layers but for windows."""

    position: Array  # int [S], of the tokens that are read
    cell: Array  # int [S], context * P + place of each slot, different for all of them; C * P or more for a slot that is idle
    lengths: Array  # int [C], tokens of each context
    start: Array  # int [S], first column of each slot's tail
    column: Array  # int [], where this step's tokens are written: the last column that they see
    origin: Array  # int [S], position of the token in column `start`
    places: int = flax.struct.field(pytree_node=False)  # P

    def of_contexts(self, width: int, window: int | None) -> Array:
        """Mask [C, P, T] of the tokens of each context that the sequences at its places see."""
        rows = self.by_place(self.position, -1)[..., None]
        columns = jnp.arange(width)
        seen = (columns < self.lengths[:, None, None]) & (rows >= 0)
        return seen if window is None else seen & (rows - columns < window)

    def of_tails(self, width: int, window: int | None) -> Array:
        """Mask [S, W] of the columns of its own tail that each slot sees."""
        columns = jnp.arange(width)
        seen = (columns >= self.start[:, None]) & (columns <= self.column)
        if window is None:
            return seen
        positions = self.origin[:, None] + columns - self.start[:, None]
        return seen & (self.position[:, None] - positions < window)

    def by_place(self, values: Array, filling) -> Array:
        """Values [S, ...] of the slots at the places of their contexts, [C, P, ...]."""
        cells = jnp.full((self.lengths.shape[0] * self.places, *values.shape[1:]), filling, values.dtype)
        filled = cells.at[self.cell].set(values, mode="drop", unique_indices=True)
        return filled.reshape(-1, self.places, *values.shape[1:])

    def by_slot(self, values: Array) -> Array:
        """Undoes `by_place`: [C, P, ...] -> [S, ...]; of idle slots nothing that means anything."""
        return values.reshape(-1, *values.shape[2:]).at[self.cell].get(mode="clip")


def cells_of(keys: Array, values: Array | None, dtype: str) -> Cells:
    """Keys [N, K, H, W] and values [N, K, W, H] in a dtype; in int8 with a scale for each token and head, see `Cells`."""
    if dtype != "int8":
        return Cells(keys.astype(dtype), None if values is None else values.astype(dtype))
    if values is None:
        codes, scale = _coded(keys, 2)
        return Cells(codes, None, scale)
    return Cells(*(part for pair in zip(_coded(keys, 2), _coded(values, 3), strict=True) for part in pair))


def _coded(numbers: Array, axis: int) -> tuple[Array, Array]:
    """The nearest int8 codes, and the scale along the axis that makes the largest of them 127."""
    numbers = numbers.astype(jnp.float32)
    scale = jnp.abs(numbers).max(axis=axis, keepdims=True) / 127.0
    codes = jnp.round(numbers / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8)
    return codes, scale.squeeze(axis)


def written(past: LayerPast, key: Array, value: Array | None, column: Array) -> LayerPast:
    """The past with keys and values [S, K, H] of this step in `column` of the tails."""
    new = cells_of(key[..., None], None if value is None else value[:, :, None], past.tails.keys.dtype.name)

    def put(axes, own, new):
        return jax.lax.dynamic_update_slice_in_dim(own, new, column, axes.index("length"))

    return past.replace(tails=each_field(put, past.tails, new))


def appended(cells: Cells, key: Array, value: Array | None, before: Array) -> Cells:
    """The cells with keys and values [N, n, K, H] of n tokens behind the first `before` [N] of each; there is room."""
    value = None if value is None else value.transpose(0, 2, 1, 3)
    new = cells_of(key.transpose(0, 2, 3, 1), value, cells.keys.dtype.name)

    def put(axes, own, new):
        place = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axes.index("length") - 1)
        return jax.vmap(place)(own, new, before)

    return each_field(put, cells, new)


def attention_behind(
    query: Array, cells: Cells, positions: Array, window: int | None = None, *, scale: float | None = None,
    softcap: float | None = None, sinks: Array | None = None, latent: int = 0,
) -> Array:  # fmt: skip
    """Attention of n queries [N, n, heads, H] at their positions [N, n] over cells in which they stand themselves.

    Sinks and latents are as of `past_attention`.
    """
    rows, count, heads, width = query.shape
    scale, kv_heads = width**-0.5 if scale is None else scale, cells.keys.shape[1]
    grouped = query.reshape(rows, count, kv_heads, -1, width).transpose(0, 2, 1, 3, 4)
    distance = positions[..., None] - jnp.arange(cells.keys.shape[3])
    seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    seen = jnp.repeat(seen, grouped.shape[3], axis=1)[:, None]
    parts = [_weighed(grouped.reshape(rows, kv_heads, -1, width), cells, seen, scale, softcap, latent)]
    if sinks is not None:
        parts.append(_sunk(parts[0], jnp.repeat(sinks.reshape(kv_heads, 1, -1), count, axis=1)))
    mixed = _together(*parts).astype(query.dtype).reshape(*grouped.shape[:-1], -1)
    return mixed.transpose(0, 2, 1, 3, 4).reshape(*query.shape[:-1], -1)


def past_attention(
    query: Array, past: LayerPast, sight: Sight, window: int | None = None, *, scale: float | None = None,
    softcap: float | None = None, kernel: bool = False, sinks: Array | None = None, latent: int = 0,
) -> Array:  # fmt: skip
    """Attention of one query a slot [S, N, H] over its context and its tail.

    A context is read once for all sequences that stand on it. Softmax over both parts is one: each is summed apart, with
    its own largest logit, and the sums are put together, with `sinks` [N] where there are any. Values are those
    of the cells, or the first `latent` coordinates of their keys. With `kernel`, tails are read
    by that for TPU.
    """
    slots, heads, width = query.shape
    scale = width**-0.5 if scale is None else scale
    grouped = query.reshape(slots, past.tails.keys.shape[1], -1, width)
    if kernel and fits_kernel(past.tails.keys.shape[3]):
        tail = _by_kernel(grouped, past.tails, sight, window, scale, softcap)
    else:
        own = sight.of_tails(past.tails.keys.shape[3], window)[:, None, None]
        tail = _weighed(grouped, past.tails, own, scale, softcap, latent)
    parts = [tail] if sinks is None else [tail, _sunk(tail, sinks)]
    if not past.contexts.keys.shape[3]:
        return _together(*parts).astype(query.dtype).reshape(slots, heads, -1)
    contexts, kv_heads = past.contexts.keys.shape[:2]
    placed = sight.by_place(grouped, 0).swapaxes(1, 2)  # [C, K, P, G, H]
    rows = placed.reshape(contexts, kv_heads, -1, width)
    seen = jnp.repeat(sight.of_contexts(past.contexts.keys.shape[3], window), placed.shape[3], axis=1)[:, None]
    found = _weighed(rows, past.contexts, seen, scale, softcap, latent)
    shape = (contexts, kv_heads, sight.places, -1)
    shared = [sight.by_slot(part.reshape(*shape, *part.shape[3:]).swapaxes(1, 2)) for part in found]
    return _together(*parts, shared).astype(query.dtype).reshape(slots, heads, -1)


def _sunk(tail, sinks: Array):
    """The part of sinks [N], like that of tails."""
    mixed, total, _ = tail
    logits = jnp.broadcast_to(sinks.astype(jnp.float32).reshape(total.shape[1:]), total.shape)
    return jnp.zeros_like(mixed), jnp.ones_like(total), logits


def _by_kernel(query: Array, tails: Cells, sight: Sight, window: int | None, scale: float, softcap: float | None):
    """As `_weighed` of the tails, by the kernel, on each device for its own heads."""
    # Columns of a tail follow each other as positions do.
    first = sight.start if window is None else jnp.maximum(sight.start, sight.column - window + 1)
    run = functools.partial(tail_attention, scale=scale, softcap=softcap)
    spec = current_spec(("batch", "kv_heads"), query.shape[:2])
    if spec is None:
        return run(query, tails, first, sight.column)
    specs = (spec, jax.tree.map(lambda _: spec, tails), PartitionSpec(spec[0]), PartitionSpec())
    # Of all axes, those that split nothing too: the compiler cannot split a kernel.
    axes = set(jax.sharding.get_abstract_mesh().axis_names) - set(manual_axes())
    if not axes:
        return run(query, tails, first, sight.column)
    split = jax.shard_map(run, in_specs=specs, out_specs=(spec, spec, spec), axis_names=axes, check_vma=False)
    return split(query, tails, first, sight.column)


def _weighed(query, cells: Cells, mask, scale: float, softcap: float | None, latent: int):
    """Sum of exp(logit - m) value [B, K, R, H], of exp(logit - m) [B, K, R], and the largest logit m, all float32."""
    keys = cells.keys.astype(query.dtype)
    logits = jnp.matmul(query, keys, preferred_element_type=jnp.float32) * scale
    logits = logits if cells.key_scale is None else logits * cells.key_scale[:, :, None]
    logits = jnp.where(mask, softcapped(logits, softcap), _LOWEST)
    largest = logits.max(axis=-1)
    weights = jnp.where(mask, jnp.exp(logits - largest[..., None]), 0.0)
    of_values = cells.key_scale if cells.values is None else cells.value_scale
    shares = (weights if of_values is None else weights * of_values[:, :, None]).astype(query.dtype)
    if cells.values is None:
        mixed = jnp.einsum("bkrw,bkhw->bkrh", shares, keys[:, :, :latent], preferred_element_type=jnp.float32)
    else:
        mixed = jnp.matmul(shares, cells.values.astype(query.dtype), preferred_element_type=jnp.float32)
    return mixed, weights.sum(axis=-1), largest


def _together(*parts) -> Array:
    if len(parts) == 1:
        return parts[0][0] / parts[0][1][..., None]
    largest = functools.reduce(jnp.maximum, (part[2] for part in parts))
    shares = [jnp.exp(part[2] - largest) for part in parts]
    total = sum(share * part[1] for share, part in zip(shares, parts, strict=True))
    return sum(share[..., None] * part[0] for share, part in zip(shares, parts, strict=True)) / total[..., None]
