"""Policy gradients of a policy that is cut to the answers which may be given at all."""

import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.numerics import MAX_LOG_RATIO, masked, without_infinities
from jaxrl_llm.objectives.base import traits
from jaxrl_llm.objectives.groups import find_groups, group_logmeanexp, rollout_mean, rollout_sum, rollout_to_tokens
from jaxrl_llm.objectives.ratios import token_ratio
from jaxrl_llm.types import Batch, Scores


@composable(annotations=("behavior_logp",))
@traits(coupled=True)
def truncated_policy(scores: Scores, batch: Batch):
    """-A (log pi(y) - log P(V)) of each rollout y: REINFORCE of the policy cut to the set V of feasible answers.

    P(V), the probability of the set for the prompt, is estimated up to a constant by the rollouts z of the group that have a
    weight: the mean of pi(z) / mu(z), where mu sampled them. On policy its gradient is the mean of theirs, so that a constant
    in A has no influence. Log-ratios of whole answers are kept within +-20 nats. Infeasible rollouts have to be without weight.

    Source: TabNAS, https://arxiv.org/abs/2204.07615
    """
    groups = find_groups(batch)
    advantage = rollout_mean(batch.advantage, batch.mask, groups.rollout)
    logp = rollout_sum(without_infinities(masked(scores.logp, batch.mask)), batch.mask, groups.rollout)
    moved = rollout_sum(token_ratio.function(scores, batch), batch.mask, groups.rollout)
    feasible = group_logmeanexp(jnp.clip(moved, -MAX_LOG_RATIO, MAX_LOG_RATIO), groups.counted, groups)
    return rollout_to_tokens(-advantage * (logp - feasible), groups), {}
