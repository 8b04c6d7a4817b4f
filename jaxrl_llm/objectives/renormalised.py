"""Masks that leave the denominator too: what is dropped no longer counts in the mean."""

import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.objectives.base import traits
from jaxrl_llm.objectives.groups import find_groups, rollout_sum
from jaxrl_llm.types import Batch, Scores

OVER = ("batch", "sequence")


@composable
@traits(coupled=True)
def renormalised(scores: Scores, batch: Batch, *, factor: Composable, over: str = "batch"):
    """`factor`, a mask, times what makes the shares of the actions that it keeps sum to what all shares do.

    Under a mean over tokens it is so the mean over the tokens that are left, as where verl takes rejected ones off the mask.
    The whole batch is seen, whatever its splits. With nothing left it is 0.

    Args:
      factor: function `(scores, batch) -> factor` [B, T], such as `rejection(...)`.
      over: "batch", or "sequence": first the shares within each rollout, which keep their sum, then rollouts with nothing left
        are left out: under a mean over sequences, the mean over those that are left, of the mean over their tokens.

    Raises:
      ValueError: an unknown `over`.

    Source: rejection of verl, https://verl.readthedocs.io/en/latest/algo/rollout_corr.html
    """
    if over not in OVER:
        raise ValueError(f"over is {over!r}; it must be one of {OVER}")
    kept, weight = masked(factor(scores, batch), batch.mask), masked(batch.weight, batch.mask)
    if over == "batch":
        return kept * safe_divide(weight.sum(), (weight * kept).sum())
    groups = find_groups(batch)
    share, left = (rollout_sum(values, batch.mask, groups.rollout) for values in (weight, weight * kept))
    among = safe_divide(weight.sum(), masked(share, jnp.abs(left)).sum())
    return kept * (safe_divide(share, left) * among)[groups.rollout]
