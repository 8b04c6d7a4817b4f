"""From scores to losses: pure, hashable functions `(Scores, Batch) -> (loss, metrics)`."""

from jaxrl_llm.objectives.base import Objective, by_source, objective, scaled, traits, weighted_sum
from jaxrl_llm.objectives.policy import policy
from jaxrl_llm.objectives.preference import bradley_terry
from jaxrl_llm.objectives.ratios import sequence_ratio, token_ratio
from jaxrl_llm.objectives.regularizers import entropy_bonus, kl
from jaxrl_llm.objectives.routing import load_balancing, router_z
from jaxrl_llm.objectives.supervised import negative_log_likelihood
from jaxrl_llm.objectives.trust import cispo, clip, score_function, unclipped
from jaxrl_llm.objectives.values import categorical_value_loss, quantile_value_loss, value_loss

__all__ = [
    "Objective",
    "bradley_terry",
    "by_source",
    "categorical_value_loss",
    "cispo",
    "clip",
    "entropy_bonus",
    "kl",
    "load_balancing",
    "negative_log_likelihood",
    "objective",
    "policy",
    "quantile_value_loss",
    "router_z",
    "scaled",
    "score_function",
    "sequence_ratio",
    "token_ratio",
    "traits",
    "unclipped",
    "value_loss",
    "weighted_sum",
]
