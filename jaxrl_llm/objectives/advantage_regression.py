"""Regression of the advantage that a policy implies for the answers of a group."""

import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.objectives.base import traits
from jaxrl_llm.objectives.groups import find_groups, group_mean, rollout_mean, rollout_sum, rollout_to_tokens
from jaxrl_llm.objectives.ratios import TOKEN_RATIO
from jaxrl_llm.types import Batch, Scores


@composable
@traits(coupled=True)
def advantage_regression(scores: Scores, batch: Batch, *, epsilon: float = 1e-4, ratio: Composable = TOKEN_RATIO):
    """(A - (l - mean l) / (std l + `epsilon`))^2 of each rollout, l being the sum over its actions of `ratio`.

    Mean and standard deviation are over the rollouts of the group, A is the mean of the rollout's advantages. The scaled
    log-ratios are the advantages under which the policy would be optimal. While the policy has not left the sampler, l is 0
    for all, and the gradient is 2 / `epsilon` times that of REINFORCE with centred advantages: clip its norm.

    Args:
      epsilon: keeps the division finite, above 0.
      ratio: log-ratio of a token.

    Raises:
      ValueError: `epsilon` is 0 or less.

    Source: Reg-GRPO, https://arxiv.org/abs/2506.07464, equations 7 and 8, without `epsilon`
    """
    if epsilon <= 0:
        raise ValueError(f"epsilon is {epsilon}; it must be above 0, as log-ratios may all be equal")
    groups = find_groups(batch)
    everyone = groups.counted
    total = rollout_sum(ratio(scores, batch), batch.mask, groups.rollout)
    centred = total - group_mean(total, everyone, groups)
    variance = group_mean(jnp.square(centred), everyone, groups)
    spread = variance > 0
    deviation = jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1.0)), 0.0)
    advantage = rollout_mean(batch.advantage, batch.mask, groups.rollout)
    return rollout_to_tokens(jnp.square(advantage - centred / (deviation + epsilon)), groups), {}
