"""Preferences between whole distributions of rewards."""

import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.numerics import MAX_LOG_RATIO, masked, safe_divide
from jaxrl_llm.objectives.base import traits
from jaxrl_llm.objectives.groups import rollout_sum
from jaxrl_llm.objectives.pairs import find_pairs, pair_statistics, pair_to_tokens, two_sides
from jaxrl_llm.objectives.preference_links import sigmoid_link
from jaxrl_llm.types import Batch, Scores

SIGMOID = sigmoid_link()


@composable(annotations=("preference", "reference_logp"))
@traits(coupled=True)
def quantile_preference(scores: Scores, batch: Batch, *, link: Composable = SIGMOID, paired: bool = True):
    """Mean over k of `link(x_k, y_k)`, where x_k and y_k are the k-th smallest of two quantities of the pairs of a batch.

    With `paired`, x is the difference of the log-probabilities of the two sides under the policy and y that under the
    reference; otherwise x is the log-ratio of the preferred and y that of the other rollouts. Distributions are compared,
    not the members of each pair: the one of x shall lie above that of y everywhere.

    Every complete pair counts alike in the mean, which counts by the sum of their weights. Log-probabilities below -20 nats
    count as -20.

    Args:
      link: as in `preference`; its smoothing is the paper's for wrong labels.
      paired: "AOT" for pairs; False is the paper's variant for data without pairs, here for equal numbers of both.

    Source: alignment via optimal transport, https://arxiv.org/abs/2406.05882
    """
    pairs = find_pairs(batch)

    def sides(logp):
        bounded = jnp.maximum(masked(logp, batch.mask), -MAX_LOG_RATIO)
        return two_sides(rollout_sum(bounded, batch.mask, pairs.rollout), pairs)

    (chosen, rejected), (reference_chosen, reference_rejected) = sides(scores.logp), sides(batch.reference_logp)
    to_reference = (chosen - reference_chosen, rejected - reference_rejected)
    compared = (chosen - rejected, reference_chosen - reference_rejected) if paired else to_reference
    complete = two_sides(jnp.ones_like(pairs.chosen), pairs)[0]
    there = jnp.arange(complete.size) < complete.sum()
    ordered = (masked(jnp.sort(jnp.where(complete > 0, value, jnp.inf)), there) for value in compared)
    loss = safe_divide(masked(link(*ordered), there).sum(), complete.sum())
    return pair_to_tokens(jnp.full_like(complete, loss), pairs), pair_statistics(*to_reference, pairs)
