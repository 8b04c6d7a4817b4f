"""The table of model families of Hugging Face: the traits of their networks, fields of config.json, names of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxrl_llm.networks import tensor_names
from jaxrl_llm.networks.tensor_names import Path, Stored

Fields = Mapping[str, Any]
_NONE: Fields = MappingProxyType({})


class Family(NamedTuple):
    """What is fixed in a family.

    Attributes:
      model: prefix of the classes of `transformers` that hold it, such as "Llama" of LlamaForCausalLM.
      names: how each parameter is stored.
      traits: fields of `DecoderConfig` and the values that they must have.
      fields: further fields of `DecoderConfig` and their names in config.json.
      sliding: which layers have a window where config.json does not list them: "none", "all", "most" (all but every
        n-th) or "upper" (those from a number on, and only if `use_sliding_window` says so).
      experts: fields of `ExpertsConfig` and their names in config.json; none for dense families.
      expert_traits: fields of `ExpertsConfig` and the values that they must have.
      required: fields of config.json and the value that they must have where they are present.
      defaults: what fields of config.json mean where they are missing; a family without `partial_rotary_factor` turns
        whole heads.
      classifier: `model` of the class for sequence classification, where it is another.
    """

    model: str
    names: dict[Path, Stored]
    traits: Fields = _NONE
    fields: Fields = _NONE
    sliding: str = "none"
    experts: Fields = _NONE
    expert_traits: Fields = _NONE
    required: Fields = _NONE
    defaults: Fields = _NONE
    classifier: str | None = None


_PLAIN = {"quantization_config": None, "mlp_bias": False, "attention_bias": False}
_QWEN = {"quantization_config": None}
_GEMMA = {"activation": "gelu_tanh", "norm_offset": 1.0, "scale_embeddings": True}
_GEMMA2 = _GEMMA | {"post_norms": True}
_GEMMA_PLAIN = _PLAIN | {"use_bidirectional_attention": False}
_GEMMA_DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256}
_GEMMA2_DEFAULTS = _GEMMA_DEFAULTS | {"query_pre_attn_scalar": 256, "sliding_window": 4096}
_SOFTCAPS = {"attention_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping"}
_QWEN_EXPERTS = {
    "count": "num_experts",
    "per_token": "num_experts_per_tok",
    "width": "moe_intermediate_size",
    "normalize": "norm_topk_prob",
}

FAMILIES = {
    "llama": Family("Llama", tensor_names.LLAMA, required=_PLAIN),
    "mistral": Family("Mistral", tensor_names.LLAMA, sliding="all", required=_PLAIN, defaults={"sliding_window": 4096}),
    "qwen2": Family("Qwen2", tensor_names.LLAMA, {"attention_bias": True}, sliding="upper", required=_QWEN),
    "qwen3": Family(
        "Qwen3",
        tensor_names.LLAMA,
        {"qk_norm": "head"},
        sliding="upper",
        required=_QWEN | {"attention_bias": False},
        defaults={"head_dim": 128},
    ),
    "gemma": Family("Gemma", tensor_names.LLAMA, _GEMMA, required=_GEMMA_PLAIN, defaults=_GEMMA_DEFAULTS),
    "gemma2": Family(
        "Gemma2",
        tensor_names.GEMMA2,
        _GEMMA2,
        _SOFTCAPS,
        sliding="most",
        required=_GEMMA_PLAIN,
        defaults=_GEMMA2_DEFAULTS
        | {"sliding_window_pattern": 2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3_text": Family(
        "Gemma3",
        tensor_names.GEMMA2,
        _GEMMA2 | {"qk_norm": "head"},
        _SOFTCAPS,
        sliding="most",
        required=_GEMMA_PLAIN,
        defaults=_GEMMA2_DEFAULTS | {"sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        classifier="Gemma3Text",
    ),
    "phi3": Family(
        "Phi3", tensor_names.PHI3, sliding="all", required=_PLAIN, defaults={"rms_norm_eps": 1e-5, "partial_rotary_factor": 1.0}
    ),
    "mixtral": Family(
        "Mixtral",
        tensor_names.MIXTRAL,
        sliding="all",
        experts={"count": "num_local_experts", "per_token": "num_experts_per_tok", "width": "intermediate_size"},
        expert_traits={"normalize": True},
        required=_PLAIN | {"router_jitter_noise": 0.0},
        defaults={"rms_norm_eps": 1e-5, "num_key_value_heads": 8, "rope_theta": 1e6},
    ),
    "qwen3_moe": Family(
        "Qwen3Moe",
        tensor_names.QWEN_EXPERTS,
        {"qk_norm": "head"},
        experts=_QWEN_EXPERTS,
        required=_PLAIN | {"decoder_sparse_step": 1, "use_sliding_window": False},
        defaults={"norm_topk_prob": False},
    ),
    "olmoe": Family(
        "Olmoe",
        tensor_names.OLMOE,
        {"qk_norm": "width"},
        experts=_QWEN_EXPERTS | {"width": "intermediate_size"},
        required=_PLAIN | {"clip_qkv": None},
        defaults={"norm_topk_prob": False, "rms_norm_eps": 1e-5},
    ),
    "glm4_moe": Family(
        "Glm4Moe",
        tensor_names.QWEN_EXPERTS,
        fields={"attention_bias": "attention_bias"},
        experts=_QWEN_EXPERTS
        | {"count": "n_routed_experts", "dense_layers": "first_k_dense_replace", "scale": "routed_scaling_factor"}
        | {"groups": "n_group", "top_groups": "topk_group"},
        expert_traits={"score": "sigmoid", "selection_bias": True},
        required={"quantization_config": None},
        defaults={"norm_topk_prob": True, "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "attention_bias": False}
        | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "n_shared_experts": 1},
    ),
}
