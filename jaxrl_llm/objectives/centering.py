"""Scores centred under the sampler: what a policy gradient gains on samples of another policy by an expectation of 0."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.numerics import masked, without_infinities
from jaxrl_llm.types import Batch, Scores

# The least mass behind the candidates, as in `candidates.distributions`.
_LEAST = 1e-6


@composable(needs=("candidate_logp",), annotations=("candidates", "proximal_candidate_logp"))
def score_centering(
    scores: Scores, batch: Batch, *, candidates: Composable, low: float | None = None, high: float | None = None
):
    """A sum_{v in H} sg(m(v) - alpha p(v)) log p(v): what makes the score of -A log p(token) one of mean 0 under the sampler.

    p is the policy that trains, q the policy before the step's updates, which stands for the sampler, H the candidates, and
    rho = (1 - q(H)) / (1 - p(H)): behind the candidates q is taken for rho p. Without bounds m = q and alpha = rho. With bounds
    of the importance weight p / q that the policy term has, m(v) = clip(p(v), low q(v), high q(v)) and alpha = clip(1, low rho,
    high rho). On policy it is 0. Masses behind the candidates count as 1e-6 at least.

    Args:
      candidates: the rule that fills `batch.extras["candidates"]`, `top(of="proximal", ...)`.
      low: lower bound of the importance weight; None with None for `high` where the policy term has no weight.
      high: upper bound of the importance weight.

    Raises:
      ValueError: bounds of a weight that are negative or not in order.

    Source: https://arxiv.org/abs/2609.20807
    """
    del candidates  # who fills the batch reads it
    if low is not None and low < 0 or high is not None and high < (low or 0.0):
        raise ValueError(f"low={low}, high={high}: bounds of a weight are 0 or more and in order")
    inside = batch.mask[..., None]
    ours, theirs = masked(scores.candidate_logp, inside), masked(batch.extras["proximal_candidate_logp"], inside)
    p, q = jnp.exp(jax.lax.stop_gradient(ours)), jnp.exp(theirs)
    rho = _behind(q) / _behind(p)
    unweighted = low is None and high is None
    mean = q if unweighted else _bounded(p, q, low, high)
    alpha = rho if unweighted else _bounded(1.0, rho, low, high)
    return batch.advantage * jnp.sum((mean - alpha * p) * without_infinities(ours), axis=-1), {}


def _behind(probabilities):
    """Mass [..., 1] of the tokens that are no candidates."""
    return jnp.maximum(1.0 - probabilities.sum(axis=-1, keepdims=True), _LEAST)


def _bounded(value, scale, low: float | None, high: float | None):
    """`value` within `low` and `high` times `scale`."""
    return jnp.clip(value, None if low is None else low * scale, None if high is None else high * scale)
