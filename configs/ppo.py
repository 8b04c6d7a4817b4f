"""PPO with a critic on the task of the quickstart: the same beginning, another method."""

from jaxrl_llm.configs.quickstart import get_config as quickstart


def get_config():
    """The configuration, locked: only keys that exist can be set."""
    config = quickstart()
    config.method.name = "ppo"
    config.method.options = {"samples": 8, "kl_coefficient": 0.0}
    config.critic.learning_rate_factor = 2.0
    return config
