"""Aggregation, decided once: the share `weight` [N, T] of each action in the loss `sum(weight * token_loss)`.

The counts are those of the whole step, so no later split into micro-batches, rows or devices can change the loss.
Rows that are not valid have no share and do not count. With nothing valid, all shares are 0.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.estimators.base import Estimator, stateless
from jaxrl_llm.estimators.pools import group_sum
from jaxrl_llm.numerics import safe_divide
from jaxrl_llm.types import Rollouts, own_weight


def _actions(rollouts: Rollouts):
    return rollouts.mask * rollouts.valid[:, None]


@stateless
def token_mean(rollouts: Rollouts) -> Rollouts:
    """Each action counts alike: 1 / (actions of the step). Source: DAPO, https://arxiv.org/abs/2503.14476"""
    actions = _actions(rollouts)
    return rollouts.replace(weight=safe_divide(actions, actions.sum()))


@stateless
def sequence_mean(rollouts: Rollouts) -> Rollouts:
    """Mean over rows of the mean over each row's actions. Source: GRPO, https://arxiv.org/abs/2402.03300"""
    actions = _actions(rollouts)
    return rollouts.replace(weight=safe_divide(actions, actions.sum(axis=1, keepdims=True) * rollouts.valid.sum()))


@stateless
def sequence_mean_token_sum(rollouts: Rollouts) -> Rollouts:
    """Mean over rows of the sum over each row's actions. Source: RLOO, https://arxiv.org/abs/2402.14740"""
    actions = _actions(rollouts)
    return rollouts.replace(weight=safe_divide(actions, rollouts.valid.sum()))


@stateless
def constant(rollouts: Rollouts, *, length: int) -> Rollouts:
    """Mean over rows of (sum over actions) / `length` tokens, a fixed number such as the longest answer allowed.

    Source: Dr. GRPO, https://arxiv.org/abs/2503.20783
    """
    if length < 1:
        raise ValueError(f"length is {length}; it must be at least 1 token")
    actions = _actions(rollouts)
    return rollouts.replace(weight=safe_divide(actions, jnp.float32(length) * rollouts.valid.sum()))


def _given_mask(options) -> tuple[str, ...]:
    return (options["mask"],) if options["mask"] else ()


@stateless(annotations=_given_mask, provides=lambda options: (own_weight(options["name"]),))
def named_weighting(rollouts: Rollouts, *, name: str, weighting: Estimator, mask: str | None = None) -> Rollouts:
    """Writes the shares that `weighting` gives as those of the terms `weighted(name=...)`; the others keep theirs.

    So entropies may be averaged over tokens beside a loss averaged over sequences, or a critic learn from other tokens. The
    counts are those of the whole step here too.

    Args:
      rollouts: N rows.
      name: as in `objectives.weighted`.
      weighting: an estimator of shares without a state, such as `token_mean()`.
      mask: name of `extras` [N, T] that stands for the mask of the actions.

    Example:
      >>> chain(sequence_mean(), named_weighting(name="entropy", weighting=token_mean()))
      chain(sequence_mean(), named_weighting(name='entropy', weighting=token_mean()))
    """
    seen = rollouts if mask is None else rollouts.replace(mask=jnp.asarray(rollouts.extras[mask], jnp.float32))
    found, _ = weighting.update(seen, weighting.init(), jax.random.key(0))
    return rollouts.replace(extras=rollouts.extras | {own_weight(name): found.weight})


@stateless(annotations=("preference",))
def pair_mean(rollouts: Rollouts) -> Rollouts:
    """Each pair counts alike: 1 / (pairs of the step), half on each member, spread evenly over its actions.

    A pair is a group with exactly one valid row of positive and one of negative `extras["preference"]` that have an action.
    Rows of other groups have no share, and their groups do not count.
    """
    actions, preference = _actions(rollouts), rollouts.extras["preference"]
    length = actions.sum(axis=1)
    chosen, rejected = ((length > 0) & (sign * preference > 0) for sign in (1, -1))
    count_chosen, count_rejected = (group_sum(side.astype(jnp.int32), rollouts.group) for side in (chosen, rejected))
    member = (chosen | rejected) & (count_chosen == 1) & (count_rejected == 1)
    return rollouts.replace(weight=safe_divide(actions * member[:, None], length[:, None] * member.sum()))
