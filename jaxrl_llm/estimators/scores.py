"""From reward components to one score a row, from one advantage a row to its actions, and one component by itself."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl_llm.estimators.pools import group_bounds
from jaxrl_llm.numerics import masked, materialised, safe_divide
from jaxrl_llm.types import Rollouts


def row_scores(rollouts: Rollouts, reward_weights: tuple[float, ...] | None = None) -> tuple[jax.Array, jax.Array]:
    """Total reward of each row and whether the row takes part.

    A missing component (NaN) counts as 0; a row without any component is missing as a whole. Where the sums of a group differ
    by no more than their rounding (0.1 + 0.2 against 0.3 + 0), all get the smallest: what is uniform is exactly uniform.

    Args:
      reward_weights: one factor for each of the K components; 1 by default.

    Returns: score [N] (weighted sum of components plus the masked sum of token rewards) and present [N] (1 where the row is
      valid and has at least one component).
    Raises ValueError: the number of weights is not K.
    """
    rewards = rollouts.rewards.astype(jnp.float32)
    weights = jnp.asarray(component_weights(rollouts, reward_weights), jnp.float32)
    known = ~jnp.isnan(rewards)
    terms = jnp.where(known, rewards, 0.0) * weights
    if rollouts.token_rewards is not None:
        terms = jnp.concatenate([terms, masked(rollouts.token_rewards, rollouts.mask)], axis=1)
    present = ((rollouts.valid > 0) & known.any(axis=1)).astype(jnp.float32)
    return _without_rounding(terms, present, rollouts.group), present


def _without_rounding(terms, present, group):
    """Sums [N] of the terms [N, K] of each row, the same number in a group where they differ by nothing but rounding."""
    score = materialised(terms.sum(axis=1))
    if terms.shape[1] == 1:
        return score
    # Adding K terms in any order errs by at most (K - 1) eps / 2 of the sum of their sizes, on either side.
    rounding = (terms.shape[1] - 1) * jnp.finfo(jnp.float32).eps * group_bounds(jnp.abs(terms).sum(axis=1), present, group)[1]
    low, high = group_bounds(score, present, group)
    return jnp.where((present > 0) & (high - low <= rounding), low, score)


def component_weights(rollouts: Rollouts, reward_weights: tuple[float, ...] | None) -> tuple[float, ...]:
    """The factor of each reward component, 1 by default; refuses another number of them."""
    components = rollouts.rewards.shape[1]
    weights = (1.0,) * components if reward_weights is None else reward_weights
    if len(weights) != components:
        raise ValueError(f"reward_weights has {len(weights)} entries; the rollouts have {components} reward components")
    return weights


def row_mean(per_token, mask):
    """Mean of `per_token` [N, T] over the tokens of each row where `mask` is 1, [N]; 0 for a row without any."""
    return safe_divide(masked(per_token, mask).sum(axis=1), mask.sum(axis=1))


def row_logp(rollouts: Rollouts):
    """Log-probability [N] (nats) of the actions of each row under the policy that sampled it; 0 where nobody knows.

    What is more than a tie between rows has to ask for it: `annotations=("behavior_logp",)`.
    """
    if rollouts.behavior_logp is None:
        return jnp.zeros(rollouts.tokens.shape[0])
    return masked(rollouts.behavior_logp, rollouts.mask).sum(axis=1)


def set_row_advantage(rollouts: Rollouts, advantage, present) -> Rollouts:
    """Gives every action of a row the row's advantage [N]; rows that are not present leave the training."""
    per_token = masked(masked(advantage, present)[:, None], rollouts.mask)
    return rollouts.replace(advantage=per_token, valid=rollouts.valid * present)


def last_action(mask):
    """One-hot [N, T] of the last action of each row; all zero for a row without actions."""
    width = mask.shape[1]
    position = jnp.where(mask > 0, jnp.arange(width), -1).max(axis=1)
    return (jnp.arange(width) == position[:, None]).astype(jnp.float32)


def by_action(mask, *arrays):
    """Arrays [N, T] with the t-th action of each row in column t, behind which comes what is no action; and the way back.

    Returns: A list of the arrays, 0 where a row has no t-th action, and a function that takes such an array to the places it
      came from.
    """
    order = jnp.argsort(mask <= 0, axis=1, stable=True)
    return _taken(mask, arrays, order, lambda: jnp.argsort(order, axis=1))


def by_place(mask, *arrays):
    """The same by place: in column t what stands t places behind the first action of the row, actions or not."""
    width = mask.shape[1]
    first = jnp.argmax(mask > 0, axis=1)[:, None]
    return _taken(mask, arrays, (jnp.arange(width) + first) % width, lambda: (jnp.arange(width) - first) % width)


def _taken(mask, arrays, order, inverse: Callable):
    """The arrays in an order of their columns [N, T], and the way back by its inverse, made where it is gone."""
    there = jnp.take_along_axis(mask, order, axis=1)

    def back(values):
        return masked(jnp.take_along_axis(values, inverse(), axis=1), mask)

    return [masked(jnp.take_along_axis(array, order, axis=1), there) for array in arrays], back


def component_of(rollouts: Rollouts, component: int):
    """Values [N] of a reward component, 0 where it is missing, and where it is there and the row valid, [N].

    Raises ValueError: there is no such component.
    """
    count = rollouts.rewards.shape[1]
    if not 0 <= component < count:
        raise ValueError(f"component is {component}; the rollouts have {count} reward components, numbered from 0")
    values = rollouts.rewards[:, component].astype(jnp.float32)
    known = ~jnp.isnan(values)
    return jnp.where(known, values, 0.0), (known & (rollouts.valid > 0)).astype(jnp.float32)


def with_component(rollouts: Rollouts, component: int, values) -> Rollouts:
    """The rollouts with `values` [N] in the place of a reward component; missing ones stay missing."""
    rewards = jnp.asarray(rollouts.rewards, jnp.float32)
    values = jnp.where(jnp.isnan(rewards[:, component]), jnp.nan, values)
    return rollouts.replace(rewards=rewards.at[:, component].set(values))
