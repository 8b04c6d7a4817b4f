"""What each field of config.json that is read must be."""

from jaxrl_llm import reading
from jaxrl_llm.networks.config_checks import BASE, LIMITS, MOST_EXPERTS, POSITIVE
from jaxrl_llm.networks.rope_fields import FRACTION, ROPE_CHECKS, rope
from jaxrl_llm.reading import flag, listed, mapping, real, text, whole

# Their name of each field that only has to be copied.
FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}
_TOKEN, _LAYER, _SPAN = whole(0, LIMITS["vocab_size"]), whole(0, LIMITS["num_layers"]), whole(1, LIMITS["max_length"])
_FLAGS = ("tie_word_embeddings", "use_sliding_window", "norm_topk_prob", "use_qk_norm", "attention_bias", "mlp_bias")
_FLAGS += ("attention_out_bias", "rope_interleave", "attention_k_eq_v", "use_double_wide_mlp", "enable_moe_block")
_FLAGS += ("attn_output_gate",)
_DELTA = ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
_DELTA += ("linear_conv_kernel_dim", "full_attention_interval")
_WIDTHS = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_COUNTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "top_k_experts",
    "n_group",
    "topk_group",
)
_SCALES = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "clip_qkv", "routed_scaling_factor")
_SCALES += (
    "embedding_multiplier",
    "logits_scaling",
    "residual_multiplier",
    "attention_multiplier",
    "swiglu_alpha",
    "swiglu_limit",
)
_LAYERS = ("max_window_layers", "first_k_dense_replace", "num_nextn_predict_layers")
CHECKS = (
    {theirs: whole(1, LIMITS[ours]) for ours, theirs in FIELDS.items()}
    | {"num_key_value_heads": whole(1, LIMITS["num_kv_heads"]), "head_dim": whole(1, LIMITS["head_dim"])}
    | {"moe_intermediate_size": whole(1, LIMITS["hidden_size"]), "num_labels": whole(1, LIMITS["value_head"])}
    | {"n_shared_experts": whole(0, MOST_EXPERTS), "sliding_window_pattern": whole(1, LIMITS["num_layers"])}
    | {"bos_token_id": _TOKEN, "eos_token_id": reading.one_or_more(_TOKEN), "pad_token_id": _TOKEN}
    | {"rope_scaling": rope, "rope_parameters": rope, "rope_theta": BASE, "rope_local_base_freq": BASE}
    | {FRACTION: ROPE_CHECKS[FRACTION], "rms_norm_eps": real(0.0, 1.0), "router_jitter_noise": real(0.0)}
    | {"global_head_dim": whole(1, LIMITS["head_dim"]), "num_global_key_value_heads": whole(1, LIMITS["num_kv_heads"])}
    | {"hidden_size_per_layer_input": whole(0, LIMITS["hidden_size"]), "num_kv_shared_layers": _LAYER}
    | {"vocab_size_per_layer_input": whole(0, LIMITS["vocab_size"]), "per_layer_config": mapping(mapping())}
    | {"architectures": listed(text), "layer_types": listed(text), "mlp_only_layers": listed(_LAYER)}
    | {"no_rope_layers": listed(whole(0, 1)), "no_rope_layer_interval": whole(1, LIMITS["num_layers"])}
    | {"id2label": mapping(), "quantization_config": mapping()}
    | dict.fromkeys(("max_position_embeddings", "sliding_window"), _SPAN)
    | dict.fromkeys(("model_type", "hidden_act", "hidden_activation"), text)
    | dict.fromkeys(_FLAGS, flag)
    | {"use_bidirectional_attention": reading.either("true, false or a name", flag, text)}
    | dict.fromkeys((*_COUNTS, "decoder_sparse_step"), whole(1, MOST_EXPERTS))
    | dict.fromkeys(_SCALES, POSITIVE)
    | dict.fromkeys(_DELTA, whole(1, LIMITS["num_heads"]))
    | {"shared_expert_intermediate_size": whole(0, LIMITS["hidden_size"])}
    | dict.fromkeys(_WIDTHS, whole(1, LIMITS["head_dim"]))
    | dict.fromkeys(_LAYERS, _LAYER)
)
