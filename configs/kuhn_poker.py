"""Kuhn poker from nothing, against itself: two roles of one policy, each with a row of its own. Minutes on two CPU cores.

A KL penalty to a policy that follows slowly keeps the two from running in circles round the equilibrium.
"""

from jaxrl_llm.training import default_config


def get_config():
    """The configuration, locked: only keys that exist can be set."""
    config = default_config()
    config.network.tokenizer = "characters:JQK12:pb"
    config.network.update(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16)
    config.task.source = "numbered"
    config.task.options = {"size": 3000, "prompt": "1"}
    config.task.test_options = {"size": 300, "first": 3000}
    config.task.max_prompt_tokens = 6
    config.rl.update(steps=300, prompts=64, max_new_tokens=4)
    config.rl.optimizer.update(learning_rate=3e-3, warmup_steps=10)
    config.rl.reference.update(every=10, share=0.3)
    config.method.name = "dr_grpo"  # chips are compared as they are: divided by their deviation, games would be others
    config.method.options.update(samples=8, kl_coefficient=0.3)
    config.environment.update(name="kuhn_poker", turn_tokens=1)
    config.rewards.names = ("environment",)
    config.evaluation.update(prompts=128, batch=128, temperature=1.0)
    return config
