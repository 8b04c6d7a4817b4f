"""The policy-gradient term, a ratio and a trust region, and what is measured of a policy beside its loss."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.numerics import MAX_LOG_RATIO, kl_estimate, masked, safe_divide, without_infinities
from jaxrl_llm.objectives.base import logp_name, logp_of, weighted_sum, with_factors
from jaxrl_llm.objectives.batch_statistics import counted, masked_mean
from jaxrl_llm.objectives.groups import find_groups, rollout_mean, rollout_sum
from jaxrl_llm.objectives.ratios import TOKEN_RATIO, token_ratio
from jaxrl_llm.objectives.trust import clip
from jaxrl_llm.types import Batch, Scores

CLIP = clip()


@composable
def policy(
    scores: Scores, batch: Batch, *, ratio: Composable | None = TOKEN_RATIO, trust: Composable = CLIP,
    factors: tuple[Composable, ...] = (),
):  # fmt: skip
    """Token loss of a policy-gradient method and its diagnostics.

    On policy the value of a group-relative surrogate is 0 whatever the policy learns, so its parts from actions with
    positive and with negative advantage are reported apart.

    Args:
      ratio: None for methods that use none.
      trust: token loss from the log-ratio.
      factors: functions `(scores, batch) -> factor` [B, T] of the token loss, without gradient: corrections of off-policy
        samples, masks of tokens. The weights of the batch, and so every denominator, stay as they are.

    Returns: token_loss [B, T] and metrics (see the functions below).
    """
    log_ratio = jnp.zeros_like(scores.logp) if ratio is None else ratio(scores, batch)
    known = scores.replace(logp=without_infinities(masked(scores.logp, batch.mask)))
    token_loss = with_factors(trust(log_ratio, known, batch), factors, scores, batch)
    metrics = surrogate_parts(token_loss, batch)
    if ratio is not None:
        metrics |= ratio_statistics(log_ratio, batch)
    if trust.function is clip.function:
        bounds = dict(trust.options)
        metrics |= clip_fractions(log_ratio, batch, bounds["low"], bounds["high"])
    return token_loss, metrics


def surrogate_parts(token_loss, batch: Batch) -> dict[str, jnp.ndarray]:
    """Weighted sums of the surrogate, to be maximised, over actions with positive and with negative advantage."""
    positive, negative = batch.advantage > 0, batch.advantage < 0
    return {
        "surrogate/positive_advantage": -weighted_sum(jnp.where(positive, token_loss, 0.0), batch),
        "surrogate/negative_advantage": -weighted_sum(jnp.where(negative, token_loss, 0.0), batch),
    }


def ratio_statistics(log_ratio, batch: Batch) -> dict[str, jnp.ndarray]:
    """Mean and largest importance ratio of the actions, and the KL divergence (nats) that it tells of."""
    actions = counted(batch)
    count = jnp.maximum(actions.sum(), 1.0)
    return {
        "ratio/mean": masked(jnp.exp(log_ratio), actions).sum() / count,
        "ratio/max": jnp.exp(jnp.where(actions > 0, log_ratio, -jnp.inf).max(initial=-jnp.inf)),
        "behavior_kl": masked(kl_estimate(jnp.zeros_like(log_ratio), log_ratio, "k3"), actions).sum() / count,
    }


def clip_fractions(log_ratio, batch: Batch, low: float, high: float) -> dict[str, jnp.ndarray]:
    """Shares of the actions whose gradient a clip at 1 - low or 1 + high removes."""
    actions = counted(batch)
    count = jnp.maximum(actions.sum(), 1.0)
    ratio = jnp.exp(log_ratio)
    return {
        "clip_fraction/low": masked((ratio < 1.0 - low) & (batch.advantage < 0), actions).sum() / count,
        "clip_fraction/high": masked((ratio > 1.0 + high) & (batch.advantage > 0), actions).sum() / count,
    }


@composable(annotations=logp_name)
def policy_gap(scores: Scores, batch: Batch, *, against: str = "behavior"):
    """A loss of 0 that measures how far the policy is from another one, over the actions and rollouts that count.

    With rho = pi / mu of a token and R the product of those of a rollout, each log kept within +-20:

    * "gap/perplexity": mean over rollouts of exp(-mean log pi), and "gap/perplexity_ratio" of exp(mean log mu - mean log pi);
    * "gap/chi_squared": mean of rho^2, less 1, and "gap/chi_squared_sequence" of R^2: the variance of importance weights;
    * "gap/effective_sample_size": (mean rho)^2 / mean(rho^2), the share of the actions that so weighted samples are worth.

    Source: diagnostics of verl, https://verl.readthedocs.io/en/latest/algo/rollout_corr.html
    """
    actions, groups = counted(batch), find_groups(batch)
    moved = jax.lax.stop_gradient(token_ratio.function(scores, batch, against=against))
    ratio = jnp.exp(moved)
    square = masked_mean(jnp.square(ratio), actions)
    own, other = (without_infinities(masked(logp, actions)) for logp in (scores.logp, logp_of(against, batch)))
    own, other = (rollout_mean(jax.lax.stop_gradient(logp), actions, groups.rollout) for logp in (own, other))
    product = jnp.clip(rollout_sum(moved, actions, groups.rollout), -MAX_LOG_RATIO, MAX_LOG_RATIO)
    some = (actions.sum() > 0).astype(jnp.float32)
    metrics = {
        "gap/perplexity": masked_mean(jnp.exp(jnp.minimum(-own, MAX_LOG_RATIO)), groups.counted),
        "gap/perplexity_ratio": masked_mean(jnp.exp(jnp.clip(other - own, -MAX_LOG_RATIO, MAX_LOG_RATIO)), groups.counted),
        "gap/chi_squared": square - some,
        "gap/chi_squared_sequence": masked_mean(jnp.exp(2.0 * product), groups.counted) - some,
        "gap/effective_sample_size": safe_divide(jnp.square(masked_mean(ratio, actions)), square),
    }
    return jnp.zeros_like(scores.logp), metrics
