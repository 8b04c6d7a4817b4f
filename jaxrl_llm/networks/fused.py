"""Tensors that hold several matrices in an order of their own: taken apart where they are read, put together where written.

Everything else sees a tensor for each expert, a matrix [outputs, inputs] or a vector of outputs, and of a matrix with several
parts one behind the other.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxrl_llm.networks.config import DecoderConfig
from jaxrl_llm.networks.tensor_files import STORED_DTYPES, Slab, TensorFile, Tensors

# Values of the codes of 4 bits: sign, two bits of exponent, one of mantissa. 32 of them share a power of two, 2^(scale - 127).
# Source: https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
_FP4 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
_FP4 = np.concatenate([_FP4, -_FP4])


class Fused(NamedTuple):
    """A tensor [E, ...] of a layer, and what the tensors of single experts are called in its place."""

    name: str  # with `{layer}`
    each: tuple[str, ...]  # with `{layer}` and `{expert}`; where these are several, they share its outputs evenly
    turned: bool = False  # whether it is [E, inputs, outputs]
    alternating: bool = False  # whether its outputs are those of two matrices by turns; in `each` one is behind the other
    read_only: bool = False  # whether it is written as the tensors of single experts


class Sorted(NamedTuple):
    """A matrix of a layer whose outputs are the parts of one head after those of another; sorted, each part is in one place."""

    name: str  # with `{layer}`
    sizes: tuple[str, ...]  # of the parts of a head: "key", "value" or "one", see `_heads`


class Written(NamedTuple):
    """How a tensor is made of others."""

    parts: list[str]  # their names
    join: Callable[..., np.ndarray] | None = None  # of arrays of these names; None where it is the only one


def taken_apart(found: Tensors, fused: tuple[Fused | Sorted, ...], config: DecoderConfig) -> dict[str, TensorFile | Slab]:
    """The tensors of a checkpoint with others in place of those that are fused; codes of MXFP4 become bfloat16."""
    found = dict(found)
    for one, layer in itertools.product(fused, range(config.num_layers)):
        name = one.name.format(layer=layer)
        codes = [f"{name}_blocks", f"{name}_scales"]
        if isinstance(one, Sorted):
            if name in found:
                view = functools.partial(_by_parts, _heads(one, config))
                found[name] = Slab((found[name],), None, found[name].dtype, found[name].shape, view)
        elif name in found and found[name].dtype in STORED_DTYPES:
            stored = found.pop(name)
            shape = stored.shape[1:][::-1] if one.turned else stored.shape[1:]
            found |= _each(one, layer, (stored,), functools.partial(_view, one), stored.dtype, shape)
        elif all(code in found and found[code].dtype == "U8" for code in codes):
            sources = tuple(found.pop(code) for code in codes)
            shape = (*sources[0].shape[1:-2], 32 * sources[0].shape[-2])
            found |= _each(one, layer, sources, functools.partial(_expanded, one), "BF16", shape)
    return found


def _each(one: Fused, layer: int, sources, view, dtype: str, shape: tuple[int, ...]) -> dict[str, Slab]:
    """The tensors of single experts."""
    parts, made = len(one.each), {}
    for expert, (part, each) in itertools.product(range(sources[0].shape[0]), enumerate(one.each)):
        own = functools.partial(_part, view, part, parts)
        slab = Slab(sources, expert, dtype, (shape[0] // parts, *shape[1:]), own)
        made[each.format(layer=layer, expert=expert)] = slab
    return made


def put_together(names: list[str], fused: tuple[Fused | Sorted, ...], config: DecoderConfig) -> dict[str, Written]:
    """For each tensor that is written, in order, what it is made of."""
    whole: dict[str, tuple[str, Written]] = {}
    for one, layer in itertools.product(fused, range(config.num_layers)):
        name = one.name.format(layer=layer)
        if isinstance(one, Sorted):
            whole[name] = (name, Written([name], functools.partial(_by_heads, _heads(one, config))))
        elif not one.read_only and config.experts is not None:
            parts = [one.each[0].format(layer=layer, expert=expert) for expert in range(config.experts.count)]
            whole |= dict.fromkeys(parts, (name, Written(parts, functools.partial(_stacked, one))))
    return dict(whole.get(name, (name, Written([name]))) for name in names)


def _part(view, part: int, parts: int, *slabs: np.ndarray) -> np.ndarray:
    return np.split(view(*slabs), parts)[part]


def _view(one: Fused, slab: np.ndarray) -> np.ndarray:
    slab = slab.T if one.turned else slab
    return np.concatenate([slab[::2], slab[1::2]]) if one.alternating else slab


def _stacked(one: Fused, *parts: np.ndarray) -> np.ndarray:
    """The tensor of all experts; the inverse of `_view` of each."""
    if one.alternating:
        parts = [np.stack(np.split(part, 2), axis=1).reshape(part.shape) for part in parts]
    return np.ascontiguousarray(np.stack([part.T if one.turned else part for part in parts]))


def _expanded(one: Fused, blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """A matrix [outputs, inputs] from its codes [outputs, inputs / 32, 16], the low half of a byte first, and their scales."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    values = np.ldexp(_FP4[codes], scales[..., None].astype(np.int32) - 127)
    matrix = values.reshape(blocks.shape[0], -1).astype(ml_dtypes.bfloat16)
    return np.concatenate([matrix[::2], matrix[1::2]]) if one.alternating else matrix


def _heads(one: Sorted, config: DecoderConfig) -> tuple[int, list[int]]:
    """Number of heads, and rows of each of the parts of one."""
    d = config.delta
    shared = d.value_heads // d.key_heads
    rows = {"key": d.key_dim, "value": shared * d.value_dim, "one": shared}
    return d.key_heads, [rows[size] for size in one.sizes]


def _by_parts(heads: tuple[int, list[int]], matrix: np.ndarray) -> np.ndarray:
    parts = np.split(matrix.reshape(heads[0], -1, matrix.shape[-1]), np.cumsum(heads[1])[:-1], axis=1)
    return np.concatenate([part.reshape(-1, matrix.shape[-1]) for part in parts])


def _by_heads(heads: tuple[int, list[int]], matrix: np.ndarray) -> np.ndarray:
    parts = np.split(matrix, np.cumsum([heads[0] * rows for rows in heads[1]])[:-1])
    joined = np.concatenate([part.reshape(heads[0], -1, matrix.shape[-1]) for part in parts], axis=1)
    return np.ascontiguousarray(joined.reshape(matrix.shape))
