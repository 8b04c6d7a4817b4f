"""Reductions out of packed rows that losses on whole rollouts share: tokens to rollouts, rollouts to groups and pairs.

The rollouts of a group may stand in different packed rows and have any numbers: nothing here depends on the packing. A pair is
a group of one preferred and one other rollout. Arrays of rollouts, groups and pairs have S = B * T slots, as many as there
could be; most of them stay empty.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Array, Batch, IntBT


class Groups(NamedTuple):
    """Where the rollouts and the groups of a batch stand."""

    rollout: IntBT  # int [B, T], slot of each token's rollout
    group: Array  # int [S], slot of each rollout's group; None where the batch does not say, for losses that compare none
    length: Array  # float [S], number of actions of each rollout
    counted: Array  # float [S], 1 where a rollout has an action with a weight; others have no part in any group


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


class Pairs(NamedTuple):
    """Where the rollouts and the pairs of a batch stand."""

    rollout: IntBT  # int [B, T], slot of each token's rollout
    pair: Array  # int [S], slot of each rollout's pair
    chosen: Array  # float [S], 1 where a rollout is the preferred one of a complete pair
    rejected: Array  # float [S], 1 where it is the other one
    weight: Array  # float [S], share of each complete pair in the loss: the sum over the actions of both; 0 elsewhere


def find_pairs(batch: Batch) -> Pairs:
    """The pairs of a batch, by `group` and by the sign of `extras["preference"]`.

    A pair is complete when its group has exactly one preferred (> 0) and one rejected (< 0) rollout with an action. Others,
    such as one that lost a member or whose member is masked, have no part: no weight, no loss, no gradient.
    """
    rollout, slots = dense(batch.rollout, batch), batch.tokens.size
    pair = slot_of_group(batch, rollout)
    preference = masked(batch.extras["preference"], batch.mask)
    chosen, rejected = (rollout_sum(sign * preference > 0, batch.mask, rollout) > 0 for sign in (1, -1))

    def count(members):
        return jax.ops.segment_sum(members.astype(jnp.int32), pair, slots)

    complete = (count(chosen) == 1) & (count(rejected) == 1)
    members = ((side & complete[pair]).astype(jnp.float32) for side in (chosen, rejected))
    pairs = Pairs(rollout, pair, *members, weight=jnp.zeros(slots))
    return pairs._replace(weight=sum(two_sides(rollout_sum(batch.weight, batch.mask, rollout), pairs)))


def two_sides(per_rollout, pairs: Pairs):
    """Values of the preferred and of the rejected rollout of each pair, [S] and [S]; 0 where no complete pair is."""
    slots = per_rollout.shape[0]
    sides = (jax.ops.segment_sum(masked(per_rollout, side), pairs.pair, slots) for side in (pairs.chosen, pairs.rejected))
    return tuple(sides)


def pair_to_tokens(per_pair, pairs: Pairs):
    """The value of its pair at each token, [B, T], and 0 at the tokens of incomplete pairs.

    As a token loss it gives `sum(pairs.weight * per_pair)`.
    """
    members = pairs.chosen + pairs.rejected
    return masked(per_pair[pairs.pair], members)[pairs.rollout]


def pair_statistics(chosen, rejected, pairs: Pairs) -> dict[str, jax.Array]:
    """Weighted means over complete pairs, from the rewards [S] of both sides.

    "pair_accuracy" is the share of pairs whose preferred rollout has the higher reward, a tie counting one half.
    """

    def mean(values):
        return safe_divide(jnp.sum(pairs.weight * values), jnp.sum(pairs.weight))

    return {
        "pair_accuracy": mean(0.5 * (jnp.sign(chosen - rejected) + 1.0)),
        "pair_margin": mean(chosen - rejected),
        "pair_chosen": mean(chosen),
        "pair_rejected": mean(rejected),
    }


def at_end(batch: Batch):
    """Whether a token is the last of its sequence, bool [B, T]."""
    following = jnp.pad(batch.segment[:, 1:], ((0, 0), (0, 1)))
    return (batch.segment > 0) & (batch.segment != following)
