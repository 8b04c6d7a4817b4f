"""The table of model families of Hugging Face: traits of networks, fields of config.json, and how parameters are called."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxrl_llm.networks.fused import Fused, Sorted
from jaxrl_llm.networks.stored_names import (
    DEEPSEEK,
    FUSED_GEMMA4,
    FUSED_GPT_OSS,
    FUSED_QWEN3_5,
    GEMMA2,
    GEMMA4,
    GLM4,
    GPT_OSS,
    HUNYUAN,
    LLAMA,
    MIXTRAL,
    NANOCHAT,
    OLMO2,
    OLMOE,
    PHI3,
    QWEN3_5,
    QWEN3_NEXT,
    QWEN_EXPERTS,
    SORTED_QWEN3_NEXT,
    Path,
    Stored,
)

Fields = Mapping[str, Any]
_NONE: Fields = MappingProxyType({})


class Family(NamedTuple):
    """What is fixed in a family."""

    model: str  # prefix of the classes of `transformers` that hold it, such as "Llama" of LlamaForCausalLM
    names: dict[Path, Stored]  # how each parameter is stored
    traits: Fields = _NONE  # fields of `DecoderConfig` and the values that they must have
    fields: Fields = _NONE  # further fields of `DecoderConfig` and their names in config.json
    # which layers have a window where config.json does not list them: "none", "all", "most" (all but every n-th) or "upper"
    # (those from a number on, and only if `use_sliding_window` says so)
    sliding: str = "none"
    experts: Fields = _NONE  # fields of `ExpertsConfig` and their names in config.json; none for dense families
    experts_switch: str | None = None  # field of config.json that says whether there are experts; None where there always are
    latent: Fields = _NONE  # fields of `LatentConfig` and their names in config.json; none for families without it
    delta: Fields = _NONE  # fields of `DeltaConfig` and their names in config.json; none for families without it
    expert_traits: Fields = _NONE  # fields of `ExpertsConfig` and the values that they must have
    required: Fields = _NONE  # fields of config.json and the value that they must have where they are present
    # what fields of config.json mean where they are missing; a family without `partial_rotary_factor` turns whole heads
    defaults: Fields = _NONE
    fused: tuple[Fused | Sorted, ...] = ()  # tensors that hold what `names` has for each expert, or in another order
    rope_option: str | None = None  # of rotary settings, that other families do not know
    # whether sliding layers have rotary settings of their own, by default those of all without scaling
    local_rope: bool = False
    classifier: str | None = None  # `model` of the class for sequence classification, where it is another


_PLAIN = {"quantization_config": None, "mlp_bias": False, "attention_bias": False}
_QWEN = {"quantization_config": None}
_GEMMA = {"activation": "gelu_tanh", "norm_offset": 1.0, "scale_embeddings": True}
_GEMMA2 = _GEMMA | {"post_norms": True}
_GEMMA4 = {
    "activation": "gelu_tanh",
    "scale_embeddings": True,
    "post_norms": True,
    "qk_norm": "head",
    "value_norm": True,
    "query_scale": 1.0,
    "layer_scales": True,
}
_GEMMA4_FIELDS = {
    "logit_softcap": "final_logit_softcapping",
    "keys_as_values": "attention_k_eq_v",
    "reusing_layers": "num_kv_shared_layers",
    "per_layer_width": "hidden_size_per_layer_input",
    "per_layer_vocab": "vocab_size_per_layer_input",
}
_GEMMA4_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
}
_GEMMA_PLAIN = _PLAIN | {"use_bidirectional_attention": False}
_GEMMA_DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256}
_GEMMA2_DEFAULTS = _GEMMA_DEFAULTS | {"query_pre_attn_scalar": 256, "sliding_window": 4096}
_SOFTCAPS = {"attention_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping"}
_QWEN_EXPERTS = {"count": "num_experts", "per_token": "num_experts_per_tok", "width": "moe_intermediate_size"}
_QWEN_DELTA_EXPERTS = _QWEN_EXPERTS | {"shared_width": "shared_expert_intermediate_size"}
_QWEN_EXPERTS |= {"normalize": "norm_topk_prob"}
_OLMO2 = {"qk_norm": "width", "pre_norms": False, "post_norms": True}
_GRANITE = {
    "query_scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_divisor": "logits_scaling",
}
_NANOCHAT = {
    "activation": "relu2",
    "gated_mlp": False,
    "norm_scales": False,
    "embedding_norm": True,
    "qk_norm": "head",
    "qk_norm_after_rope": True,
    "rope_pairs": "reversed",
}
_GROUPED_EXPERTS = _QWEN_EXPERTS | {
    "count": "n_routed_experts",
    "dense_layers": "first_k_dense_replace",
    "scale": "routed_scaling_factor",
    "groups": "n_group",
    "top_groups": "topk_group",
}
_LATENT = {
    "rank": "kv_lora_rank",
    "query_rank": "q_lora_rank",
    "plain_dim": "qk_nope_head_dim",
    "rotary_dim": "qk_rope_head_dim",
    "value_dim": "v_head_dim",
}
_DELTA_FIELDS = {
    "key_heads": "linear_num_key_heads",
    "value_heads": "linear_num_value_heads",
    "key_dim": "linear_key_head_dim",
    "value_dim": "linear_value_head_dim",
    "kernel": "linear_conv_kernel_dim",
}
_QWEN_DELTA_PLAIN = {"quantization_config": None, "attention_bias": False, "attn_output_gate": True}
_QWEN_DELTA = {"norm_offset": 1.0, "qk_norm": "head", "attention_gate": True}
_QWEN_DELTA_DEFAULTS = {"head_dim": 256, "partial_rotary_factor": 0.25, "full_attention_interval": 4}
_QWEN_DELTA_DEFAULTS |= {"linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_conv_kernel_dim": 4}
_QWEN_DELTA_DEFAULTS |= {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "norm_topk_prob": True}

FAMILIES = {
    "llama": Family("Llama", LLAMA, required=_PLAIN),
    "mistral": Family("Mistral", LLAMA, sliding="all", required=_PLAIN, defaults={"sliding_window": 4096}),
    "qwen2": Family("Qwen2", LLAMA, {"attention_bias": True}, sliding="upper", required=_QWEN),
    "qwen3": Family(
        "Qwen3", LLAMA, {"qk_norm": "head"}, sliding="upper", required=_QWEN | {"attention_bias": False},
        defaults={"head_dim": 128},
    ),
    "gemma": Family("Gemma", LLAMA, _GEMMA, required=_GEMMA_PLAIN, defaults=_GEMMA_DEFAULTS),
    "gemma2": Family(
        "Gemma2",
        GEMMA2,
        _GEMMA2,
        _SOFTCAPS,
        sliding="most",
        required=_GEMMA_PLAIN,
        defaults=_GEMMA2_DEFAULTS
        | {"sliding_window_pattern": 2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3_text": Family(
        "Gemma3", GEMMA2, _GEMMA2 | {"qk_norm": "head"}, _SOFTCAPS, sliding="most", required=_GEMMA_PLAIN,
        defaults=_GEMMA2_DEFAULTS | {"sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        classifier="Gemma3Text",
    ),
    "gemma4_text": Family(
        "Gemma4", GEMMA4, _GEMMA4, _GEMMA4_FIELDS, sliding="most", local_rope=True,
        experts={"count": "num_experts", "per_token": "top_k_experts", "width": "moe_intermediate_size"},
        experts_switch="enable_moe_block", expert_traits={"normalize": True, "beside_mlp": True, "scaled_router": True},
        required={"quantization_config": None, "attention_bias": False}, fused=FUSED_GEMMA4,
        defaults={"tie_word_embeddings": True, "head_dim": 256, "num_key_value_heads": 4, "sliding_window": 512}
        | {"sliding_window_pattern": 6, "global_head_dim": 512, "attention_k_eq_v": False, "num_kv_shared_layers": 0}
        | {"hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 262144, "use_double_wide_mlp": False}
        | {"rope_parameters": _GEMMA4_ROPE},
    ),
    "phi3": Family("Phi3", PHI3, sliding="all", required=_PLAIN, defaults={"rms_norm_eps": 1e-5, "partial_rotary_factor": 1.0}),
    "mixtral": Family(
        "Mixtral",
        MIXTRAL,
        sliding="all",
        experts={"count": "num_local_experts", "per_token": "num_experts_per_tok", "width": "intermediate_size"},
        expert_traits={"normalize": True},
        required=_PLAIN | {"router_jitter_noise": 0.0},
        defaults={"rms_norm_eps": 1e-5, "num_key_value_heads": 8, "rope_theta": 1e6},
    ),
    "qwen3_moe": Family(
        "Qwen3Moe", QWEN_EXPERTS, {"qk_norm": "head"}, experts=_QWEN_EXPERTS,
        required=_PLAIN | {"decoder_sparse_step": 1, "use_sliding_window": False}, defaults={"norm_topk_prob": False},
    ),
    "gpt_oss": Family(
        "GptOss", GPT_OSS,
        {"activation": "clipped_swiglu", "attention_bias": True, "output_bias": True, "sinks": True},
        {"swiglu_limit": "swiglu_limit"}, sliding="most",
        experts={"count": "num_local_experts", "per_token": "num_experts_per_tok", "width": "intermediate_size"},
        expert_traits={"normalize": True, "bias": True}, fused=FUSED_GPT_OSS,
        required={"quantization_config": "mxfp4", "attention_bias": True, "swiglu_alpha": 1.702},
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 150000.0, "head_dim": 64, "sliding_window": 128, "swiglu_limit": 7.0}
        | {"sliding_window_pattern": 2},
    ),
    "qwen3_5_text": Family(
        "Qwen3_5", QWEN3_5, _QWEN_DELTA, sliding="delta", required=_QWEN_DELTA_PLAIN, delta=_DELTA_FIELDS,
        defaults=_QWEN_DELTA_DEFAULTS, rope_option="mrope_section", classifier="Qwen3_5Text",
    ),
    "qwen3_5_moe_text": Family(
        "Qwen3_5Moe", QWEN3_5, _QWEN_DELTA, sliding="delta", required=_QWEN_DELTA_PLAIN, delta=_DELTA_FIELDS,
        fused=FUSED_QWEN3_5, experts=_QWEN_DELTA_EXPERTS, expert_traits={"shared_gate": True, "normalize": True},
        defaults=_QWEN_DELTA_DEFAULTS | {"intermediate_size": 1}, rope_option="mrope_section",
    ),
    "qwen3_next": Family(
        "Qwen3Next", QWEN3_NEXT, _QWEN_DELTA, sliding="delta", delta=_DELTA_FIELDS, fused=SORTED_QWEN3_NEXT,
        required=_QWEN_DELTA_PLAIN | {"decoder_sparse_step": 1}, defaults=_QWEN_DELTA_DEFAULTS,
        experts=_QWEN_DELTA_EXPERTS | {"normalize": "norm_topk_prob"}, expert_traits={"shared_gate": True},
    ),
    "olmo2": Family("Olmo2", OLMO2, _OLMO2, required=_PLAIN, defaults={"rms_norm_eps": 1e-5}),
    "olmo3": Family(
        "Olmo3", OLMO2, _OLMO2, sliding="most", required=_PLAIN, local_rope=True,
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 5e5, "sliding_window": 4096, "sliding_window_pattern": 4},
    ),
    "smollm3": Family(
        "SmolLM3", LLAMA, required=_PLAIN | {"use_sliding_window": False},
        defaults={"rope_theta": 2e6, "no_rope_layer_interval": 4, "tie_word_embeddings": True},
    ),
    "ministral3": Family(
        "Ministral3", LLAMA, sliding="all", required=_PLAIN, defaults={"rms_norm_eps": 1e-5, "head_dim": 128},
        rope_option="llama_4_scaling_beta",
    ),
    "seed_oss": Family(
        "SeedOss", LLAMA, required=_QWEN, defaults={"attention_bias": True, "attention_out_bias": False, "mlp_bias": False},
        fields={"attention_bias": "attention_bias", "output_bias": "attention_out_bias", "mlp_bias": "mlp_bias"},
    ),
    "granite": Family("Granite", LLAMA, fields=_GRANITE, required=_PLAIN, defaults=dict.fromkeys(_GRANITE.values(), 1.0)),
    "nanochat": Family(
        "NanoChat", NANOCHAT, _NANOCHAT, {"logit_softcap": "final_logit_softcapping"}, required=_PLAIN,
        defaults={"final_logit_softcapping": 15.0},
    ),
    "glm4": Family(
        "Glm4", GLM4, {"post_norms": True, "rope_pairs": "interleaved"}, {"attention_bias": "attention_bias"}, required=_QWEN,
        defaults={"head_dim": 128, "rms_norm_eps": 1.5625e-7, "partial_rotary_factor": 0.5, "attention_bias": True},
    ),
    "hunyuan_v1_dense": Family(
        "HunYuanDenseV1", HUNYUAN, {"qk_norm": "head", "qk_norm_after_rope": True}, required=_PLAIN,
        defaults={"rms_norm_eps": 1e-5}, rope_option="alpha",
    ),
    "olmoe": Family(
        "Olmoe", OLMOE, {"qk_norm": "width"}, experts=_QWEN_EXPERTS | {"width": "intermediate_size"},
        required=_PLAIN | {"clip_qkv": None}, defaults={"norm_topk_prob": False, "rms_norm_eps": 1e-5},
    ),
    "deepseek_v3": Family(
        "DeepseekV3", DEEPSEEK, experts=_GROUPED_EXPERTS, latent=_LATENT,
        expert_traits={"score": "sigmoid", "selection_bias": True},
        # The norm of latents has this epsilon whatever the field says.
        required=_PLAIN | {"rms_norm_eps": 1e-6},
        defaults={"norm_topk_prob": True, "first_k_dense_replace": 3, "n_group": 8, "topk_group": 4, "n_shared_experts": 1}
        | {"routed_scaling_factor": 2.5, "rope_interleave": True, "q_lora_rank": 1536},
    ),
    "glm4_moe": Family(
        "Glm4Moe",
        QWEN_EXPERTS,
        fields={"attention_bias": "attention_bias"},
        experts=_GROUPED_EXPERTS,
        expert_traits={"score": "sigmoid", "selection_bias": True},
        required={"quantization_config": None},
        defaults={"norm_topk_prob": True, "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "attention_bias": False}
        | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "n_shared_experts": 1},
    ),
}  # fmt: skip
