"""From scores to losses: pure, hashable functions `(Scores, Batch) -> (loss, metrics)`."""

from jaxrl_llm.objectives.base import Objective, objective, weighted_sum
from jaxrl_llm.objectives.policy import policy
from jaxrl_llm.objectives.ratios import sequence_ratio, token_ratio
from jaxrl_llm.objectives.regularizers import entropy_bonus, kl
from jaxrl_llm.objectives.supervised import negative_log_likelihood
from jaxrl_llm.objectives.trust import cispo, clip, score_function, unclipped
from jaxrl_llm.objectives.values import value_loss

__all__ = [
    "Objective",
    "cispo",
    "clip",
    "entropy_bonus",
    "kl",
    "negative_log_likelihood",
    "objective",
    "policy",
    "score_function",
    "sequence_ratio",
    "token_ratio",
    "unclipped",
    "value_loss",
    "weighted_sum",
]
