"""A real chat model learns to add and to take away: GRPO on reasoning-gym with 135 M parameters, on two CPU cores.

docs/first_run.md says where the model comes from and what the run gives.

pip install 'jaxrl_llm[data,gguf]'
jaxrl-llm train --config=configs/first_run.py --config.network.directory=smollm2 --workdir=runs/first
"""

from jaxrl_llm.training import default_config


def get_config():
    """The configuration, locked: only keys that exist can be set."""
    config = default_config()
    config.network.directory = ""
    config.task.source = "reasoning_gym"
    config.task.options.update(name="chain_sum", size=4000, seed=0, min_terms=2, max_terms=2, min_digits=1, max_digits=2)
    config.task.test_options.update(size=256, seed=1_000_000)
    config.task.update(chat=True, max_prompt_tokens=64)
    config.method.name = "grpo"
    config.method.options.update(samples=8, kl_coefficient=0.0)
    # At temperature 1 a model of this size wanders off; what it is sampled at is what it learns at.
    config.rl.update(steps=60, prompts=16, max_new_tokens=40, temperature=0.7)
    config.rl.optimizer.update(learning_rate=1e-5, warmup_steps=4)
    # Whether the last number of an answer is right. The generator's own score wants nothing but the number.
    config.rewards.names = ("gsm8k",)
    config.evaluation.update(every=20)
    config.checkpoint.every = 20
    return config
