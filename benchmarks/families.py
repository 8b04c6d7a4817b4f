"""Decoding by kinds of layer beside a plain decoder of the same sizes: python benchmarks/families.py

W1: 8 prompts of 32 tokens, 4 samples each of 128; 4 layers of width 256, random float32 parameters. Prints seconds of the first
call, which compiles, and tokens a second of the fastest of five others.
"""

import dataclasses
import time

import jax
import numpy as np

from jaxrl_llm.networks import DecoderConfig, ExpertsConfig, decoder
from jaxrl_llm.networks.config import DeltaConfig, LatentConfig
from jaxrl_llm.sampling import generate

PLAIN = DecoderConfig(
    vocab_size=512, hidden_size=256, intermediate_size=1024, num_layers=4, num_heads=8, num_kv_heads=4, head_dim=32
)
LATENT = LatentConfig(rank=64, query_rank=None, plain_dim=32, rotary_dim=16, value_dim=32)
DELTA = DeltaConfig(key_heads=4, value_heads=8, key_dim=32, value_dim=32)
KINDS = {
    "plain (llama, qwen3...)": {},
    "windows and sinks (gpt-oss without experts)": {
        "sinks": True,
        "sliding_window": 64,
        "layer_types": ("sliding", "full") * 2,
    },
    "latents (deepseek-v3 without experts)": {"latent": LATENT, "num_kv_heads": 8},
    "lent keys, embeddings of layers (gemma 4)": {"reusing_layers": 2, "per_layer_width": 32, "per_layer_vocab": 512},
    "delta rule in three of four (qwen3.5)": {
        "delta": DELTA,
        "layer_types": ("delta",) * 3 + ("full",),
        "attention_gate": True,
    },
    "experts, 2 of 8": {"experts": ExpertsConfig(count=8, per_token=2, width=512)},
}


def main() -> None:
    """Prints a line for each kind."""
    random = np.random.default_rng(0)
    prompts = [random.integers(1, 512, 32).tolist() for _ in range(8)]
    for name, options in KINDS.items():
        network = decoder(dataclasses.replace(PLAIN, **options))
        params = network.init(jax.random.key(0))
        size, seconds = sum(leaf.size for leaf in jax.tree.leaves(params)), []
        for number in range(6):
            begin = time.perf_counter()
            generate(network.without_params(), params, prompts, max_new_tokens=128, num_samples=4, seed=number)
            seconds.append(time.perf_counter() - begin)
        told = f"{size / 1e6:.2f} M parameters, first call {seconds[0]:.1f} s, {4096 / min(seconds[1:]):.0f} tokens/s"
        print(f"{name:46} {told}")


if __name__ == "__main__":
    main()
