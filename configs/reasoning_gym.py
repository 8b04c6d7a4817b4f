"""GRPO on a generator of reasoning-gym, from any Hugging Face checkpoint with a chat template.

pip install 'jaxrl_llm[data]'
jaxrl-llm train --config=configs/reasoning_gym.py --config.network.directory=DIR --config.task.options.name=countdown
"""

from jaxrl_llm.training import default_config


def get_config():
    """The configuration, locked: only keys that exist can be set."""
    config = default_config()
    config.network.update(directory="", dtype="bfloat16", remat="full")
    config.task.source = "reasoning_gym"
    config.task.options.update(name="chain_sum", size=10000, seed=0)
    config.task.test_options.update(size=256, seed=1_000_000)
    config.task.update(chat=True, max_prompt_tokens=512, drop_long=True)
    config.task.suffix = "\nGive only the final answer."
    config.method.name = "dapo"
    config.method.options.update(samples=16)
    config.rl.update(steps=300, prompts=16, max_new_tokens=512)
    config.rl.optimizer.update(learning_rate=1e-6, warmup_steps=10)
    config.rewards.names = ("reasoning_gym_score",)
    config.evaluation.update(every=50)
    return config
