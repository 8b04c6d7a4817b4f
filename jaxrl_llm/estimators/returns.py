"""Advantages from rewards in time: discounted returns and generalised advantage estimation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.scores import last_action, row_scores
from jaxrl_llm.numerics import kl_estimate, masked
from jaxrl_llm.types import Rollouts


def rewards_per_token(rollouts: Rollouts, reward_weights: tuple[float, ...] | None = None):
    """Rewards [N, T] at the actions they follow: components at the last action, token rewards at their own.

    Returns:
      rewards [N, T] and present [N].
    """
    score, present = row_scores(rollouts.replace(token_rewards=None), reward_weights)
    rewards = masked(score, present)[:, None] * last_action(rollouts.mask)
    if rollouts.token_rewards is not None:
        rewards += masked(rollouts.token_rewards, rollouts.mask)
    return rewards * present[:, None], present


@stateless(annotations=("reference_logp",))
def kl_in_reward(rollouts: Rollouts, *, coefficient: float = 0.05, kind: str = "k1") -> Rollouts:
    """Subtracts `coefficient * KL estimate` (nats) of each action from its token reward.

    The policy's side is `behavior_logp`, the policy that sampled; `extras["reference_logp"]` [N, T] the reference's.

    Source: Ziegler et al., https://arxiv.org/abs/1909.08593; kinds: `numerics.kl_estimate`.
    """
    penalty = kl_estimate(rollouts.behavior_logp, rollouts.extras["reference_logp"], kind)
    earlier = 0.0 if rollouts.token_rewards is None else rollouts.token_rewards
    return rollouts.replace(token_rewards=earlier - coefficient * masked(penalty, rollouts.mask))


@stateless
def reward_to_go(rollouts: Rollouts, *, discount: float = 1.0, reward_weights: tuple[float, ...] | None = None) -> Rollouts:
    """Advantage of an action = discounted sum of the rewards from it onwards; time counts actions only.

    Source: REINFORCE++, https://arxiv.org/abs/2501.03262, equation for A_t before normalisation.
    """
    rewards, present = rewards_per_token(rollouts, reward_weights)

    def step(following, inputs):
        reward, is_action = inputs
        total = jnp.where(is_action, reward + discount * following, following)
        return total, total

    _, returns = jax.lax.scan(step, jnp.zeros(rewards.shape[0]), (rewards.T, rollouts.mask.T > 0), reverse=True)
    return rollouts.replace(advantage=masked(returns.T, rollouts.mask), valid=rollouts.valid * present)


@stateless(annotations=("behavior_value",), provides=("returns",))
def gae(
    rollouts: Rollouts,
    *,
    discount: float = 1.0,
    trace_decay: float = 0.95,
    reward_weights: tuple[float, ...] | None = None,
) -> Rollouts:
    """Generalised advantage estimation over the actions of each row; the state after the last action has value 0.

    delta_t = r_t + discount * V_{t+1} - V_t, A_t = delta_t + discount * trace_decay * A_{t+1}, where t + 1 is the next
    action: tokens between two actions (a prompt, a tool's answer) take no time. The critic's targets A_t + V_t go to
    `extras["returns"]` [N, T].

    Args:
      rollouts: with `extras["behavior_value"]` [N, T], value of the state before each token.
      discount: gamma.
      trace_decay: lambda.
      reward_weights: factor of each reward component; 1 by default.

    Source: https://arxiv.org/abs/1506.02438
    """
    rewards, present = rewards_per_token(rollouts, reward_weights)
    values = masked(rollouts.extras["behavior_value"], rollouts.mask)

    def step(carry, inputs):
        next_value, next_advantage = carry
        reward, value, is_action = inputs
        delta = reward + discount * next_value - value
        advantage = delta + discount * trace_decay * next_advantage
        carry = (jnp.where(is_action, value, next_value), jnp.where(is_action, advantage, next_advantage))
        return carry, advantage

    zeros = jnp.zeros(rewards.shape[0])
    _, advantages = jax.lax.scan(step, (zeros, zeros), (rewards.T, values.T, rollouts.mask.T > 0), reverse=True)
    advantage = masked(advantages.T, rollouts.mask)
    extras = {**rollouts.extras, "returns": advantage + values}
    return rollouts.replace(advantage=advantage, extras=extras, valid=rollouts.valid * present)
