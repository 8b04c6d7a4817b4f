"""Masks of tokens that follow statistics of the whole batch, factors `(scores, batch) -> factor` [B, T] of a policy term."""

import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.numerics import masked, materialised
from jaxrl_llm.objectives.base import traits
from jaxrl_llm.objectives.batch_statistics import (
    counted,
    from_quantile,
    log_probability_covariance,
    share_count,
    smallest,
    sorted_actions,
    token_uniform,
)
from jaxrl_llm.objectives.ratios import TOKEN_RATIO
from jaxrl_llm.types import Batch, Scores


def _policy_entropy(options: dict) -> tuple[str, ...]:
    return ("entropy",) if options["of"] == "policy" else ()


def _other_entropy(options: dict) -> tuple[str, ...]:
    return () if options["of"] == "policy" else (f"{options['of']}_entropy",)


@composable(needs=_policy_entropy, annotations=_other_entropy)
@traits(coupled=True)
def top_entropy_mask(scores: Scores, batch: Batch, *, share: float = 0.2, of: str = "policy"):
    """1 at the `share` of the actions whose distributions have the highest entropy, 0 elsewhere.

    The threshold is the quantile 1 - `share` of all actions that count in the batch, whatever the micro-batches.

    Args:
      share: of the actions, between 0 and 1.
      of: whose entropy: "policy" (as it trains) or "proximal" (as it was before the step's updates).

    Source: the 80/20 rule, https://arxiv.org/abs/2506.01939
    """
    entropy = scores.entropy if of == "policy" else batch.extras[f"{of}_entropy"]
    actions = counted(batch)
    entropy = masked(entropy, actions)
    return from_quantile(entropy, actions, 1.0 - share).astype(jnp.float32)


@composable
@traits(coupled=True)
def covariance_clip_mask(
    scores: Scores,
    batch: Batch,
    *,
    share: float = 2e-4,
    lowest: float = 1.0,
    highest: float = 5.0,
    low: float = 1.0,
    high: float = 1.0,
    ratio: Composable = TOKEN_RATIO,
    seed: int = 0,
):
    """0 at a random few of the actions whose log-probability and advantage vary together most, 1 elsewhere.

    Candidates are actions whose covariance (`log_probability_covariance`, over the whole batch) lies between `lowest` and
    `highest` and that the clip to 1 - `low`, 1 + `high` leaves alone. Of them `share` times the number of all actions, at
    least one, are drawn by `token_uniform`: the draw belongs to the token and the step, not to packing or order.

    Args:
      share: of all actions.
      lowest: bound of the covariance.
      highest: bound of the covariance.
      low: as in the `clip` of the same policy term.
      high: as in the `clip` of the same policy term.
      ratio: that of the policy term.
      seed: of the draw.

    Source: Clip-Cov, https://arxiv.org/abs/2505.22617
    """
    actions, moved = counted(batch), jnp.exp(ratio(scores, batch))
    covariance = log_probability_covariance(scores.logp, batch)
    above, below = (moved > 1.0 + high) & (batch.advantage > 0), (moved < 1.0 - low) & (batch.advantage < 0)
    candidates = actions * (covariance > lowest) * (covariance < highest) * ~(above | below)
    return 1.0 - smallest(token_uniform(batch, seed), candidates, share_count(share, actions))


@composable
@traits(coupled=True)
def top_covariance_mask(scores: Scores, batch: Batch, *, share: float = 2e-3):
    """1 at the `share` of the actions, at least one, of the largest covariance of log-probability and advantage.

    Equal covariances at the threshold enter together.

    Source: KL-Cov, https://arxiv.org/abs/2505.22617
    """
    actions = counted(batch)
    covariance = log_probability_covariance(scores.logp, batch)
    return smallest(-covariance, actions, share_count(share, actions)).astype(jnp.float32)


@composable
@traits(coupled=True)
def second_moment_mask(
    scores: Scores, batch: Batch, *, budget: float = 0.04, harmful_only: bool = False, ratio: Composable = TOKEN_RATIO
):
    """0 at the actions of the largest squared log-ratios, just so many that the mean square of the rest is below `budget`.

    Equal squares stay or leave together.

    Args:
      budget: squared nats.
      harmful_only: whether only actions that the clip of PPO could touch (A > 0 and r > 1, or A < 0 and r < 1) are counted
        and masked, as in the authors' code; by default all are, as in the paper.
      ratio: log importance ratio.

    Source: M2PO, https://arxiv.org/abs/2510.01161
    """
    moved = ratio(scores, batch)
    actions = counted(batch)
    if harmful_only:
        actions = actions * (masked(batch.advantage, actions) * moved > 0)
    squared = materialised(jnp.square(moved))
    ordered, count = sorted_actions(squared, actions)
    place = jnp.arange(ordered.size)
    mean = jnp.cumsum(ordered) / (place + 1)
    # Where several are equal, the last of them tells whether all fit.
    last = jnp.searchsorted(jnp.where(place < count, ordered, jnp.inf), ordered, side="right") - 1
    fits = (place < count) & (mean[last] < budget)
    threshold = jnp.where(fits, ordered, -1.0).max()
    return jnp.where(actions > 0, squared <= threshold, 1.0)
