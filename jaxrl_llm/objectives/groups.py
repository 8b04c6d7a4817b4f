"""Reductions out of packed rows that losses on whole rollouts share: from tokens to rollouts, and from rollouts to groups.

The rollouts of a group may stand in different packed rows and have any numbers: nothing here depends on the packing. Arrays
of rollouts and of groups have S = B * T slots, as many as there could be; most of them stay empty.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Array, Batch, IntBT


class Groups(NamedTuple):
    """Where the rollouts and the groups of a batch stand.

    Attributes:
      rollout: int [B, T], slot of each token's rollout.
      group: int [S], slot of each rollout's group; None where the batch does not say, for losses that compare none.
      length: float [S], number of actions of each rollout.
      counted: float [S], 1 where a rollout has an action with a weight; others have no part in any group.
    """

    rollout: IntBT
    group: Array
    length: Array
    counted: Array


def find_groups(batch: Batch) -> Groups:
    """The rollouts of a batch and their groups."""
    rollout = dense(batch.rollout, batch)
    of_rollout = None if batch.group is None else slot_of_group(batch, rollout)
    length = rollout_sum(batch.mask > 0, batch.mask, rollout)
    weighted = rollout_sum(batch.weight != 0, batch.mask, rollout)
    return Groups(rollout, of_rollout, length, (weighted > 0).astype(jnp.float32))


def slot_of_group(batch: Batch, rollout):
    """Slot of the group of each rollout, [S]."""
    return jnp.maximum(jax.ops.segment_max(dense(batch.group, batch).ravel(), rollout.ravel(), batch.tokens.size), 0)


def dense(numbers, batch: Batch):
    """Numbers [B, T] without the gaps between them, all below S; the tokens of padding share one of their own."""
    known = jnp.where(batch.segment > 0, numbers, -1)
    return jnp.unique(known, size=known.size, return_inverse=True)[1].reshape(known.shape)


def rollout_sum(per_token, mask, rollout):
    """Sum of `per_token` [B, T] over the tokens of each rollout where `mask` is positive, [S]."""
    values = masked(per_token, mask).astype(jnp.float32)
    return jax.ops.segment_sum(values.ravel(), rollout.ravel(), values.size)


def rollout_mean(per_token, mask, rollout):
    """Mean of `per_token` [B, T] over the tokens of each rollout where `mask` is positive, [S]; 0 without any."""
    return safe_divide(rollout_sum(per_token, mask, rollout), rollout_sum(mask > 0, mask, rollout))


def rollout_value(per_token, mask, rollout):
    """What `per_token` [B, T] is at all tokens of a rollout where `mask` is positive, [S]; 0 without any.

    A mean of equal numbers depends on how many there are: rollouts that have equal ones could be told apart by it.
    """
    values = jnp.where(mask > 0, per_token, -jnp.inf).astype(jnp.float32)
    largest = jax.ops.segment_max(values.ravel(), rollout.ravel(), values.size)
    return jnp.where(rollout_sum(mask > 0, mask, rollout) > 0, largest, 0.0)


def rollout_to_tokens(per_rollout, groups: Groups):
    """The value of its rollout at each token, [B, T]; with weights of `sequence_mean` their sum is the mean over rollouts."""
    return masked(per_rollout, groups.counted)[groups.rollout]


def group_sum(per_rollout, members, groups: Groups):
    """Sum over those rollouts of a group where `members` [S] is positive, at each of its rollouts, [S]."""
    values = masked(per_rollout, members * groups.counted)
    return jax.ops.segment_sum(values, groups.group, values.shape[0])[groups.group]


def group_count(members, groups: Groups):
    """Number of the rollouts of a group where `members` [S] is positive, at each of its rollouts, [S]."""
    return group_sum(jnp.ones_like(groups.counted), members, groups)


def group_mean(per_rollout, members, groups: Groups):
    """Mean over those rollouts of a group where `members` [S] is positive, [S]; 0 where there are none."""
    return safe_divide(group_sum(per_rollout, members, groups), group_count(members, groups))


def group_max(per_rollout, members, groups: Groups):
    """Largest value of those rollouts of a group where `members` [S] is positive, [S], without gradient; 0 without any."""
    here = members * groups.counted > 0
    values = jnp.where(here, jax.lax.stop_gradient(per_rollout), -jnp.inf)
    largest = jax.ops.segment_max(values, groups.group, values.shape[0])[groups.group]
    return jnp.where(jnp.isfinite(largest), largest, 0.0)


def group_logmeanexp(per_rollout, members, groups: Groups):
    """log of the mean of exp over those rollouts of a group where `members` [S] is positive, [S]; 0 without any."""
    shift = group_max(per_rollout, members, groups)
    here = members * groups.counted
    mean = group_mean(jnp.exp(masked(per_rollout - shift, here)), members, groups)
    return shift + jnp.log(jnp.where(mean > 0, mean, 1.0))
