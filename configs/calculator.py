"""Addition with a calculator at hand: the policy learns to ask it where it cannot add. A few minutes on two CPU cores.

Demonstrations forget every carry, but three in ten ask the calculator instead. A call costs a fifth of a right answer, so that
it is worth its price where there is something to carry, and nowhere else.
"""

from jaxrl_llm.data import ARITHMETIC_ALPHABET
from jaxrl_llm.training import default_config


def get_config():
    """The configuration, locked: only keys that exist can be set."""
    config = default_config()
    config.network.tokenizer = f"characters:{ARITHMETIC_ALPHABET}[]?"
    config.network.update(hidden_size=96, intermediate_size=256, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=24)
    config.task.options.update(size=40000, digits=(2, 2), careless=1.0, calls=0.3)
    config.task.test_options.update(split="test", size=256)
    config.task.max_prompt_tokens = 6
    config.sft.update(steps=500, batch=64, row_tokens=68)
    config.sft.optimizer.update(learning_rate=3e-3, warmup_steps=20, decay="cosine")
    config.rl.update(steps=80, prompts=64, max_new_tokens=28)
    config.rl.optimizer.update(learning_rate=3e-4, warmup_steps=10, decay="linear")
    config.method.name = "grpo"
    config.method.options.update(samples=8, kl_coefficient=0.0)
    config.environment.update(name="inline_calculator", turns=3)
    config.environment.options.update(cost=0.2, error="?")
    config.rewards.names = ("environment",)
    config.evaluation.every = 20
    return config
