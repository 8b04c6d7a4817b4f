"""Corrections of samples that came from another policy: factors `(scores, batch) -> factor` [B, T] of a policy term.

Each compares the policy named `of` with the one that its ratio is against. With three policies (decoupled), the ratio of the
term itself is against "proximal", and the factor corrects from "proximal" to "behavior", the sampler. With two (bypass),
`of` is "policy", and the factor takes the place of the term's ratio.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable, require
from jaxrl_llm.numerics import kl_estimate, masked, over_segments, safe_divide
from jaxrl_llm.objectives.base import logp_of
from jaxrl_llm.objectives.batch_statistics import counted, masked_mean
from jaxrl_llm.objectives.groups import find_groups, rollout_mean, rollout_sum
from jaxrl_llm.objectives.ratios import TOKEN_RATIO, segment_mean, segment_total
from jaxrl_llm.types import Batch, Scores

OVER = ("token", "sum", "mean", "max")
OUTSIDE = ("truncate", "mask")
AMONG = ("all", "negative", "leaving")


def _logp_of_option(options: dict) -> tuple[str, ...]:
    return () if options["of"] == "policy" else (f"{options['of']}_logp",)


def log_weight(of: str, ratio: Composable, scores: Scores, batch: Batch):
    """`ratio` [B, T] (nats) of the policy named `of`; "policy" is the one that trains."""
    return ratio(scores if of == "policy" else scores.replace(logp=logp_of(of, batch)), batch)


@composable(annotations=_logp_of_option)
def importance_weight(
    scores: Scores, batch: Batch, *, low: float | None = None, high: float | None = None, outside: str = "truncate",
    of: str = "proximal", ratio: Composable = TOKEN_RATIO,
):  # fmt: skip
    """exp(ratio), bounded: importance weight of a token, of a sequence or of its geometric mean, by the `ratio`.

    Args:
      low, high: bounds of the weight.
      outside: "truncate" to the bounds (truncated importance sampling), or "mask": 0 outside of them (IcePop).
      of: whose probability stands above: "proximal" or "policy".
      ratio: `token_ratio()`, `sequence_total_ratio()`, `sequence_ratio()` (geometric mean).

    Raises ValueError: an unknown `outside`, or "mask" without any bound.
    Source: decoupled PPO, https://arxiv.org/abs/2110.00641 (no bounds); TIS,
      https://fengyao.notion.site/off-policy-rl; IcePop, https://arxiv.org/abs/2510.18855
    """
    require(outside in OUTSIDE, "outside", outside, f"one of {OUTSIDE}")
    if outside == "mask" and low is None and high is None:
        raise ValueError("outside='mask' needs low or high; nothing is outside without a bound")
    weight = jnp.exp(log_weight(of, ratio, scores, batch))
    bounded = jnp.clip(weight, low, high)
    return bounded if outside == "truncate" else jnp.where(weight == bounded, weight, 0.0)


@composable(coupled=True)
def batch_normalised(scores: Scores, batch: Batch, *, factor: Composable):
    """`factor` divided by its mean over the batch, so that it leaves the size of the loss alone.

    The mean is over the actions, or, of a factor whose ratio is that of whole sequences, over the sequences, each of which
    counts once, whatever its length.

    Source: option `rollout_is_batch_normalize` of verl, https://verl.readthedocs.io/en/latest/algo/rollout_corr.html
    """
    actions = counted(batch)
    value = masked(factor(scores, batch), actions)
    if not of_sequences(factor):
        return safe_divide(value, masked_mean(value, actions))
    groups = find_groups(batch)
    per_sequence = rollout_mean(value, actions, groups.rollout)
    return safe_divide(value, masked_mean(per_sequence, groups.counted))


def of_sequences(factor: Composable) -> bool:
    """Whether a factor says one thing of each sequence: its ratio does."""
    ratio = dict(factor.options).get("ratio")
    return getattr(getattr(ratio, "function", None), "level", "token") == "sequence"


@composable(annotations=_logp_of_option)
def rejection(
    scores: Scores, batch: Batch, *, kind: str = "k1", over: str = "mean", low: float | None = None, high: float | None = None,
    among: str = "all", of: str = "proximal", ratio: Composable = TOKEN_RATIO,
):  # fmt: skip
    """1 where an estimate of KL(mu || pi) lies within bounds, 0 elsewhere: drops tokens or whole sequences.

    pi is the policy named `of`, mu the one that `ratio` is against. With `over="max"`, kind "k1" and high = -log c, a sequence
    is dropped when the ratio pi / mu of one of its tokens is below c (a "veto"). With `over="mean"`, kind "k1", `of="policy"`
    and `among="negative"`, it is the off-policy sequence mask of DeepSeek-V3.2; with kind "tv" and `among="leaving"`, the mask
    of VACO.

    Args:
      kind: "k1" (log mu - log pi), "k2" or "k3", see `numerics.kl_estimate`, or "tv": |pi / mu - 1|, twice the total variation
        on average.
      over: "token", or "sum", "mean" or "max" over the actions of the sequence.
      low, high: bounds, nats.
      among: which actions may be dropped: "all", "negative" (A < 0) or "leaving" (A > 0 where pi > mu, A < 0 where pi < mu:
        those that take pi further from mu).
      of: "proximal" or "policy".
      ratio: log-ratio of a token.

    Raises ValueError: an unknown `over`, `among` or kind, or no bound.
    Source: rejection of verl, https://verl.readthedocs.io/en/latest/algo/rollout_corr.html; DeepSeek-V3.2,
      https://arxiv.org/abs/2512.02556; VACO, https://arxiv.org/abs/2603.01365, as in open-instruct
    """
    require(over in OVER, "over", over, f"one of {OVER}")
    require(among in AMONG, "among", among, f"one of {AMONG}")
    if low is None and high is None:
        raise ValueError("rejection needs low or high; it would keep everything")
    moved = log_weight(of, ratio, scores, batch)
    estimate = jnp.abs(jnp.expm1(moved)) if kind == "tv" else kl_estimate(jnp.zeros_like(moved), moved, kind)
    value = _over(over, estimate, batch)
    outside = jnp.zeros_like(value, bool) if low is None else value < low
    outside = outside if high is None else outside | (value > high)
    droppable = {"all": True, "negative": batch.advantage < 0, "leaving": batch.advantage * moved > 0}[among]
    return 1.0 - (outside & droppable)


def _over(kind: str, estimate, batch: Batch):
    if kind == "token":
        return estimate
    if kind == "sum":
        return segment_total(masked(estimate, batch.mask), batch.segment)
    if kind == "mean":
        return segment_mean(estimate, batch.mask, batch.segment)
    return over_segments(jax.ops.segment_max, jnp.where(batch.mask > 0, estimate, -jnp.inf), batch.segment)


DENOMINATORS = ("batch", "sequence")


@composable(coupled=True)
def renormalised(scores: Scores, batch: Batch, *, factor: Composable, over: str = "batch"):
    """`factor`, a mask, times what makes the shares of the actions that it keeps sum to what all shares do.

    Under a mean over tokens it is so the mean over the tokens that are left, as where verl takes rejected ones off the mask.
    The whole batch is seen, whatever its splits. With nothing left it is 0.

    Args:
      factor: function `(scores, batch) -> factor` [B, T], such as `rejection(...)`.
      over: "batch", or "sequence": first the shares within each rollout, which keep their sum, then rollouts with nothing left
        are left out: under a mean over sequences, the mean over those that are left, of the mean over their tokens.

    Raises ValueError: an unknown `over`.
    Source: rejection of verl, https://verl.readthedocs.io/en/latest/algo/rollout_corr.html
    """
    require(over in DENOMINATORS, "over", over, f"one of {DENOMINATORS}")
    kept, weight = masked(factor(scores, batch), batch.mask), masked(batch.weight, batch.mask)
    if over == "batch":
        return kept * safe_divide(weight.sum(), (weight * kept).sum())
    groups = find_groups(batch)
    share, left = (rollout_sum(values, batch.mask, groups.rollout) for values in (weight, weight * kept))
    among = safe_divide(weight.sum(), masked(share, jnp.abs(left)).sum())
    return kept * (safe_divide(share, left) * among)[groups.rollout]
