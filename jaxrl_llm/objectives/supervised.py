"""Imitation of given tokens."""

import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable, require
from jaxrl_llm.numerics import masked, safe_divide, without_infinities
from jaxrl_llm.objectives.base import coefficient_value, with_factors
from jaxrl_llm.objectives.groups import find_groups, rollout_sum, rollout_to_tokens
from jaxrl_llm.types import Batch, Scores


@composable
def negative_log_likelihood(scores: Scores, batch: Batch, *, coefficient: float = 1.0, factors: tuple[Composable, ...] = ()):
    """-`coefficient` log pi(token) of each token of the mask, in nats, times `factors`.

    Args:
      factors: functions `(scores, batch) -> factor` [B, T], without gradient, such as `probability()`.
    """
    loss = -coefficient * without_infinities(masked(scores.logp, batch.mask))
    return with_factors(loss, factors, scores, batch), {}


@composable
def sequence_likelihood(scores: Scores, batch: Batch, *, coefficient: float = 1.0):
    """-`coefficient` log pi of each rollout, the sum over its actions (nats); a rollout counts by the sum of its weights.

    A negative coefficient takes likelihood away, as from samples of the reference in XPO, https://arxiv.org/abs/2405.21046.
    """
    groups = find_groups(batch)
    total = rollout_sum(without_infinities(scores.logp), batch.mask, groups.rollout)
    return rollout_to_tokens(-coefficient * total, groups), {}


@composable
def probability(scores: Scores, batch: Batch):
    """pi(token): as a factor of the likelihood it takes away the 1 / pi in the gradient.

    Source: DFT, https://arxiv.org/abs/2508.05629
    """
    return jnp.exp(masked(scores.logp, batch.mask))


@composable
def uncertainty(scores: Scores, batch: Batch):
    """pi(token) (1 - pi(token)): neither tokens that are certain nor those that seem impossible.

    Source: CHORD-phi, https://arxiv.org/abs/2508.11408
    """
    chance = probability.function(scores, batch)
    return chance * (1.0 - chance)


@composable(needs=("mean_logp",))
def label_smoothing(scores: Scores, batch: Batch, *, smoothing: float = 0.1):
    """-(1 - e) log pi(token) - e (mean over the vocabulary of log pi), e = `smoothing`: imitation of a softened token.

    Raises ValueError: `smoothing` is outside of [0, 1].
    Source: https://arxiv.org/abs/1512.00567, section 7
    """
    require(0 <= smoothing <= 1, "smoothing", smoothing, "from 0 to 1")
    token, mean = (without_infinities(masked(logp, batch.mask)) for logp in (scores.logp, scores.mean_logp))
    return -(1.0 - smoothing) * token - smoothing * mean, {}


@composable
def blended(scores: Scores, batch: Batch, *, first: Composable, second: Composable, share: float | str):
    """(1 - `share`) times the first term plus `share` times the second.

    Args:
      first, second: any term of an objective.
      share: a number, or the name of a scalar in `batch.coefficients`.

    Source: CHORD, https://arxiv.org/abs/2508.11408, whose share decays
    """
    mu = coefficient_value(share, batch)
    (one, found), (other, more) = first(scores, batch), second(scores, batch)
    return (1.0 - mu) * one + mu * other, found | more


@composable(coupled=True)
def own_mean(scores: Scores, batch: Batch, *, term: Composable):
    """A term divided by the sum of the weights that it sees: within `by_source`, each source's mean is its own.

    Weights of 0 give 0.
    """
    token_loss, metrics = term(scores, batch)
    return safe_divide(token_loss, masked(batch.weight, batch.mask).sum()), metrics
