"""Masks and scales of single tokens, factors `(scores, batch) -> factor` [B, T] of a policy term."""

import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.numerics import log_ratio, masked
from jaxrl_llm.objectives.base import logp_name, logp_of
from jaxrl_llm.objectives.ratios import TOKEN_RATIO
from jaxrl_llm.types import Batch, Scores


@composable(annotations=logp_name)
def divergence_mask(
    scores: Scores,
    batch: Batch,
    *,
    kind: str = "tv",
    low: float = 0.15,
    high: float = 0.15,
    symmetric: bool = False,
    against: str = "behavior",
):
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

    Raises:
      ValueError: an unknown kind.

    Source: DPPO, https://arxiv.org/abs/2602.04879
    """
    if kind not in ("tv", "kl"):
        raise ValueError(f"kind is {kind!r}; it must be 'tv' or 'kl'")
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
    scores: Scores,
    batch: Batch,
    *,
    low: float = 0.2,
    high: float = 0.2,
    far_low: float | None = None,
    far_high: float | None = None,
    two_sided: bool = False,
    ratio: Composable = TOKEN_RATIO,
):
    """1 where the clip of PPO keeps the gradient of a token, else 0: a clip for losses that have no ratio.

    One-sided: 1 where A >= 0 and r <= 1 + `high`, or A <= 0 and r >= 1 - `low`. Two-sided: 1 where r is within both bounds. A
    ring is the two-sided mask, and beyond it also A >= 0 with r <= 1 - `far_low`, or A <= 0 with r >= 1 + `far_high`: updates
    that lead back from far outside.

    Args:
      low: as in `clip`.
      high: as in `clip`.
      far_low: of the ring; below 1 - `far_low` positive advantages train again.
      far_high: of the ring; above 1 + `far_high` negative advantages train again.
      two_sided: whether both bounds hold for every advantage.
      ratio: log importance ratio.

    Raises:
      ValueError: bounds of a ring that is not two-sided.

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
    del scores
    return (batch.advantage > 0).astype(jnp.float32)
