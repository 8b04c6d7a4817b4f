"""From rewards to advantages and weights: pure functions from `Rollouts` to `Rollouts`."""

from jaxrl_llm.estimators.base import Estimator, chain, stateful, stateless
from jaxrl_llm.estimators.filters import drop_uniform_groups
from jaxrl_llm.estimators.groups import group_advantage
from jaxrl_llm.estimators.normalisers import whiten
from jaxrl_llm.estimators.returns import gae, kl_in_reward, reward_to_go, rewards_per_token
from jaxrl_llm.estimators.scores import row_scores
from jaxrl_llm.estimators.shaping import overlong_penalty
from jaxrl_llm.estimators.weighting import constant, pair_mean, sequence_mean, sequence_mean_token_sum, token_mean

__all__ = [
    "Estimator",
    "chain",
    "constant",
    "drop_uniform_groups",
    "gae",
    "group_advantage",
    "kl_in_reward",
    "overlong_penalty",
    "pair_mean",
    "reward_to_go",
    "rewards_per_token",
    "row_scores",
    "sequence_mean",
    "sequence_mean_token_sum",
    "stateful",
    "stateless",
    "token_mean",
    "whiten",
]
