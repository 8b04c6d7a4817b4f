"""Python functions of one line from nothing: careless demonstrations, then GRPO with tests that run in a sandbox.

The demonstrations forget the parentheses six times out of ten. Programs run in bubblewrap: apt-get install bubblewrap
"""

from jaxrl_llm.data import PROGRAM_ALPHABET
from jaxrl_llm.training import default_config


def get_config():
    """The configuration, locked: only keys that exist can be set."""
    config = default_config()
    config.network.tokenizer = f"characters:{PROGRAM_ALPHABET}"
    config.network.update(hidden_size=96, intermediate_size=256, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=24)
    config.task.source = "programs"
    config.task.options.update(size=20000, steps=(2, 3), careless=0.6)
    config.task.test_options.update(split="test", size=128)
    config.task.max_prompt_tokens = 64
    config.sft.update(steps=500, batch=64, row_tokens=80)
    config.sft.optimizer.update(learning_rate=3e-3, warmup_steps=20, decay="cosine")
    config.rl.update(steps=40, prompts=32, max_new_tokens=16, row_tokens=80)
    config.rl.optimizer.update(learning_rate=3e-4, warmup_steps=5, decay="linear")
    config.method.name = "grpo"
    config.method.options.update(samples=8, kl_coefficient=0.0)
    config.rewards.names = ("code",)
    config.evaluation.update(every=20, prompts=128)
    return config
