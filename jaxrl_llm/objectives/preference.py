"""Losses on pairs of which one member is preferred."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.objectives.base import coefficient_value, traits
from jaxrl_llm.objectives.pairs import at_end, find_pairs, pair_statistics, pair_to_tokens, rollout_sum, two_sides
from jaxrl_llm.types import Batch, Scores


@composable(needs=("value",), annotations=("preference",))
@traits(coupled=True, reads_logp=False)
def bradley_terry(scores: Scores, batch: Batch, *, center: float | str = 0.0):
    """-log sigmoid(r_chosen - r_rejected - margin) + `center` (r_chosen + r_rejected)^2 of each pair.

    The reward r of a rollout is `scores.value` at its last place. As a value belongs to the state before its place, a
    rollout has to end with one place more than its text, as those of `data.preference_rollouts` do: then r is what the
    value head says of the last token of the text. The margin is `batch.extras["margin"]`, where that is given.

    Each pair counts by the weights of its actions (`estimators.pair_mean`: the mean over pairs). A group that does not
    have exactly one preferred and one rejected rollout with an action contributes 0.

    Args:
      center: factor of the square that keeps rewards around 0, or the name of a scalar in `batch.coefficients`.

    Source: Bradley-Terry reward models, https://arxiv.org/abs/2203.02155, equation 1; margin, Llama 2,
      https://arxiv.org/abs/2307.09288, equation 2; centring, https://arxiv.org/abs/2312.09244.
    """
    pairs, last = find_pairs(batch), at_end(batch)

    def sides(per_token):
        return two_sides(rollout_sum(per_token, last, pairs.rollout), pairs)

    chosen, rejected = sides(scores.value)
    margin, _ = sides(batch.extras.get("margin", jnp.zeros_like(batch.weight)))
    loss = jax.nn.softplus(margin - (chosen - rejected))
    loss += coefficient_value(center, batch) * jnp.square(chosen + rejected)
    return pair_to_tokens(loss, pairs), pair_statistics(chosen, rejected, pairs)
