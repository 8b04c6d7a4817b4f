"""Losses on single rollouts that are desirable or not, by the sign of `extras["preference"]`; those of 0 have no part."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.objectives.base import coefficient_value, traits
from jaxrl_llm.objectives.groups import (
    Groups,
    find_groups,
    find_pairs,
    pair_statistics,
    rollout_mean,
    rollout_to_tokens,
    two_sides,
)
from jaxrl_llm.objectives.implicit_rewards import REFERENCE_RATIO, rollout_reward
from jaxrl_llm.types import Batch, Scores


@composable
def saturating_link(z):
    """1 - s(z): KTO's value of a gain or loss, flat at both ends.

    Source: https://arxiv.org/abs/2402.01306
    """
    return jax.nn.sigmoid(-z)


@composable
def logistic_link(z):
    """-log s(z), the loss of a binary classifier. Source: BCO, https://arxiv.org/abs/2404.04656"""
    return jax.nn.softplus(-z)


@composable(coupled=True)
def mean_reference_point(reward, labelled, batch: Batch, groups: Groups):
    """max(0, mean reward of the labelled rollouts): an estimate of the KL divergence from the reference.

    Source: in place of KTO's, whose mean is over mismatched pairs of prompt and answer, see `given_reference_point`
    """
    return jnp.maximum(safe_divide(masked(reward, labelled).sum(), labelled.sum()), 0.0)


@composable(annotations=lambda options: (options["annotation"],), coupled=True)
def given_reference_point(reward, labelled, batch: Batch, groups: Groups, *, annotation: str = "mismatched_ratio"):
    """max(0, mean over the labelled rollouts of `extras[annotation]`), which is equal along a rollout.

    "mismatched_ratio" is the log-ratio of an answer to another prompt, scored behind the rollout's own prompt.

    Source: KTO, https://arxiv.org/abs/2402.01306, section 4.1
    """
    given = rollout_mean(batch.extras[annotation], batch.mask, groups.rollout)
    return jnp.maximum(safe_divide(masked(given, labelled).sum(), labelled.sum()), 0.0)


@composable
def controlled_reference_point(reward, labelled, batch: Batch, groups: Groups, *, coefficient: str = "reward_shift"):
    """The scalar of that name in `batch.coefficients`, as a controller keeps it: delta / beta of BCO."""
    return coefficient_value(coefficient, batch)


@composable(coupled=True)
def running_reference_point(reward, labelled, batch: Batch, groups: Groups, *, total: str, count: str):
    """Mean reward of all labelled rollouts so far, those of this batch included.

    Args:
      total: scalar in `batch.coefficients`, the sum over the batches before, as a controller keeps it.
      count: scalar in `batch.coefficients`, the number of rollouts in it.

    Source: the running mean of BCO in TRL's former trainer
    """
    sums = masked(reward, labelled).sum(), labelled.sum()
    before = (coefficient_value(name, batch) for name in (total, count))
    return safe_divide(*(earlier + now for earlier, now in zip(before, sums, strict=True)))


@composable(annotations=("preference",))
@traits(level="rollout")
def unpaired(
    scores: Scores,
    batch: Batch,
    *,
    link: Composable,
    beta: float = 0.1,
    evidence: Composable = REFERENCE_RATIO,
    reference_point: Composable | None = None,
    desirable: float = 1.0,
    undesirable: float = 1.0,
):
    """w `link(y beta (r - z))` of each rollout: y is 1 and w `desirable` where it is preferred, else -1 and `undesirable`.

    r is the sum over the actions of `evidence`, and z, without gradient, what r is compared with. A rollout counts by the
    sum of its weights (`estimators.sequence_mean`: the mean over rollouts). The metric "reward_center" is the mean of the
    mean rewards of both classes; those of pairs are of the groups that happen to be pairs.

    Args:
      link: loss from what is gained, `saturating_link()` or `logistic_link()`.
      beta: weight of the divergence from the reference.
      evidence: what a token tells (nats).
      reference_point: function `(reward [S], labelled [S], batch, groups) -> scalar`; 0 by default.
      desirable: factor of preferred rollouts.
      undesirable: factor of the others.
    """
    # Answers that are marked one by one need no groups: without, each answers a prompt of its own.
    batch = batch.replace(group=batch.rollout) if batch.group is None else batch
    groups = find_groups(batch)
    reward = rollout_reward(scores, batch, groups.rollout, evidence=evidence)
    side = jnp.sign(rollout_mean(batch.extras["preference"], batch.mask, groups.rollout)) * groups.counted
    labelled = jnp.abs(side)
    point = 0.0 if reference_point is None else jax.lax.stop_gradient(reference_point(reward, labelled, batch, groups))
    factor = jnp.where(side > 0, desirable, undesirable) * labelled
    loss = factor * link(side * beta * (reward - point))
    pairs = find_pairs(batch)
    return rollout_to_tokens(loss, groups), _statistics(reward, side, point) | pair_statistics(*two_sides(reward, pairs), pairs)


def _statistics(reward, side, point) -> dict[str, jax.Array]:
    """Mean rewards (nats) of desirable and undesirable rollouts, their mean, and what rewards are compared with."""
    means = [safe_divide(masked(reward, members).sum(), members.sum()) for members in (side > 0, side < 0)]
    right = 0.5 * (jnp.sign(side * (reward - point)) + 1.0)
    accuracy = safe_divide(masked(right, jnp.abs(side)).sum(), jnp.abs(side).sum())
    found = {"reward_desirable": means[0], "reward_undesirable": means[1], "reward_center": sum(means) / 2}
    counts = {"labelled/reward": masked(reward, jnp.abs(side)).sum(), "labelled/count": jnp.abs(side).sum()}
    return found | counts | {"reward_reference_point": jnp.float32(point), "label_accuracy": accuracy}
