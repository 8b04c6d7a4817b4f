"""Turns of a row: runs of actions with one number in `rollouts.turn`, each taken as one step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.pools import classes, divisor, group_mean, group_variance
from jaxrl_llm.estimators.returns import discounted_sums, rewards_per_token
from jaxrl_llm.estimators.scores import last_action, row_scores
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts


def first_actions(rollouts: Rollouts):
    """One [N, T] where an action begins its turn, 0 elsewhere."""
    place = jnp.where(rollouts.mask > 0, jnp.arange(rollouts.mask.shape[1]), -1)
    earlier = jax.lax.cummax(jnp.pad(place, ((0, 0), (1, 0)), constant_values=-1)[:, :-1], axis=1)
    same = (earlier >= 0) & (jnp.take_along_axis(rollouts.turn, jnp.maximum(earlier, 0), axis=1) == rollouts.turn)
    return ((rollouts.mask > 0) & ~same).astype(jnp.float32)


def over_turns(values, rollouts: Rollouts):
    """Sum of `values` [N, T] over the actions of a turn, at its first action; 0 elsewhere."""
    first = first_actions(rollouts)
    number = jnp.cumsum(first, axis=1).astype(jnp.int32)

    def total(values, number):
        return jax.ops.segment_sum(values, number, num_segments=values.shape[0] + 1)[number]

    return first * jax.vmap(total)(masked(values, rollouts.mask), number)


def along_turns(values, rollouts: Rollouts):
    """The entry of `values` [N, T] at the first action of a turn, at each of its actions; 0 elsewhere."""
    place = jnp.where(first_actions(rollouts) > 0, jnp.arange(rollouts.mask.shape[1]), 0)
    return masked(jnp.take_along_axis(values, jax.lax.cummax(place, axis=1), axis=1), rollouts.mask)


@stateless(annotations=("state",))
def state_advantage(
    rollouts: Rollouts, *, discount: float = 0.95, epsilon: float | None = 1e-6, reward_weights: tuple[float, ...] | None = None
) -> Rollouts:
    """Compares turns that begin in the same state: A = (R - mean) / (std + epsilon) over the turns of the group in that state.

    R is the discounted sum of rewards from the turn onwards, in which time counts turns. A state that was seen once gives
    0. The deviation is Bessel's.

    Args:
      rollouts: with `extras["state"]` int [N, T], a hash of what the turn of the token has seen of its environment.
      discount: gamma.
      epsilon: added to the deviation; None for no division.
      reward_weights: factor of each reward component; 1 by default.

    Source: GiGPO, step-level advantages, https://arxiv.org/abs/2505.10978
    """
    rewards, present = rewards_per_token(rollouts, reward_weights)
    first = first_actions(rollouts)
    returns = discounted_sums(over_turns(rewards, rollouts), first, discount).ravel()
    counted = (first * present[:, None]).ravel()
    groups = jnp.broadcast_to(rollouts.group[:, None], first.shape).ravel()
    alike = classes(groups, rollouts.extras["state"].ravel())
    advantage = _standardised(returns, counted, alike, epsilon).reshape(first.shape)
    return rollouts.replace(advantage=along_turns(first * advantage, rollouts), valid=rollouts.valid * present)


@stateless(annotations=("token_rewards",))
def turn_returns(
    rollouts: Rollouts, *, discount: float = 1.0, epsilon: float | None = 1e-6, reward_weights: tuple[float, ...] | None = None
) -> Rollouts:
    """Rewards of turns and of outcomes, each standardised within the group, summed from each turn onwards.

    The reward of a turn is the sum of its `token_rewards`; the outcome is the weighted sum of the reward components and
    takes the place of the last turn's. With r~ = (r - mean) / (std + epsilon), over all turns of the group but the last
    ones, or over its outcomes, A of turn i is the sum over k >= i of discount^(k - i) r~_k. The deviation is Bessel's.

    Args:
      rollouts: with `token_rewards`, such as what a turn adds to the log-probability of the right answer.
      discount: gamma, by turn.
      epsilon: added to the deviation; None for no division.
      reward_weights: factor of each reward component; 1 by default.

    Source: IGPO, https://arxiv.org/abs/2510.14967
    """
    outcome, present = row_scores(rollouts.replace(token_rewards=None), reward_weights)
    first = first_actions(rollouts)
    last = last_action(first)
    gains = over_turns(rollouts.token_rewards, rollouts)
    groups = jnp.broadcast_to(rollouts.group[:, None], first.shape).ravel()
    inner = (first - last) * present[:, None]
    gains = inner * _standardised(gains.ravel(), inner.ravel(), groups, epsilon).reshape(first.shape)
    outcome = present * _standardised(outcome, present, rollouts.group, epsilon)
    returns = discounted_sums(gains + last * outcome[:, None], first, discount)
    return rollouts.replace(advantage=along_turns(first * returns, rollouts), valid=rollouts.valid * present)


def _standardised(values, present, group, epsilon: float | None):
    centred = masked(values - group_mean(values, present, group), present)
    if epsilon is None:
        return centred
    return safe_divide(centred, divisor(group_variance(values, present, group, 1), epsilon, "outside"))
