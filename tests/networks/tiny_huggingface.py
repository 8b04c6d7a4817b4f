"""Tiny random checkpoints, written by `transformers`."""

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
}
_LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_CONFIGS = {
    "llama2": (transformers.LlamaConfig, {"rms_norm_eps": 1e-5}),
    "llama3_tied": (
        transformers.LlamaConfig,
        {
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_theta": 500000.0, **_LLAMA3_SCALING},
        },
    ),
    "qwen2": (
        transformers.Qwen2Config,
        {"num_key_value_heads": 2, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    ),
    "qwen2_tied": (
        transformers.Qwen2Config,
        {"num_key_value_heads": 1, "tie_word_embeddings": True, "rope_parameters": {"rope_type": "linear", "factor": 2.5}},
    ),
    "qwen3": (
        transformers.Qwen3Config,
        {"num_key_value_heads": 2, "head_dim": 16, "rope_parameters": {"rope_theta": 5e6, "rope_type": "default"}},
    ),
    "qwen3_tied": (transformers.Qwen3Config, {"num_key_value_heads": 4, "head_dim": 6, "tie_word_embeddings": True}),
}
NAMES = tuple(_CONFIGS)


def make_model(name: str, seed: int = 0):
    """A random model of `name`: every parameter random, norms and biases too, and large enough to tell tokens apart."""
    kind, options = _CONFIGS[name]
    config = kind(**_SIZES, **options, bos_token_id=1, eos_token_id=None, pad_token_id=0)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in path else 0.25 * noise)
    return model


def save_model(name: str, directory, dtype=torch.float32, **options):
    """Writes a random checkpoint of `name` and returns the model."""
    model = make_model(name).to(dtype)
    model.save_pretrained(directory, **options)
    return model.float()
