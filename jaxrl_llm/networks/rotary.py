"""Rotary position embeddings (RoFormer, https://arxiv.org/abs/2104.09864), with the halves of a head as the pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.networks.config import DecoderConfig


def frequencies(config: DecoderConfig) -> np.ndarray:
    """Radians per token of each pair of coordinates, float32 [H/2]."""
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    plain = (1.0 / np.float32(config.rope_theta) ** exponent).astype(np.float32)
    if config.rope_scaling is None:
        return plain
    options = dict(config.rope_scaling)
    scale = {"linear": _linear, "llama3": _llama3}[options.pop("rope_type")]
    return scale(plain, **options).astype(np.float32)


def _linear(plain, factor):
    """Position interpolation, https://arxiv.org/abs/2306.15595."""
    return plain / factor


def _llama3(plain, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings):
    """Slow pairs are slowed by `factor`, fast ones kept, those between blended (Llama 3.1, https://arxiv.org/abs/2407.21783)."""
    turns = original_max_position_embeddings * plain / (2 * np.pi)
    kept = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return kept * plain + (1 - kept) * plain / factor


def angles(config: DecoderConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotation of each token, float32 [B, T, 1, H/2], from int positions [B, T]."""
    turned = positions[..., None, None].astype(jnp.float32) * frequencies(config)
    return jnp.cos(turned), jnp.sin(turned)


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Turns `x` [B, T, heads, H] by the angles of its positions, computing in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)
