"""Log-ratios that are made alike over places or entropies before a clip looks at them."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.numerics import MAX_LOG_RATIO, masked, safe_divide
from jaxrl_llm.objectives.base import traits
from jaxrl_llm.objectives.batch_statistics import action_mean, counted
from jaxrl_llm.objectives.ratios import TOKEN_RATIO, segment_total
from jaxrl_llm.types import Batch, Scores

BY = ("position", "entropy")
EPSILON = 1e-3  # nats: log-ratios that are all but 0 are left alone


@composable(annotations=lambda options: ("proximal_entropy",) if options["by"] == "entropy" else ())
@traits(coupled=True)
def bucket_normalised(
    scores: Scores,
    batch: Batch,
    *,
    ratio: Composable = TOKEN_RATIO,
    by: str = "position",
    buckets: int = 8,
    shrinkage: float = 0.1,
):
    """Log-ratios x with nearly equal mean and deviation in all buckets: (x - mean_b) (s + e) / (s_b + e).

    mean_b and s_b are mean and population's deviation over the actions of the bucket, s is the deviation of what is left
    without the means of the buckets, over all actions, and e = `shrinkage` s + 0.001 nats; all without gradient. So an early
    and a late token, or a sure and an unsure one, are as often beyond the bounds of a clip. Where all log-ratios are 0 they
    stay so, with their own gradient.

    Args:
      ratio: of a token.
      by: "position", the place of the action among those of its sequence, or "entropy" (`proximal_entropy`), its rank among
        all actions. Actions without a weight do not count.
      buckets: number of equal parts of the sequence, or of the ranks.
      shrinkage: above 0; the larger, the more of its own deviation a bucket keeps. No log-ratio grows by more than the factor
        1 + 1 / `shrinkage`.

    Raises:
      ValueError: an unknown `by`, fewer than 1 bucket, or a shrinkage that is not above 0.

    Source: the ratio normalisation of GRPO-Guard, https://arxiv.org/abs/2510.22319, with buckets for its steps of denoising
    """
    if by not in BY:
        raise ValueError(f"by is {by!r}; it must be one of {BY}")
    if buckets < 1 or shrinkage <= 0:
        raise ValueError(f"buckets={buckets}, shrinkage={shrinkage}: there must be at least 1 bucket, and shrinkage above 0")
    found, actions = ratio(scores, batch), counted(batch)
    bucket = (_place if by == "position" else _entropy_rank)(batch, actions, buckets)
    values = masked(jax.lax.stop_gradient(found), actions)
    centred = masked(values - _bucket_mean(values, actions, bucket, buckets), actions)
    deviation = jnp.sqrt(action_mean(jnp.square(centred), actions))
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
    start = _segment_start(before, batch.segment)
    length = jnp.maximum(segment_total(own, batch.segment), 1)
    return jnp.clip((before - start) * buckets // length, 0, buckets - 1)


def _segment_start(rising, segment):
    """The smallest of the values [B, T], which rise along a row, of each token's own sequence."""

    def row(values, numbers):
        return jax.ops.segment_min(values, numbers, num_segments=values.shape[0] + 1)[numbers]

    return jax.vmap(row)(rising, segment)


def _entropy_rank(batch: Batch, actions, buckets: int):
    """Which of `buckets` equal parts of the ranks by entropy a token lies in, int [B, T]; equal entropies share a rank."""
    entropy = jnp.where(actions > 0, batch.extras["proximal_entropy"], jnp.inf)
    rank = jnp.searchsorted(jnp.sort(entropy.ravel()), entropy)
    number = jnp.maximum(actions.sum().astype(jnp.int32), 1)
    return jnp.clip(rank * buckets // number, 0, buckets - 1)
