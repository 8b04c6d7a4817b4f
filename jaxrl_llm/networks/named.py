"""Configurations of published models by name: what their config.json on the Hugging Face Hub says."""

import dataclasses
import difflib
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_llm.networks import families
from jaxrl_llm.networks.config import DecoderConfig
from jaxrl_llm.networks.network import decoder


class Published(NamedTuple):
    """A published model."""

    repository: str  # where its files are, below https://huggingface.co/
    series: dict[str, Any]  # fields of config.json that it shares with its relatives
    sizes: tuple[int, int, int, int, int]  # values of the fields `_SIZES`
    own: dict[str, Any] = MappingProxyType({})  # further fields of config.json


_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def _ids(bos: int | None, eos: int | list[int], pad: int | None = None) -> dict[str, Any]:
    return {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}


def _llama3_rope(factor: float) -> dict[str, Any]:
    options = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": factor} | options}


_32K, _128K = ({"max_position_embeddings": length} for length in (32768, 131072))
_TIED = {"tie_word_embeddings": True}

# Series, with the fields of config.json that all of their models have. What a family fixes or fills in by itself is left out.
_QWEN2_5 = {"model_type": "qwen2", "vocab_size": 152064, "rope_theta": 1e6} | _ids(151643, 151643)
_QWEN2_5_SMALL = _QWEN2_5 | {"vocab_size": 151936} | _TIED
_QWEN2_5_LARGE = _QWEN2_5 | {"rms_norm_eps": 1e-5} | _128K
_QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "rope_theta": 1e6, "max_position_embeddings": 40960, "head_dim": 128}
_QWEN3 |= _ids(151643, 151645)
_QWEN3_MOE = _QWEN3 | {"model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True}
_LLAMA2 = {"model_type": "llama", "vocab_size": 32000, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096} | _ids(1, 2)
_LLAMA3 = {"model_type": "llama", "vocab_size": 128256, "rms_norm_eps": 1e-5, "rope_theta": 5e5} | _ids(128000, 128001)
_LLAMA3 |= {"max_position_embeddings": 8192}
_LLAMA3_1 = _LLAMA3 | _llama3_rope(8.0) | _128K
_LLAMA3_2 = _LLAMA3 | _llama3_rope(32.0) | _128K | _TIED
_GEMMA = {"model_type": "gemma", "vocab_size": 256000, "max_position_embeddings": 8192} | _ids(2, 1, 0)
_GEMMA2 = _GEMMA | {"model_type": "gemma2"}
_GEMMA3 = _GEMMA | {"model_type": "gemma3_text", "vocab_size": 262144, "sliding_window": 512} | _32K
# The text part of models that see images too; 64 rows of their vocabulary stand for what is no text.
_GEMMA3_LARGE = _GEMMA3 | {"vocab_size": 262208, "sliding_window": 1024} | _128K
_GEMMA3_LARGE |= {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
_MISTRAL = {"model_type": "mistral", "vocab_size": 32000, "rms_norm_eps": 1e-5} | _32K | _ids(1, 2)
_MIXTRAL = _MISTRAL | {"model_type": "mixtral", "sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2}
_PHI3 = {"model_type": "phi3", "rms_norm_eps": 1e-5}
_OLMOE = {"model_type": "olmoe", "vocab_size": 50304, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_OLMOE |= {"num_experts": 64, "num_experts_per_tok": 8} | _ids(None, 50279, 1)
_GLM4_5 = {"model_type": "glm4_moe", "vocab_size": 151552, "rope_theta": 1e6, "rms_norm_eps": 1e-5, "head_dim": 128} | _128K
_GLM4_5 |= {"attention_bias": True, "num_experts_per_tok": 8} | _ids(None, [151329, 151336, 151338], 151329)
_YARN = {"rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0}
_OLMO3 = {"model_type": "olmo3", "vocab_size": 100278, "rms_norm_eps": 1e-6, "max_position_embeddings": 65536}
_OLMO3 |= {"rope_theta": 5e5, "rope_scaling": _YARN | {"factor": 8.0, "original_max_position_embeddings": 8192}}
_OLMO3 |= _ids(None, 100257, 100277)
_SMOLLM3 = {"model_type": "smollm3", "vocab_size": 128256, "rope_theta": 5e6, "max_position_embeddings": 65536}
_SMOLLM3 |= _ids(128000, 128001, 128004) | _TIED
_GPT_OSS = {"model_type": "gpt_oss", "vocab_size": 201088, "num_experts_per_tok": 4} | _128K | _ids(None, 200002, 199999)
_GPT_OSS |= {"rope_scaling": _YARN | {"factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}}
_DEEPSEEK_V3 = {"model_type": "deepseek_v3", "vocab_size": 129280, "max_position_embeddings": 163840} | _ids(0, 1)
_DEEPSEEK_V3 |= {"n_routed_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "kv_lora_rank": 512}
_DEEPSEEK_V3 |= {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
_DEEPSEEK_V3 |= {
    "rope_scaling": _YARN | {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}
}
_QWEN3_5 = {"model_type": "qwen3_5_text", "vocab_size": 248320, "rope_theta": 1e7, "max_position_embeddings": 262144}
_QWEN3_5 |= _ids(None, 248044)
_QWEN3_5_MOE = _QWEN3_5 | {"model_type": "qwen3_5_moe_text", "num_experts": 256, "num_experts_per_tok": 8}
_QWEN3_5_MOE |= {"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512}
_GEMMA4 = {"model_type": "gemma4_text", "vocab_size": 262144, "final_logit_softcapping": 30.0} | _128K | _ids(2, 1, 0)
_GEMMA4_E2B = {"num_kv_shared_layers": 20, "use_double_wide_mlp": True}
_GEMMA4_E2B |= {"layer_types": [*["sliding_attention"] * 4, "full_attention"] * 7}
_GEMMA4_31B = {"hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 4}
_GEMMA4_31B |= {"sliding_window": 1024, "max_position_embeddings": 262144}
_GEMMA4_26B = _GEMMA4_31B | {"num_global_key_value_heads": 2, "enable_moe_block": True, "num_experts": 128}
_GEMMA4_26B |= {"top_k_experts": 8, "moe_intermediate_size": 704}

MODELS = {
    "qwen2.5-0.5b": Published("Qwen/Qwen2.5-0.5B", _QWEN2_5_SMALL, (896, 4864, 24, 14, 2), _32K),
    "qwen2.5-1.5b": Published("Qwen/Qwen2.5-1.5B", _QWEN2_5_SMALL, (1536, 8960, 28, 12, 2), _128K),
    "qwen2.5-3b": Published("Qwen/Qwen2.5-3B", _QWEN2_5_SMALL, (2048, 11008, 36, 16, 2), _32K),
    "qwen2.5-7b": Published("Qwen/Qwen2.5-7B", _QWEN2_5, (3584, 18944, 28, 28, 4), _128K),
    "qwen2.5-14b": Published("Qwen/Qwen2.5-14B", _QWEN2_5_LARGE, (5120, 13824, 48, 40, 8)),
    "qwen2.5-32b": Published("Qwen/Qwen2.5-32B", _QWEN2_5_LARGE, (5120, 27648, 64, 40, 8)),
    "qwen2.5-72b": Published("Qwen/Qwen2.5-72B", _QWEN2_5_LARGE, (8192, 29568, 80, 64, 8)),
    "qwen3-0.6b": Published("Qwen/Qwen3-0.6B", _QWEN3, (1024, 3072, 28, 16, 8), _TIED),
    "qwen3-1.7b": Published("Qwen/Qwen3-1.7B", _QWEN3, (2048, 6144, 28, 16, 8), _TIED),
    "qwen3-4b": Published("Qwen/Qwen3-4B", _QWEN3, (2560, 9728, 36, 32, 8), _TIED),
    "qwen3-8b": Published("Qwen/Qwen3-8B", _QWEN3, (4096, 12288, 36, 32, 8)),
    "qwen3-14b": Published("Qwen/Qwen3-14B", _QWEN3, (5120, 17408, 40, 40, 8)),
    "qwen3-32b": Published("Qwen/Qwen3-32B", _QWEN3, (5120, 25600, 64, 64, 8)),
    "qwen3-30b-a3b": Published("Qwen/Qwen3-30B-A3B", _QWEN3_MOE, (2048, 6144, 48, 32, 4), {"moe_intermediate_size": 768}),
    "qwen3-235b-a22b": Published("Qwen/Qwen3-235B-A22B", _QWEN3_MOE, (4096, 12288, 94, 64, 4), {"moe_intermediate_size": 1536}),
    "llama-2-7b": Published("meta-llama/Llama-2-7b-hf", _LLAMA2, (4096, 11008, 32, 32, 32)),
    "llama-3-8b": Published("meta-llama/Meta-Llama-3-8B", _LLAMA3, (4096, 14336, 32, 32, 8)),
    "llama-3-70b": Published("meta-llama/Meta-Llama-3-70B", _LLAMA3, (8192, 28672, 80, 64, 8)),
    "llama-3.1-8b": Published("meta-llama/Llama-3.1-8B", _LLAMA3_1, (4096, 14336, 32, 32, 8)),
    "llama-3.1-70b": Published("meta-llama/Llama-3.1-70B", _LLAMA3_1, (8192, 28672, 80, 64, 8)),
    "llama-3.2-1b": Published("meta-llama/Llama-3.2-1B", _LLAMA3_2, (2048, 8192, 16, 32, 8)),
    "llama-3.2-3b": Published("meta-llama/Llama-3.2-3B", _LLAMA3_2, (3072, 8192, 28, 24, 8)),
    "gemma-2b": Published("google/gemma-2b", _GEMMA, (2048, 16384, 18, 8, 1)),
    "gemma-7b": Published("google/gemma-7b", _GEMMA, (3072, 24576, 28, 16, 16)),
    "gemma-2-2b": Published("google/gemma-2-2b", _GEMMA2, (2304, 9216, 26, 8, 4)),
    "gemma-2-9b": Published("google/gemma-2-9b", _GEMMA2, (3584, 14336, 42, 16, 8)),
    "gemma-2-27b": Published(
        "google/gemma-2-27b", _GEMMA2, (4608, 36864, 46, 32, 16), {"head_dim": 128, "query_pre_attn_scalar": 144}
    ),
    "gemma-3-270m": Published("google/gemma-3-270m", _GEMMA3, (640, 2048, 18, 4, 1)),
    "gemma-3-1b": Published("google/gemma-3-1b-pt", _GEMMA3, (1152, 6912, 26, 4, 1)),
    "gemma-3-4b": Published("google/gemma-3-4b-pt", _GEMMA3_LARGE, (2560, 10240, 34, 8, 4)),
    "gemma-3-12b": Published("google/gemma-3-12b-pt", _GEMMA3_LARGE, (3840, 15360, 48, 16, 8)),
    "gemma-3-27b": Published(
        "google/gemma-3-27b-pt", _GEMMA3_LARGE, (5376, 21504, 62, 32, 16), {"head_dim": 128, "query_pre_attn_scalar": 168}
    ),
    "mistral-7b-v0.1": Published("mistralai/Mistral-7B-v0.1", _MISTRAL, (4096, 14336, 32, 32, 8), {"sliding_window": 4096}),
    "mistral-7b-v0.3": Published(
        "mistralai/Mistral-7B-v0.3",
        _MISTRAL,
        (4096, 14336, 32, 32, 8),
        {"vocab_size": 32768, "sliding_window": None, "rope_theta": 1e6},
    ),
    "mixtral-8x7b-v0.1": Published("mistralai/Mixtral-8x7B-v0.1", _MIXTRAL, (4096, 14336, 32, 32, 8), {"rope_theta": 1e6}),
    "phi-3-mini-4k": Published(
        "microsoft/Phi-3-mini-4k-instruct",
        _PHI3 | _ids(1, 32000, 32000),
        (3072, 8192, 32, 32, 32),
        {"vocab_size": 32064, "max_position_embeddings": 4096, "sliding_window": 2047},
    ),
    "phi-4": Published(
        "microsoft/phi-4",
        _PHI3 | _ids(100257, 100265, 100349),
        (5120, 17920, 40, 40, 10),
        {"vocab_size": 100352, "max_position_embeddings": 16384, "rope_theta": 250000.0},
    ),
    "olmoe-1b-7b": Published("allenai/OLMoE-1B-7B-0924", _OLMOE, (2048, 1024, 16, 16, 16)),
    "glm-4.5-air": Published(
        "zai-org/GLM-4.5-Air", _GLM4_5, (4096, 10944, 46, 96, 8), {"n_routed_experts": 128, "moe_intermediate_size": 1408}
    ),
    "gemma-4-e2b": Published("google/gemma-4-E2B", _GEMMA4, (1536, 6144, 35, 8, 1), _GEMMA4_E2B),
    "gemma-4-e4b": Published("google/gemma-4-E4B", _GEMMA4, (2560, 10240, 42, 8, 2), {"num_kv_shared_layers": 18}),
    "gemma-4-26b-a4b": Published("google/gemma-4-26B-A4B", _GEMMA4, (2816, 2112, 30, 16, 8), _GEMMA4_26B),
    "gemma-4-31b": Published("google/gemma-4-31B", _GEMMA4, (5376, 21504, 60, 32, 16), _GEMMA4_31B),
    "qwen3.5-0.8b": Published("Qwen/Qwen3.5-0.8B", _QWEN3_5, (1024, 3584, 24, 8, 2), _TIED | {"linear_num_value_heads": 16}),
    "qwen3.5-2b": Published("Qwen/Qwen3.5-2B", _QWEN3_5, (2048, 6144, 24, 8, 2), _TIED | {"linear_num_value_heads": 16}),
    "qwen3.5-4b": Published("Qwen/Qwen3.5-4B", _QWEN3_5, (2560, 9216, 32, 16, 4), _TIED),
    "qwen3.5-9b": Published("Qwen/Qwen3.5-9B", _QWEN3_5, (4096, 12288, 32, 16, 4)),
    "qwen3.5-27b": Published("Qwen/Qwen3.5-27B", _QWEN3_5, (5120, 17408, 64, 24, 4), {"linear_num_value_heads": 48}),
    "qwen3.5-35b-a3b": Published("Qwen/Qwen3.5-35B-A3B", _QWEN3_5_MOE, (2048, 512, 40, 16, 2)),
    "olmo-3-7b": Published("allenai/Olmo-3-1025-7B", _OLMO3, (4096, 11008, 32, 32, 32)),
    "olmo-3-32b": Published("allenai/Olmo-3-1125-32B", _OLMO3, (5120, 27648, 64, 40, 8)),
    "smollm3-3b": Published("HuggingFaceTB/SmolLM3-3B-Base", _SMOLLM3, (2048, 11008, 36, 16, 4)),
    "gpt-oss-20b": Published("openai/gpt-oss-20b", _GPT_OSS, (2880, 2880, 24, 64, 8), {"num_local_experts": 32}),
    "gpt-oss-120b": Published("openai/gpt-oss-120b", _GPT_OSS, (2880, 2880, 36, 64, 8), {"num_local_experts": 128}),
    "deepseek-v3": Published("deepseek-ai/DeepSeek-V3", _DEEPSEEK_V3, (7168, 18432, 61, 128, 128)),
}


def names() -> tuple[str, ...]:
    """Every name that `config` knows."""
    return tuple(MODELS)


def config(name: str, **changes: Any) -> DecoderConfig:
    """Configuration of a published model, to make, plan or measure a network of its shape without its weights.

    A name is that of the model on the Hugging Face Hub, in lower case: "qwen3-8b", "llama-3.2-1b", "gemma-2-9b". Models
    that were published with and without tuning for chat differ in `eos_ids`, which are those of the files of
    `MODELS[name].repository`. Of Gemma 3 and 4 and Qwen3.5 it is the part that reads text, of GLM-4.5 and
    DeepSeek-V3 all but the layer that predicts several tokens at once.

    Args:
      name: one of `names()`.
      changes: fields of `DecoderConfig` to replace, such as `dtype="bfloat16"` or `remat="full"`.

    Raises ValueError: there is no such name, or a change does not fit.

    >>> config("qwen3-8b", dtype="bfloat16").num_layers
    36
    """
    if name not in MODELS:
        near = difflib.get_close_matches(str(name).lower(), MODELS, n=4) or MODELS
        raise ValueError(f"name={name!r} is no published model that is known here; choose one of {', '.join(near)}")
    fields = [field.name for field in dataclasses.fields(DecoderConfig)]
    for field, value in changes.items():
        if field not in fields:
            near = ", ".join(difflib.get_close_matches(field, fields) or fields)
            raise ValueError(f"{field}={value!r} is no field of DecoderConfig; did you mean {near}?")
    model = MODELS[name]
    theirs = model.series | dict(zip(_SIZES, model.sizes, strict=True)) | dict(model.own)
    return dataclasses.replace(families.from_huggingface(theirs), **changes)


def count_parameters(config: DecoderConfig) -> int:
    """Numbers in the parameters of a network of this configuration; no array is made.

    >>> count_parameters(config("qwen3-0.6b"))
    596049920
    """
    shapes = jax.eval_shape(lambda: decoder(config).init(jax.random.key(0)))
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in jax.tree.leaves(shapes))
