"""Tiny random checkpoints, written by `transformers`."""

import pytest
import torch
import transformers

VOCABULARY = 67
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
_LOCAL_AND_GLOBAL = ["sliding_attention", "full_attention", "sliding_attention"]
_SOFTCAPS = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.5}
_GEMMA = {"num_key_value_heads": 2, "head_dim": 16}
_GEMMA2 = _GEMMA | {"num_hidden_layers": 3, "query_pre_attn_scalar": 24, "sliding_window": 7, "layer_types": _LOCAL_AND_GLOBAL}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "num_key_value_heads": 2}
_CONFIGS = {
    "llama2": (transformers.LlamaConfig, {"rms_norm_eps": 1e-5}),
    "llama3_tied": (
        transformers.LlamaConfig,
        {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 500000.0, **_LLAMA3_SCALING}},
    ),
    "mistral": (transformers.MistralConfig, {"num_key_value_heads": 2, "head_dim": 12, "sliding_window": 7}),
    "mistral_full": (transformers.MistralConfig, {"num_key_value_heads": 2, "sliding_window": None}),
    "qwen2": (
        transformers.Qwen2Config,
        {"num_key_value_heads": 2, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    ),
    "qwen2_tied": (
        transformers.Qwen2Config,
        {"num_key_value_heads": 1, "tie_word_embeddings": True, "rope_parameters": {"rope_type": "linear", "factor": 2.5}},
    ),
    "qwen2_sliding": (
        transformers.Qwen2Config,
        {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": (
        transformers.Qwen3Config,
        {"num_key_value_heads": 2, "head_dim": 16, "rope_parameters": {"rope_theta": 5e6, "rope_type": "default"}},
    ),
    "qwen3_tied": (transformers.Qwen3Config, {"num_key_value_heads": 4, "head_dim": 6, "tie_word_embeddings": True}),
    "qwen3_yarn": (
        transformers.Qwen3Config,
        {"num_key_value_heads": 2, "head_dim": 16, "rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", **_YARN}},
    ),
    "gemma": (transformers.GemmaConfig, _GEMMA | {"num_key_value_heads": 1}),
    "gemma2": (transformers.Gemma2Config, _GEMMA2 | _SOFTCAPS),
    "gemma3": (
        transformers.Gemma3TextConfig,
        _GEMMA2
        | {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            }
        },
    ),
    "phi3": (
        transformers.Phi3Config,
        {
            "num_key_value_heads": 2,
            "sliding_window": 9,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
    ),
    "mixtral": (
        transformers.MixtralConfig,
        {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
    "qwen3_moe": (transformers.Qwen3MoeConfig, _EXPERTS | {"head_dim": 16, "norm_topk_prob": True}),
    "qwen3_moe_dense_below": (
        transformers.Qwen3MoeConfig,
        _EXPERTS | {"head_dim": 8, "mlp_only_layers": [0], "num_hidden_layers": 3},
    ),
    "olmoe": (transformers.OlmoeConfig, {"num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 3}),
    "glm4_moe": (
        transformers.Glm4MoeConfig,
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_hidden_layers": 3,
            "first_k_dense_replace": 1,
            "n_routed_experts": 8,
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 12,
            "n_shared_experts": 2,
            "routed_scaling_factor": 1.7,
            "use_qk_norm": True,
            "attention_bias": True,
        },
    ),
}
_MINISTRAL = {"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
_MINISTRAL |= {"original_max_position_embeddings": 16, "max_position_embeddings": 256}
_GRANITE = {"embedding_multiplier": 2.0, "logits_scaling": 0.5, "residual_multiplier": 0.7, "attention_multiplier": 0.3}
_LOCAL_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    "full_attention": {"rope_type": "yarn", "rope_theta": 500.0, **_YARN},
}
_CONFIGS |= {
    "olmo2": (transformers.Olmo2Config, {"num_key_value_heads": 2}),
    "olmo3": (
        transformers.Olmo3Config,
        {"num_key_value_heads": 2, "num_hidden_layers": 3, "sliding_window": 7, "layer_types": _LOCAL_AND_GLOBAL}
        | {"rope_parameters": _LOCAL_ROPE},
    ),
    "smollm3": (transformers.SmolLM3Config, {"num_key_value_heads": 2, "num_hidden_layers": 3, "no_rope_layers": [1, 0, 1]}),
    "ministral3": (
        transformers.Ministral3Config,
        {"num_key_value_heads": 2, "head_dim": 8, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, **_MINISTRAL}},
    ),
    "seed_oss": (
        transformers.SeedOssConfig,
        {"num_key_value_heads": 2, "head_dim": 12, "attention_out_bias": True, "mlp_bias": True},
    ),
    "granite": (transformers.GraniteConfig, {"num_key_value_heads": 2} | _GRANITE),
    "nanochat": (transformers.NanoChatConfig, {"num_key_value_heads": 2, "final_logit_softcapping": 2.5}),
    "glm4": (transformers.Glm4Config, {"num_key_value_heads": 2, "head_dim": 8, "attention_bias": True, "eos_token_id": 66}),
    "hunyuan": (
        transformers.HunYuanDenseV1Config,
        {"num_key_value_heads": 2, "head_dim": 8}
        | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 20.0, "factor": 1.0}},
    ),
}
_CONFIGS |= {
    "gpt_oss": (
        transformers.GptOssConfig,
        {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_limit": 1.0}
        | {"num_hidden_layers": 3, "sliding_window": 7, "layer_types": _LOCAL_AND_GLOBAL, "intermediate_size": 64}
        | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "truncate": False, **_YARN}},
    )
}
_DEEPSEEK = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 12}
_DEEPSEEK |= {"n_shared_experts": 2, "first_k_dense_replace": 1, "num_hidden_layers": 3, "kv_lora_rank": 16}
_DEEPSEEK |= {
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "num_nextn_predict_layers": 1,
    "num_key_value_heads": 4,
}
_CONFIGS |= {
    "deepseek_v3": (
        transformers.DeepseekV3Config,
        _DEEPSEEK
        | {"q_lora_rank": 20}
        | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 0.7, **_YARN}},
    ),
    "deepseek_v3_plain_queries": (transformers.DeepseekV3Config, _DEEPSEEK | {"q_lora_rank": None, "rope_interleave": False}),
}
_CONFIGS |= {
    "gemma4": (
        transformers.Gemma4TextConfig,
        {"num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 1}
        | {"attention_k_eq_v": True, "num_kv_shared_layers": 2, "use_double_wide_mlp": True, "sliding_window": 7}
        | {"hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": VOCABULARY, "final_logit_softcapping": 2.5}
        | {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3},
    )
}
_DELTA = {"num_key_value_heads": 2, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
_DELTA |= {"linear_key_head_dim": 8, "linear_value_head_dim": 6}
_DELTA_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
_DELTA_EXPERTS |= {"shared_expert_intermediate_size": 12, "num_hidden_layers": 3}
_TURNS = ["linear_attention", "full_attention"] * 3
_CONFIGS |= {
    "qwen3_5": (transformers.Qwen3_5TextConfig, _DELTA | {"num_hidden_layers": 5, "layer_types": _TURNS[:5]}),
    "qwen3_5_moe": (transformers.Qwen3_5MoeTextConfig, _DELTA | _DELTA_EXPERTS | {"layer_types": _TURNS[:3]}),
    "qwen3_next": (
        transformers.Qwen3NextConfig,
        _DELTA | _DELTA_EXPERTS | {"layer_types": _TURNS[1:4], "mlp_only_layers": [0]},
    ),
}
_GEMMA4_EXPERTS = {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 20}
_CONFIGS["gemma4_experts"] = (
    transformers.Gemma4TextConfig,
    {"num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16, "sliding_window": 7, "hidden_size_per_layer_input": 0}
    | {"layer_types": ["sliding_attention", "full_attention"]}
    | _GEMMA4_EXPERTS,
)
NAMES = tuple(_CONFIGS)
# One of each family, and the more of them.
FIRST = (
    "llama3_tied",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "mixtral",
    "qwen3_moe",
    "olmoe",
    "glm4_moe",
    "nanochat",
    "gpt_oss",
    "deepseek_v3",
    "gemma4",
    "qwen3_5",
)
PARAMETERS = [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in NAMES]


def _about_one(name: str, path: str) -> bool:
    from_zero = (
        name.startswith(("gemma", "qwen3_5", "qwen3_next")) and not name.startswith("gemma4") and "linear_attn.norm" not in path
    )
    return path.endswith(("layer_scalar", "router.scale", "per_expert_scale")) or ("norm" in path and not from_zero)


def make_model(name: str, seed: int = 0, auto=transformers.AutoModelForCausalLM, **options):
    """A random model of `name`: every parameter random, norms and biases too, and large enough to tell tokens apart."""
    kind, own = _CONFIGS[name]
    config = kind(**_SIZES | own | options)
    config._attn_implementation = "eager"
    model = auto.from_config(config).eval()
    if auto is transformers.AutoModelForCausalLM:
        model.generation_config.eos_token_id = None  # so that as many tokens are generated as are asked for
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        biases = [
            (path, buffer)
            for path, buffer in model.named_buffers()
            if path.endswith(("e_score_correction_bias", "layer_scalar"))
        ]
        for path, parameter in [*model.named_parameters(), *biases]:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if _about_one(name, path) else 0.25 * noise)
    return model


def save_model(name: str, directory, dtype=torch.float32, **options):
    """Writes a random checkpoint of `name` and returns the model."""
    model = make_model(name).to(dtype)
    model.save_pretrained(directory, **options)
    return model.float()
