"""Matrices as codes of 8 or 4 bits with float32 scales, and back.

Matrices are [..., I, O], inputs before outputs. In "int8", an output has one scale, a 127th of its largest entry. In "int4"
and "nf4", every block of 64 inputs of an output has one; codes are multiples of a seventh of the largest entry of the
block, or they number the 16 levels of `NF4`. Byte 32 b + j holds the codes of inputs 64 b + j (low half) and
64 b + 32 + j (high half). With its scales, a weight takes 8 bits in int8 and 4.5 in the others.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
BLOCK = 64  # inputs that share a scale in int4 and nf4
# Quantiles of the normal distribution, scaled to [-1, 1], with an exact zero (QLoRA, https://arxiv.org/abs/2305.14314).
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def inputs_of_scale(kind: str, inputs: int) -> int:
    """Inputs that share a scale."""
    return inputs if kind == "int8" else BLOCK


def codes_shape(kind: str, inputs: int) -> tuple[int, int]:
    """Rows of codes and of scales, where a matrix has `inputs` rows."""
    return inputs if kind == "int8" else inputs // 2, inputs // inputs_of_scale(kind, inputs)


def encode(kind: str, matrix: Array) -> tuple[Array, Array]:
    """Codes and float32 scales of a matrix [..., I, O]; a block of zeros has scale 0.

    Codes are int8 [..., I, O] with scales [..., 1, O] for "int8", otherwise uint8 [..., I/2, O] with scales [..., I/64, O].
    """
    shape = matrix.shape
    blocks = _blocks(matrix.astype(jnp.float32), inputs_of_scale(kind, shape[-2]))
    largest = jnp.max(jnp.abs(blocks), axis=-2, keepdims=True)
    relative = blocks / jnp.where(largest > 0, largest, 1.0)
    scales = largest[..., 0, :]
    if kind == "int8":
        return jnp.round(127 * relative).astype(jnp.int8).reshape(shape), scales / 127
    if kind == "int4":
        return _packed((jnp.round(7 * relative) + 8).astype(jnp.uint8)), scales / 7
    between = (np.asarray(NF4[1:]) + np.asarray(NF4[:-1])) / 2
    return _packed(jnp.searchsorted(jnp.asarray(between, jnp.float32), relative).astype(jnp.uint8)), scales


def decode(kind: str, codes: Array, scales: Array) -> Array:
    """The matrix [..., I, O], float32, that codes and scales stand for."""
    if kind == "int8":
        return codes.astype(jnp.float32) * scales
    halves = _blocks(codes, BLOCK // 2)
    numbers = jnp.concatenate([halves & 15, halves >> 4], axis=-2).astype(jnp.int32)
    if kind == "int4":
        values = (numbers - 8).astype(jnp.float32)
    else:
        values = jax.lax.select_n(numbers, *[jnp.full(numbers.shape, level, jnp.float32) for level in NF4])
    blocks = values * scales[..., None, :]
    return blocks.reshape(*codes.shape[:-2], -1, codes.shape[-1])


def _blocks(matrix: Array, size: int) -> Array:
    """[..., I, O] -> [..., I / size, size, O]."""
    return matrix.reshape(*matrix.shape[:-2], -1, size, matrix.shape[-1])


def _packed(blocks: Array) -> Array:
    """Codes [..., blocks, 64, O] below 16 -> bytes [..., 32 * blocks, O]."""
    low, high = jnp.split(blocks, 2, axis=-2)
    packed = low | (high << 4)
    return packed.reshape(*packed.shape[:-3], -1, packed.shape[-1])
