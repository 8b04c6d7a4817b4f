"""Log importance ratios [B, T] (nats) between the policy and the one that sampled."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.numerics import log_ratio, masked, safe_divide
from jaxrl_llm.objectives.base import logp_name, logp_of
from jaxrl_llm.types import Batch, Scores


def segment_total(per_token, segment):
    """Sum of `per_token` [B, T] over each token's own sequence within its row, at every token of it, [B, T]."""

    def row(values, numbers):
        return jax.ops.segment_sum(values, numbers, num_segments=values.shape[0] + 1)[numbers]

    return jax.vmap(row)(per_token, segment)


@composable(annotations=logp_name)
def token_ratio(scores: Scores, batch: Batch, *, against: str = "behavior"):
    """log pi(token) - log mu(token) of each action.

    Args:
      against: whose probability mu is: "behavior" (the sampler), "proximal" (the policy before the step's updates),
        "reference" or "teacher".

    Source: PPO, https://arxiv.org/abs/1707.06347; decoupled PPO for "proximal", https://arxiv.org/abs/2110.00641
    """
    return masked(log_ratio(masked(scores.logp, batch.mask), masked(logp_of(against, batch), batch.mask)), batch.mask)


@composable(annotations=logp_name)
def sequence_ratio(scores: Scores, batch: Batch, *, against: str = "behavior"):
    """Mean over the actions of a sequence of their log-ratios, at every action of it: the length-normalised ratio.

    Source: GSPO, https://arxiv.org/abs/2507.18071
    """
    per_token = token_ratio.function(scores, batch, against=against)
    actions = (batch.mask > 0).astype(per_token.dtype)
    mean = safe_divide(segment_total(per_token, batch.segment), segment_total(actions, batch.segment))
    return jnp.where(actions > 0, mean, 0.0)
