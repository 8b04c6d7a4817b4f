"""Clips that follow the token's probability, its entropy, another policy or the batch, and log-ratios made for such clips."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable, require
from jaxrl_llm.numerics import MAX_LOG_RATIO, masked, over_segments, safe_divide
from jaxrl_llm.numerics import log_ratio as difference
from jaxrl_llm.objectives.base import logp_name, logp_of
from jaxrl_llm.objectives.batch_statistics import action_quantile, counted, masked_mean
from jaxrl_llm.objectives.ratios import TOKEN_RATIO, segment_total
from jaxrl_llm.objectives.trust import clipped_loss
from jaxrl_llm.types import Batch, Scores

# Entropies below e^-20 nats count alike, so that their logarithms stay finite.
SMALLEST_ENTROPY = 2e-9
# Of a grid that is searched at every step.
MOST_BOUNDS = 10_000


@composable(annotations=logp_name)
def probability_clip(
    log_ratio, scores: Scores, batch: Batch, *, low: float = 0.16, high: float = 0.2, dual: float = 10.0,
    against: str = "behavior",
):  # fmt: skip
    """The clip at the ratios r where |(r - 1) r| q = `low` below 1 and = `high` above it: wider for rarer tokens.

    That is from 1/2 + sqrt(max(1/4 - low / q, 0)) to min(1/2 + sqrt(1/4 + high / q), max(`dual`, 10)), with the probability q
    of the token under the old policy.

    Args:
      against: whose probability q is, that of the ratio: "behavior" or "proximal".

    Source: DCPO, https://arxiv.org/abs/2509.02333
    """
    inverse = jnp.exp(-jnp.maximum(masked(logp_of(against, batch), batch.mask), -60.0))
    lower = 0.5 + jnp.sqrt(jnp.maximum(0.25 - low * inverse, 0.0))
    upper = jnp.minimum(0.5 + jnp.sqrt(0.25 + high * inverse), max(dual, 10.0))
    return clipped_loss(jnp.exp(log_ratio), batch.advantage, lower, upper, dual)


@composable(annotations=("proximal_logp", "behavior_logp"))
def proximal_clip(log_ratio, scores: Scores, batch: Batch, *, low: float = 0.2, high: float = 0.2):
    """The clip of r = pi / mu to within p - low and p + high, with p = proximal / mu: around the policy before the updates.

    For samples of older policies, whose ratio to the sampler is far from 1 before the first update. On samples of the
    proximal policy itself it is `clip`.

    Source: ReMix, https://arxiv.org/abs/2507.06892; generalised PPO, https://arxiv.org/abs/2111.00072
    """
    proximal, behavior = (masked(logp_of(who, batch), batch.mask) for who in ("proximal", "behavior"))
    centre = jnp.exp(difference(proximal, behavior))
    return clipped_loss(jnp.exp(log_ratio), batch.advantage, centre - low, centre + high)


@composable(coupled=True)
def balanced_clip(
    log_ratio, scores: Scores, batch: Batch, *, lower: tuple[float, float] = (0.6, 0.9),
    upper: tuple[float, float] = (1.2, 3.0), step: float = 0.05, positive_share: float = 0.5, dual: float | None = 3.0,
):  # fmt: skip
    """The clip with the narrowest bounds at which positive advantages make up `positive_share` of the loss.

    Bounds are raised on a fixed grid, first the lower one from its first to its last value, then the upper one, until
    P / (P + N) >= `positive_share`, with P = sum over A >= 0 of min(r, upper) A and N = sum over A < 0 of max(r, lower) |A|,
    weighted as in the loss. Where no bounds reach it, the last ones stand.

    Args:
      lower: first and last lower bound of the ratio.
      upper: first and last upper bound of the ratio.
      step: distance of two bounds on the grid, which has at most 10,000 of them.
      positive_share: between 0 and 1.

    Raises ValueError: falling ranges, or a `step` of 0 or less, or one too small for the ranges.
    Source: BAPO, https://arxiv.org/abs/2510.18927
    """
    grid = jnp.asarray(_bound_grid(lower, upper, step))
    ratio, weight = jax.lax.stop_gradient(jnp.exp(log_ratio)), masked(batch.weight, batch.mask)
    advantage = masked(batch.advantage, counted(batch))

    def reached(bounds):
        positive = jnp.sum(weight * jnp.minimum(ratio, bounds[1]) * jnp.maximum(advantage, 0.0))
        negative = jnp.sum(weight * jnp.maximum(ratio, bounds[0]) * jnp.maximum(-advantage, 0.0))
        return positive >= positive_share * (positive + negative)

    enough = jax.lax.map(reached, grid)
    chosen = grid[jnp.where(enough.any(), jnp.argmax(enough), len(grid) - 1)]
    return clipped_loss(jnp.exp(log_ratio), batch.advantage, chosen[0], chosen[1], dual)


def _bound_grid(lower, upper, step: float) -> list[tuple[float, float]]:
    """Pairs of bounds in the order in which they are tried."""
    if step <= 0 or lower[0] > lower[1] or upper[0] > upper[1]:
        raise ValueError(f"lower={lower}, upper={upper}, step={step}: ranges must not fall and the step must be above 0")
    if lower[1] - lower[0] + upper[1] - upper[0] > MOST_BOUNDS * step:
        raise ValueError(f"step={step}: from lower={lower} to upper={upper} that is more than {MOST_BOUNDS} bounds")
    lows, highs = (_values(*ends, step) for ends in (lower, upper))
    return [(low, highs[0]) for low in lows] + [(lows[-1], high) for high in highs[1:]]


def _values(first: float, last: float, step: float) -> list[float]:
    count = int((last - first) / step + 1e-6)
    return [first + number * step for number in range(count)] + [last]


@composable(annotations=("proximal_entropy",), coupled=True)
def entropy_clip(
    log_ratio, scores: Scores, batch: Batch, *, low: float = 0.2, high: float = 0.2, widening: float = 1.0, level: float = 0.8,
    dual: float | None = 10.0,
):  # fmt: skip
    """The clip with a wider lower bound at tokens of low entropy and a wider upper bound at those of high entropy.

    With h in [-1, 1] of `relative_entropy`: from 1 - low (1 + `widening` max(-h, 0)) to 1 + high (1 + `widening` max(h, 0)).

    Args:
      widening: alpha, 0 for `clip`.
      level: quantile of the log-entropies at which h is 0.

    Source: HAPO, https://arxiv.org/abs/2509.16591; its released code has the lower bounds never widen, by a sign
    """
    below, above = _widened(low, high, relative_entropy(batch, level), widening)
    return clipped_loss(jnp.exp(log_ratio), batch.advantage, 1.0 - below, 1.0 + above, dual)


def _widened(low: float, high: float, entropy, widening: float):
    """How far [B, T] below and above 1 the bounds of `entropy_clip` lie."""
    return low * (1.0 + widening * jnp.maximum(-entropy, 0.0)), high * (1.0 + widening * jnp.maximum(entropy, 0.0))


@composable(annotations=("proximal_entropy",), coupled=True)
def entropy_scale(
    scores: Scores, batch: Batch, *, low: float = 0.2, high: float = 0.2, widening: float = 1.0, strength: float = 1.0,
    level: float = 0.8, ratio: Composable = TOKEN_RATIO,
):  # fmt: skip
    """Factor 1 + `strength` h of tokens, with h of `relative_entropy`, where the ratio and the entropy call for it.

    Tokens of high entropy (h > 0) count more where the ratio has left the inner half of the bounds of `entropy_clip`, those
    of low entropy count less where it is still within; 1 elsewhere.

    Args:
      low, high, widening, level: as in `entropy_clip`.
      strength: beta, between 0 and 1.

    Source: HAPO, https://arxiv.org/abs/2509.16591, with the widened bounds of https://github.com/starriver030515/HAPO
    """
    moved, entropy = jnp.exp(ratio(scores, batch)), relative_entropy(batch, level)
    below, above = _widened(low, high, entropy, widening)
    within = (moved > 1.0 - below / 2) & (moved < 1.0 + above / 2)
    return jnp.where(within == (entropy <= 0), 1.0 + strength * entropy, 1.0)


def relative_entropy(batch: Batch, level: float):
    """Log-entropy of each action relative to a quantile of the batch, scaled to 1 at the largest and -1 at the smallest."""
    actions = counted(batch)
    entropy = jnp.maximum(masked(batch.extras["proximal_entropy"], actions), SMALLEST_ENTROPY)
    distance = masked(jnp.log(entropy) - action_quantile(jnp.log(entropy), actions, level), actions)
    return jnp.where(distance > 0, safe_divide(distance, distance.max()), safe_divide(distance, -distance.min()))


BY = ("position", "entropy")
EPSILON = 1e-3  # nats: log-ratios that are all but 0 are left alone


@composable(annotations=lambda options: ("proximal_entropy",) if options["by"] == "entropy" else (), coupled=True)
def bucket_normalised(
    scores: Scores, batch: Batch, *, ratio: Composable = TOKEN_RATIO, by: str = "position", buckets: int = 8,
    shrinkage: float = 0.1,
):  # fmt: skip
    """Log-ratios x with nearly equal mean and deviation in all buckets: (x - mean_b) (s + e) / (s_b + e).

    mean_b and s_b are mean and population's deviation over the actions of the bucket, s is the deviation of what is left
    without the means of the buckets, over all actions, and e = `shrinkage` s + 0.001 nats; all without gradient. So an early
    and a late token, or a sure and an unsure one, are as often beyond the bounds of a clip. Where all log-ratios are 0 they
    stay so, with their own gradient.

    Args:
      by: "position", the place of the action among those of its sequence, or "entropy" (`proximal_entropy`), its rank among
        all actions. Actions without a weight do not count.
      buckets: number of equal parts of the sequence, or of the ranks.
      shrinkage: above 0; the larger, the more of its own deviation a bucket keeps. No log-ratio grows by more than the factor
        1 + 1 / `shrinkage`.

    Raises ValueError: an unknown `by`, fewer than 1 bucket, or a shrinkage that is not above 0.
    Source: the ratio normalisation of GRPO-Guard, https://arxiv.org/abs/2510.22319, with buckets for its steps of denoising
    """
    require(by in BY, "by", by, f"one of {BY}")
    if buckets < 1 or shrinkage <= 0:
        raise ValueError(f"buckets={buckets}, shrinkage={shrinkage}: there must be at least 1 bucket, and shrinkage above 0")
    found, actions = ratio(scores, batch), counted(batch)
    bucket = (_place if by == "position" else _entropy_rank)(batch, actions, buckets)
    values = masked(jax.lax.stop_gradient(found), actions)
    centred = masked(values - _bucket_mean(values, actions, bucket, buckets), actions)
    deviation = jnp.sqrt(masked_mean(jnp.square(centred), actions))
    own = jnp.sqrt(_bucket_mean(jnp.square(centred), actions, bucket, buckets))
    small = shrinkage * deviation + EPSILON
    scaled = (found - values + centred) * (deviation + small) / (own + small)
    return masked(jnp.clip(scaled, -MAX_LOG_RATIO, MAX_LOG_RATIO), actions)


def _bucket_mean(values, actions, bucket, buckets: int):
    """Mean of `values` [B, T] over the actions of each token's bucket, [B, T]; 0 where there is none."""
    total, number = (jax.ops.segment_sum(x.ravel(), bucket.ravel(), buckets) for x in (values * actions, actions))
    return safe_divide(total, number)[bucket]


def _place(batch: Batch, actions, buckets: int):
    """Which of `buckets` equal parts of its sequence's actions a token lies in, int [B, T]."""
    own = (actions > 0).astype(jnp.int32)
    before = jnp.cumsum(own, axis=1) - own
    start = over_segments(jax.ops.segment_min, before, batch.segment)
    length = jnp.maximum(segment_total(own, batch.segment), 1)
    return jnp.clip((before - start) * buckets // length, 0, buckets - 1)


def _entropy_rank(batch: Batch, actions, buckets: int):
    """Which of `buckets` equal parts of the ranks by entropy a token lies in, int [B, T]; equal entropies share a rank."""
    entropy = jnp.where(actions > 0, batch.extras["proximal_entropy"], jnp.inf)
    rank = jnp.searchsorted(jnp.sort(entropy.ravel()), entropy)
    number = jnp.maximum(actions.sum().astype(jnp.int32), 1)
    return jnp.clip(rank * buckets // number, 0, buckets - 1)
