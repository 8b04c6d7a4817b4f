"""What defines a decoder: sizes, the traits of its family, and how it is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

ATTENTION = ("auto", "reference", "xla", "splash")
DTYPES = ("float32", "bfloat16", "float16")
# Which intermediate values a layer keeps for the backward pass: name -> policy of `jax.checkpoint`.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
ROPE_OPTIONS = {
    "linear": ("factor",),
    "llama3": ("factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Architecture of a decoder; hashable, so that it may be a static argument of `jax.jit`.

    Attributes:
      vocab_size: V, rows of the embedding table.
      hidden_size: D, width of the residual stream.
      intermediate_size: width of the gated MLP.
      num_layers: L.
      num_heads: N, query heads.
      num_kv_heads: K, key and value heads; N by default.
      head_dim: H; `hidden_size // num_heads` by default.
      family: name in `families.FAMILIES`; None for a network that is never exported.
      attention_bias: whether the projections to queries, keys and values have a bias.
      qk_norm: whether each head's queries and keys are normalised before the rotary embedding.
      tie_embeddings: whether the embedding table is the output head too.
      norm_epsilon: added to the mean square in every norm.
      rope_theta: base of the rotary frequencies.
      rope_scaling: None, or the rule that changes them, such as
        `{"rope_type": "linear", "factor": 2.0}`; kept as a sorted tuple of pairs.
      max_length: positions, in tokens, that the family was made for; only exports use it.
      bos_id: token that begins a text; only exports use it, as the two below.
      eos_ids: tokens that end a text.
      pad_id: token that fills rows.
      value_head: whether the network has a scalar head, `Network.value`.
      dtype: of the computation: float32, bfloat16 or float16. Attention weights, norms, rotary embeddings and logits
        are computed in float32 whatever it is.
      param_dtype: of the parameters.
      remat: what the backward pass recomputes: "none", "dots" (all but matrix products), or "full" (whole layers).
      attention: "auto" (splash attention on TPU where the shapes allow, otherwise xla), "reference", "xla" or "splash".
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    family: str | None = None
    attention_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    norm_epsilon: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, Any], ...] | None = None
    max_length: int = 4096
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    value_head: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.head_dim is None:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        if isinstance(self.rope_scaling, Mapping):
            object.__setattr__(self, "rope_scaling", tuple(sorted(self.rope_scaling.items())))
        for name in ("dtype", "param_dtype"):
            object.__setattr__(self, name, _dtype_name(name, getattr(self, name)))
        _check_sizes(self)
        _check_choice("remat", self.remat, REMAT)
        _check_choice("attention", self.attention, ATTENTION)
        _check_rope_scaling(self.rope_scaling)


def _dtype_name(field: str, dtype) -> str:
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    _check_choice(field, name, DTYPES)
    return name


def _check_choice(field: str, value, choices) -> None:
    if value not in choices:
        raise ValueError(f"{field}={value!r} is unknown; choose one of {', '.join(choices)}")


def _check_sizes(config: DecoderConfig) -> None:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1")
    if config.num_heads % config.num_kv_heads:
        raise ValueError(f"num_heads={config.num_heads} must be a multiple of num_kv_heads={config.num_kv_heads}")
    if config.head_dim % 2:
        raise ValueError(f"head_dim={config.head_dim} must be even: the rotary embedding turns pairs")


def _check_rope_scaling(scaling) -> None:
    if scaling is None:
        return
    options = dict(scaling)
    kind = options.pop("rope_type", None)
    _check_choice("rope_scaling.rope_type", kind, ROPE_OPTIONS)
    if sorted(options) != sorted(ROPE_OPTIONS[kind]):
        raise ValueError(f"rope_scaling of type {kind!r} takes {list(ROPE_OPTIONS[kind])}; got {sorted(options)}")
