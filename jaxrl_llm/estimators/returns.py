"""Rewards in time: penalties on the way, and discounted returns."""

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


@stateless(annotations=("behavior_logp", "reference_logp"))
def kl_in_reward(rollouts: Rollouts, *, coefficient: float = 0.05, kind: str = "k1", bound: float | None = None) -> Rollouts:
    """Subtracts `coefficient * KL estimate` (nats) of each action from its token reward.

    The policy's side is `behavior_logp`, the policy that sampled; `extras["reference_logp"]` [N, T] the reference's.

    Args:
      rollouts: with both.
      coefficient: of the penalty.
      kind: see `numerics.kl_estimate`.
      bound: largest size of an estimate (nats); OpenRLHF bounds every kind at 10.

    Raises:
      ValueError: an unknown kind, or one such as "k3+", whose other gradient has no meaning in a reward.

    Source: Ziegler et al., https://arxiv.org/abs/1909.08593; kinds: `numerics.kl_estimate`.
    """
    if kind.endswith("+"):
        raise ValueError(f"kind is {kind!r}, but a reward has no gradient that the '+' could change; take {kind[:-1]!r}")
    penalty = kl_estimate(rollouts.behavior_logp, rollouts.extras["reference_logp"], kind)
    penalty = penalty if bound is None else jnp.clip(penalty, -bound, bound)
    earlier = 0.0 if rollouts.token_rewards is None else rollouts.token_rewards
    return rollouts.replace(token_rewards=earlier - coefficient * masked(penalty, rollouts.mask))


@stateless(annotations=("reference_logp",))
def kl_in_advantage(rollouts: Rollouts, *, coefficient: float = 0.01, kind: str = "k1", bound: float | None = None) -> Rollouts:
    """Subtracts `coefficient` times the KL estimates (nats) of an action and of all later ones from its advantage.

    The penalty is a reward that no baseline and no scale sees: it stands behind them.

    Args:
      rollouts: with advantages, `behavior_logp` and `extras["reference_logp"]` [N, T].
      coefficient: of the penalty.
      kind: as in `kl_in_reward`.
      bound: as in `kl_in_reward`.

    Raises:
      ValueError: as in `kl_in_reward`.

    Source: OpenRLHF, whose advantages of groups are rewards to which the penalty is added
    """
    bare = rollouts.replace(token_rewards=None)
    penalty = kl_in_reward.function(bare, coefficient=coefficient, kind=kind, bound=bound).token_rewards
    taken = rollouts.mask * rollouts.valid[:, None]
    rest = discounted_sums(masked(penalty, taken), rollouts.mask, 1.0)
    return rollouts.replace(advantage=masked(rollouts.advantage + rest, taken))


@stateless
def reward_to_go(rollouts: Rollouts, *, discount: float = 1.0, reward_weights: tuple[float, ...] | None = None) -> Rollouts:
    """Advantage of an action = discounted sum of the rewards from it onwards; time counts actions only.

    Source: REINFORCE++, https://arxiv.org/abs/2501.03262, equation for A_t before normalisation.
    """
    rewards, present = rewards_per_token(rollouts, reward_weights)
    returns = discounted_sums(rewards, rollouts.mask, discount)
    return rollouts.replace(advantage=masked(returns, rollouts.mask), valid=rollouts.valid * present)


def discounted_sums(rewards, steps, discount: float):
    """Discounted sum [N, T] of the rewards from each place onwards; time passes at places where `steps` [N, T] is positive."""

    def backward(following, inputs):
        reward, is_step = inputs
        total = jnp.where(is_step, reward + discount * following, following)
        return total, total

    return jax.lax.scan(backward, jnp.zeros(rewards.shape[0]), (rewards.T, steps.T > 0), reverse=True)[1].T
