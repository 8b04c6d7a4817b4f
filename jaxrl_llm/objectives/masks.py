"""Masks and scales of tokens, factors `(scores, batch) -> factor` [B, T] of a policy term; some follow the whole batch."""

import math

import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable, require
from jaxrl_llm.numerics import log_ratio, masked, materialised
from jaxrl_llm.objectives import batch_statistics
from jaxrl_llm.objectives.base import logp_name, logp_of
from jaxrl_llm.objectives.batch_statistics import counted, from_quantile, log_probability_covariance, share_count, smallest
from jaxrl_llm.objectives.ratios import TOKEN_RATIO
from jaxrl_llm.types import Batch, Scores


@composable(annotations=logp_name)
def divergence_mask(
    scores: Scores, batch: Batch, *, kind: str = "tv", low: float = 0.15, high: float = 0.15, symmetric: bool = False,
    against: str = "behavior",
):  # fmt: skip
    """0 where the update would carry a token further from the old policy than a bound on a divergence allows, else 1.

    The divergence is that of the distributions over {this token, any other}, which the probabilities p of the policy and q of
    the old one give: "tv" |p - q|, or "kl" q log(q / p) + (1 - q) log((1 - q) / (1 - p)), in nats. A token of positive
    advantage is masked above `high` where p > q, another one above `low` where p < q.

    With `unclipped` it is the loss of the paper, of SkyRL and of prime-rl; with `cispo(high=c - 1)` that of verl, whose weight
    is min(r, c) without gradient.

    Args:
      kind: "tv" or "kl".
      low: bound for A <= 0.
      high: bound for A > 0.
      symmetric: whether also an update that leads back is masked beyond its bound (the "ipo" loss of prime-rl).
      against: whose probability q is, that of the ratio: "behavior" or "proximal".

    Raises ValueError: an unknown kind.
    Source: DPPO, https://arxiv.org/abs/2602.04879
    """
    require(kind in ("tv", "kl"), "kind", kind, "'tv' or 'kl'")
    logp, old_logp = (jnp.minimum(masked(x, batch.mask), 0.0) for x in (scores.logp, logp_of(against, batch)))
    change = jnp.exp(logp) - jnp.exp(old_logp)
    distance = jnp.abs(change) if kind == "tv" else _binary_kl(logp, old_logp)
    positive = batch.advantage > 0
    away = jnp.where(positive, change > 0, change < 0) | symmetric
    return 1.0 - away * (distance > jnp.where(positive, high, low))


def _binary_kl(logp, old_logp):
    """KL of {token, any other} from the old policy to the new one, nats; 1e-8 keeps it finite at certainty, as in verl."""
    rest, old_rest = (1e-8 - jnp.expm1(x) for x in (logp, old_logp))
    return jnp.exp(old_logp) * log_ratio(old_logp, logp) - jnp.expm1(old_logp) * jnp.log(old_rest / rest)


@composable
def ring_mask(
    scores: Scores, batch: Batch, *, low: float = 0.2, high: float = 0.2, far_low: float | None = None,
    far_high: float | None = None, two_sided: bool = False, ratio: Composable = TOKEN_RATIO,
):  # fmt: skip
    """1 where the clip of PPO keeps the gradient of a token, else 0: a clip for losses that have no ratio.

    One-sided: 1 where A >= 0 and r <= 1 + `high`, or A <= 0 and r >= 1 - `low`. Two-sided: 1 where r is within both bounds. A
    ring is the two-sided mask, and beyond it also A >= 0 with r <= 1 - `far_low`, or A <= 0 with r >= 1 + `far_high`: updates
    that lead back from far outside.

    Args:
      far_low: of the ring; below 1 - `far_low` positive advantages train again.
      far_high: of the ring; above 1 + `far_high` negative advantages train again.
      two_sided: whether both bounds hold for every advantage.

    Raises ValueError: bounds of a ring that is not two-sided.
    Source: REC, https://arxiv.org/abs/2509.24203
    """
    if not two_sided and (far_low is not None or far_high is not None):
        raise ValueError(f"far_low={far_low}, far_high={far_high} belong to two_sided=True; the one-sided mask ignores them")
    moved, advantage = jnp.exp(ratio(scores, batch)), batch.advantage
    above, below = moved <= 1.0 + high, moved >= 1.0 - low
    if not two_sided:
        return (((advantage >= 0) & above) | ((advantage <= 0) & below)).astype(jnp.float32)
    kept = above & below
    if far_low is not None:
        kept |= (advantage >= 0) & (moved <= 1.0 - far_low)
    if far_high is not None:
        kept |= (advantage <= 0) & (moved >= 1.0 + far_high)
    return kept.astype(jnp.float32)


@composable
def focal(scores: Scores, batch: Batch, *, power: float = 0.5):
    """(1 - pi)^`power` of each token: tokens that the policy already gives count less.

    Source: the exploration-based advantage of RL-PLUS, https://arxiv.org/abs/2508.00222
    """
    probability = jnp.exp(jnp.minimum(masked(scores.logp, batch.mask), 0.0))
    return (1.0 - probability) ** power


@composable
def positive_advantage(scores: Scores, batch: Batch):
    """1 where A > 0, else 0: only what was better than expected is learned from.

    Source: A-LoL, https://arxiv.org/abs/2305.14718
    """
    return (batch.advantage > 0).astype(jnp.float32)


@composable(
    needs=lambda options: ("entropy",) if options["of"] == "policy" else (),
    annotations=lambda options: () if options["of"] == "policy" else (f"{options['of']}_entropy",),
    coupled=True,
)
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


@composable(coupled=True)
def covariance_clip_mask(
    scores: Scores, batch: Batch, *, share: float = 2e-4, lowest: float = 1.0, highest: float = 5.0, low: float = 1.0,
    high: float = 1.0, ratio: Composable = TOKEN_RATIO, seed: int = 0,
):  # fmt: skip
    """0 at a random few of the actions whose log-probability and advantage vary together most, 1 elsewhere.

    Candidates are actions whose covariance (`log_probability_covariance`, over the whole batch) lies between `lowest` and
    `highest` and that the clip to 1 - `low`, 1 + `high` leaves alone. Of them `share` times the number of all actions, at
    least one, are drawn by `token_uniform`: the draw belongs to the token and the step, not to packing or order.

    Args:
      share: of all actions.
      lowest, highest: bounds of the covariance.
      low, high: as in the `clip` of the same policy term.
      ratio: that of the policy term.
      seed: of the draw.

    Source: Clip-Cov, https://arxiv.org/abs/2505.22617
    """
    actions, moved = counted(batch), jnp.exp(ratio(scores, batch))
    covariance = log_probability_covariance(scores.logp, batch)
    above, below = (moved > 1.0 + high) & (batch.advantage > 0), (moved < 1.0 - low) & (batch.advantage < 0)
    candidates = actions * (covariance > lowest) * (covariance < highest) * ~(above | below)
    return 1.0 - smallest(batch_statistics.token_uniform(batch, seed), candidates, share_count(share, actions))


@composable(coupled=True)
def top_covariance_mask(scores: Scores, batch: Batch, *, share: float = 2e-3):
    """1 at the `share` of the actions, at least one, of the largest covariance of log-probability and advantage.

    Equal covariances at the threshold enter together.

    Source: KL-Cov, https://arxiv.org/abs/2505.22617
    """
    actions = counted(batch)
    covariance = log_probability_covariance(scores.logp, batch)
    return smallest(-covariance, actions, share_count(share, actions)).astype(jnp.float32)


@composable(coupled=True)
def second_moment_mask(
    scores: Scores, batch: Batch, *, budget: float = 0.04, harmful_only: bool = False, ratio: Composable = TOKEN_RATIO
):
    """0 at the actions of the largest squared log-ratios, just so many that the mean square of the rest is below `budget`.

    Equal squares stay or leave together.

    Args:
      budget: squared nats.
      harmful_only: whether only actions that the clip of PPO could touch (A > 0 and r > 1, or A < 0 and r < 1) are counted
        and masked, as in the authors' code; by default all are, as in the paper.

    Source: M2PO, https://arxiv.org/abs/2510.01161
    """
    moved = ratio(scores, batch)
    actions = counted(batch)
    if harmful_only:
        actions = actions * (masked(batch.advantage, actions) * moved > 0)
    squared = materialised(jnp.square(moved))
    ordered, count = batch_statistics.sorted_actions(squared, actions)
    place = jnp.arange(ordered.size)
    mean = jnp.cumsum(ordered) / (place + 1)
    # Where several are equal, the last of them tells whether all fit.
    last = jnp.searchsorted(jnp.where(place < count, ordered, jnp.inf), ordered, side="right") - 1
    fits = (place < count) & (mean[last] < budget)
    threshold = jnp.where(fits, ordered, -1.0).max()
    return jnp.where(actions > 0, squared <= threshold, 1.0)


@composable(annotations=("accuracy",))
def difficulty_weight(scores: Scores, batch: Batch, *, steepness: float = math.e):
    """1 - exp(-`steepness` a) where A > 0 and the share a of right answers to the prompt is neither 0 nor 1; 1 elsewhere.

    As a factor of a KL term it lets the policy go further from the reference on what it does well at hard prompts.

    Args:
      steepness: above 0; the larger, the fewer prompts count as hard.

    Raises ValueError: `steepness` is not above 0.
    Source: difficulty-adaptive divergence shaping, https://arxiv.org/abs/2506.21655
    """
    require(steepness > 0, "steepness", steepness, "above 0")
    accuracy = masked(batch.extras["accuracy"], batch.mask)
    eased = (batch.advantage > 0) & (accuracy > 0) & (accuracy < 1)
    return jnp.where(eased, -jnp.expm1(-steepness * accuracy), 1.0)
