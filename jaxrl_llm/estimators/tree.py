"""Credit from the tree that the answers to one prompt make by what they begin with."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable
from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.baselines import mean_baseline
from jaxrl_llm.estimators.pools import classes, group_mean
from jaxrl_llm.estimators.scales import std_scale
from jaxrl_llm.estimators.scores import row_scores
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts

MEAN, BESSEL = mean_baseline(), std_scale(degrees_of_freedom=1)


@stateless
def prefix_tree_advantage(
    rollouts: Rollouts,
    *,
    baseline: Composable | None = MEAN,
    scale: Composable | None = BESSEL,
    reward_weights: tuple[float, ...] | None = None,
) -> Rollouts:
    """Outcome against the group, and at branches of the tree of answers what the token taken is worth more than the others.

    V(prefix) is the mean score of the rows of the group that begin with it, and the advantage of token t is
    (R - b + V(tokens up to t) - V(tokens before t)) / s. The difference of values is 0 wherever all rows that came so far go on
    alike, and so it is all along a row that shares its first action with no other, but there.

    Args:
      rollouts: N rows whose prompts are alike within a group, place by place.
      baseline: b, as in `group_advantage`.
      scale: s, as in `group_advantage`.
      reward_weights: factor of each reward component; 1 by default.

    Source: TEMPO, https://arxiv.org/abs/2509.18314
    """
    score, present = row_scores(rollouts, reward_weights)
    width = rollouts.tokens.shape[1]
    tokens = jnp.where(jnp.arange(width) < rollouts.length[:, None], rollouts.tokens, -1)

    def descend(carry, token):
        prefix, before = carry
        prefix = classes(prefix, token)
        after = group_mean(score, present, prefix)
        return (prefix, after), after - before

    start = (rollouts.group.astype(jnp.int32), group_mean(score, present, rollouts.group))
    gains = jax.lax.scan(descend, start, tokens.T)[1].T
    outcome = score if baseline is None else score - baseline(score, present, rollouts)
    advantage = outcome[:, None] + gains
    if scale is not None:
        advantage = safe_divide(advantage, scale(score, present, rollouts)[:, None])
    taken = rollouts.mask * present[:, None]
    return rollouts.replace(advantage=masked(advantage, taken), valid=rollouts.valid * present)
