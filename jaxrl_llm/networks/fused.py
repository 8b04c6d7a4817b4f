"""Tensors that hold the matrices of all experts of a layer: taken apart where they are read, put together where written.

Everything else sees a tensor for each expert, a matrix [outputs, inputs] or a vector of outputs.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxrl_llm.networks.tensor_files import STORED_DTYPES, Slab, TensorFile

# Values of the codes of 4 bits: sign, two bits of exponent, one of mantissa. 32 of them share a power of two, 2^(scale - 127).
# Source: https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
_FP4 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
_FP4 = np.concatenate([_FP4, -_FP4])


class Fused(NamedTuple):
    """A tensor [E, ...] of a layer, and what the tensors of single experts are called in its place."""

    name: str  # with `{layer}`
    each: str  # with `{layer}` and `{expert}`
    turned: bool = False  # whether it is [E, inputs, outputs]
    alternating: bool = False  # whether its outputs are those of two matrices by turns; in `each` one is behind the other


def taken_apart(found: Mapping[str, TensorFile], fused: tuple[Fused, ...], layers: int) -> dict[str, TensorFile | Slab]:
    """The tensors of a checkpoint with those of single experts in place of those of all; MXFP4 codes become bfloat16."""
    found = dict(found)
    for one in fused:
        for layer in range(layers):
            name = one.name.format(layer=layer)
            codes = tuple(found.get(f"{name}_{part}") for part in ("blocks", "scales"))
            if name in found and found[name].dtype in STORED_DTYPES:
                sources, view, dtype = (found.pop(name),), functools.partial(_view, one), None
            elif all(codes) and all(part.dtype == "U8" for part in codes):
                sources, view, dtype = codes, functools.partial(_expanded, one), "BF16"
                for part in ("blocks", "scales"):
                    del found[f"{name}_{part}"]
            else:
                continue
            shape = sources[0].shape[1:] if dtype is None else (*sources[0].shape[1:-2], 32 * sources[0].shape[-2])
            shape = shape[::-1] if one.turned and dtype is None else shape
            for expert in range(sources[0].shape[0]):
                slab = Slab(sources, expert, dtype or sources[0].dtype, shape, view)
                found[one.each.format(layer=layer, expert=expert)] = slab
    return found


def put_together(
    names: list[str], fused: tuple[Fused, ...], layers: int, experts: int
) -> dict[str, tuple[Fused | None, list[str]]]:
    """For each tensor that is written, in order, how it is fused, and the names of the tensors that it is made of."""
    whole = {}
    for one in fused:
        for layer in range(layers):
            parts = [one.each.format(layer=layer, expert=expert) for expert in range(experts)]
            whole |= dict.fromkeys(parts, (one.name.format(layer=layer), one, parts))
    made: dict[str, tuple[Fused | None, list[str]]] = {}
    for name in names:
        stored, one, parts = whole.get(name, (name, None, [name]))
        made[stored] = (one, parts)
    return made


def stacked(one: Fused, parts: list[np.ndarray]) -> np.ndarray:
    """The tensor of all experts; the inverse of taking it apart."""
    if one.alternating:
        parts = [np.stack(np.split(part, 2), axis=1).reshape(part.shape) for part in parts]
    return np.ascontiguousarray(np.stack([part.T if one.turned else part for part in parts]))


def _view(one: Fused, slab: np.ndarray) -> np.ndarray:
    slab = slab.T if one.turned else slab
    return np.concatenate([slab[::2], slab[1::2]]) if one.alternating else slab


def _expanded(one: Fused, blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """A matrix [outputs, inputs] from its codes [outputs, inputs / 32, 16], the low half of a byte first, and their scales."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    values = np.ldexp(_FP4[codes], scales[..., None].astype(np.int32) - 127)
    matrix = values.reshape(blocks.shape[0], -1).astype(ml_dtypes.bfloat16)
    return np.concatenate([matrix[::2], matrix[1::2]]) if one.alternating else matrix
