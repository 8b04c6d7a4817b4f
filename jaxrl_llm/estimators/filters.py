"""Rows that leave the training."""

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.pools import group_range
from jaxrl_llm.estimators.scores import row_scores
from jaxrl_llm.types import Rollouts


@stateless
def drop_uniform_groups(rollouts: Rollouts, *, reward_weights: tuple[float, ...] | None = None) -> Rollouts:
    """Takes groups whose present rows all have one score out of the training: they carry no signal.

    Groups of one are uniform. If nothing is left, all weights become 0 and the step changes nothing.

    Source: DAPO dynamic sampling, https://arxiv.org/abs/2503.14476
    """
    score, present = row_scores(rollouts, reward_weights)
    informative = group_range(score, present, rollouts.group) > 0
    return rollouts.replace(valid=rollouts.valid * present * informative)
