"""Rotary position embeddings (RoFormer, https://arxiv.org/abs/2104.09864)."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.networks.config import LayerKind


def frequencies(kind: LayerKind, width: int) -> tuple[np.ndarray, float]:
    """Radians per token of each pair among `width` coordinates, float32 [width/2], and the factor of the rotation."""
    if kind.rope_theta is None:
        return np.zeros(width // 2, np.float32), 1.0
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    plain = (1.0 / np.float32(kind.rope_theta) ** exponent).astype(np.float32)
    if kind.rope_scaling is None:
        return plain, 1.0
    options = dict(kind.rope_scaling)
    name, gain = options.pop("rope_type"), options.pop("attention_factor", 1.0)
    if name == "yarn":
        options = {key: value for key, value in options.items() if key not in ("llama_4_scaling_beta", "mscale_all_dim")}
        return _yarn(plain, kind.rope_theta, **options).astype(np.float32), gain
    if name == "proportional":
        turned = int(options["partial_rotary_factor"] * width // 2)
        return np.where(np.arange(len(plain)) < turned, plain, 0).astype(np.float32), gain
    if name == "dynamic":
        base = kind.rope_theta * options["alpha"] ** (width / (width - 2))
        return (1.0 / np.float32(base) ** exponent).astype(np.float32), gain
    return {"linear": _linear, "llama3": _llama3}[name](plain, **options).astype(np.float32), gain


def _linear(plain, factor):
    """Position interpolation, https://arxiv.org/abs/2306.15595."""
    return plain / factor


def _llama3(plain, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings):
    """Slow pairs are slowed by `factor`, fast ones kept, those between blended (Llama 3.1, https://arxiv.org/abs/2407.21783)."""
    turns = original_max_position_embeddings * plain / (2 * np.pi)
    kept = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return kept * plain + (1 - kept) * plain / factor


def _yarn(plain, theta, factor, beta_fast, beta_slow, original_max_position_embeddings, truncate=True):
    """As llama3, blended along the numbers of the pairs instead of their speeds (YaRN, https://arxiv.org/abs/2309.00071)."""

    def pair_that_turns(times):
        return len(plain) * math.log(original_max_position_embeddings / (times * 2 * math.pi)) / math.log(theta)

    low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    low, high = (math.floor(low), math.ceil(high)) if truncate else (low, high)
    low, high = max(low, 0), min(high, 2 * len(plain) - 1)
    slowed = np.clip((np.arange(len(plain), dtype=np.float32) - low) / (high - low or 0.001), 0, 1)
    return (1 - slowed) * plain + slowed * plain / factor


def angles(kind: LayerKind, width: int, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotation of each token, float32 [B, T, 1, width/2], from int positions [B, T]."""
    speed, gain = frequencies(kind, width)
    turned = positions[..., None, None].astype(jnp.float32) * speed
    return gain * jnp.cos(turned), gain * jnp.sin(turned)


def query_gain(kind: LayerKind, positions: jax.Array) -> jax.Array:
    """What queries are multiplied by, float32 [B, T, 1, 1]: 1 + b log(1 + floor(p / n)), as Llama 4 has it; 1 without such b.

    Source: https://ai.meta.com/blog/llama-4-multimodal-intelligence
    """
    options = dict(kind.rope_scaling or ())
    if "llama_4_scaling_beta" not in options:
        return jnp.ones((1, 1, 1, 1), jnp.float32)
    periods = positions[..., None, None] // options["original_max_position_embeddings"]
    return 1.0 + options["llama_4_scaling_beta"] * jnp.log1p(periods.astype(jnp.float32))


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array, pairs: str = "halves") -> jax.Array:
    """Turns the first coordinates of `x` [B, T, heads, H] by the angles of its positions, computing in float32.

    `pairs` are those of `DecoderConfig.rope_pairs`.
    """
    half = cosine.shape[-1]
    wide = x.astype(jnp.float32)
    turned, rest = wide[..., : 2 * half], wide[..., 2 * half :]
    if pairs == "interleaved":
        first, second = turned[..., ::2], turned[..., 1::2]
    else:
        first, second = turned[..., :half], turned[..., half:]
    sine = -sine if pairs == "reversed" else sine
    first, second = first * cosine - second * sine, second * cosine + first * sine
    if pairs == "interleaved":
        return jnp.concatenate([jnp.stack([first, second], axis=-1).reshape(turned.shape), rest], axis=-1).astype(x.dtype)
    return jnp.concatenate([first, second, rest], axis=-1).astype(x.dtype)
