"""Worked addition from nothing: careless demonstrations, then GRPO with a verifier. A few minutes on two CPU cores.

The demonstrations forget the carry six times out of ten, and so does a model that imitates them. Nothing in the second
phase shows it how to do better: it only learns which of its own answers are right.
"""

from jaxrl_llm.data import ARITHMETIC_ALPHABET
from jaxrl_llm.training import default_config


def get_config():
    """The configuration, locked: only keys that exist can be set."""
    config = default_config()
    # Of the network of these sizes; with --config.network.directory=DIR both give way to those of the checkpoint.
    config.network.tokenizer = f"characters:{ARITHMETIC_ALPHABET}"
    config.network.update(hidden_size=96, intermediate_size=256, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=24)
    config.task.options.update(size=40000, digits=(2, 2), careless=0.6)
    config.task.test_options.update(split="test", size=256)
    config.task.max_prompt_tokens = 6
    config.sft.update(steps=500, batch=64, row_tokens=68)
    config.sft.optimizer.update(learning_rate=3e-3, warmup_steps=20, decay="cosine")
    config.rl.update(steps=80, prompts=64, max_new_tokens=28, row_tokens=68)
    config.rl.optimizer.update(learning_rate=3e-4, warmup_steps=10, decay="linear")
    config.method.name = "grpo"
    config.method.options.update(samples=8, kl_coefficient=0.0)
    config.rewards.names = ("arithmetic",)
    config.evaluation.every = 20
    return config
