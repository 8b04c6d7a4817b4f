"""Rewards: plain callables `reward(prompts, completions, **columns) -> list[float | None]`, and the pool that runs them.

Importing this loads no JAX: the worker processes of the pool import it too.
"""

from jaxrl_llm.rewards.answers import (
    answer_of, arithmetic, environment, exact_match, final_answer, final_number, gsm8k, marked_answer,
)  # fmt: skip
from jaxrl_llm.rewards.code import code
from jaxrl_llm.rewards.judges import judge
from jaxrl_llm.rewards.learned import RewardModel, reward_model
from jaxrl_llm.rewards.maths import maths
from jaxrl_llm.rewards.pool import RewardFailure, RewardPool
from jaxrl_llm.rewards.reasoning_gym import reasoning_gym_score
from jaxrl_llm.rewards.shaping import format_reward, length_cosine, length_soft_penalty
from jaxrl_llm.rewards.worker import LARGEST_REWARD

# Rewards that a configuration can name without a module, and functions that make rewards out of options.
NAMED = {reward.__name__: reward for reward in (arithmetic, environment, exact_match, gsm8k, maths, reasoning_gym_score)}
FACTORIES = {make.__name__: make for make in (code, format_reward, judge, length_cosine, length_soft_penalty, marked_answer)}

__all__ = [
    "FACTORIES", "LARGEST_REWARD", "NAMED", "RewardFailure", "RewardModel", "RewardPool", "answer_of", "arithmetic", "code",
    "environment", "exact_match", "final_answer", "final_number", "format_reward", "gsm8k", "judge", "length_cosine",
    "length_soft_penalty", "marked_answer", "maths", "reasoning_gym_score", "reward_model",
]  # fmt: skip
