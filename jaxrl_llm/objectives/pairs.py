"""Reductions that losses on preferences share: from rollouts to pairs.

A pair is a group of one preferred and one other rollout. They may stand in different packed rows and have any numbers:
nothing here depends on the packing. Arrays of rollouts and of pairs have S = B * T slots, as in `objectives.groups`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.objectives.groups import dense, rollout_sum, slot_of_group
from jaxrl_llm.types import Array, Batch, IntBT


class Pairs(NamedTuple):
    """Where the rollouts and the pairs of a batch stand.

    Attributes:
      rollout: int [B, T], slot of each token's rollout.
      pair: int [S], slot of each rollout's pair.
      chosen: float [S], 1 where a rollout is the preferred one of a complete pair.
      rejected: float [S], 1 where it is the other one.
      weight: float [S], share of each complete pair in the loss: the sum over the actions of both; 0 elsewhere.
    """

    rollout: IntBT
    pair: Array
    chosen: Array
    rejected: Array
    weight: Array


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
