"""Generalised advantage estimation, over actions or over turns, with traces that may depend on the length."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable, require
from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.returns import rewards_per_token
from jaxrl_llm.estimators.turns import along_turns, first_actions, over_turns
from jaxrl_llm.numerics import masked
from jaxrl_llm.types import Rollouts

STEPS = ("token", "turn")


@composable
def length_adaptive_decay(rollouts: Rollouts, *, scale: float = 0.05):
    """Trace decay [N] that falls off over the same share of every answer: 1 - 1 / (scale * l), l actions; never below 0.

    Source: VAPO, https://arxiv.org/abs/2504.05118
    """
    length = jnp.maximum(rollouts.mask.sum(axis=1), 1.0)
    return jnp.maximum(1.0 - 1.0 / (scale * length), 0.0)


@stateless(annotations=("behavior_value",), provides=("returns",))
def gae(
    rollouts: Rollouts,
    *,
    discount: float = 1.0,
    trace_decay: float | Composable = 0.95,
    value_trace_decay: float | Composable | None = None,
    step: str = "token",
    reward_weights: tuple[float, ...] | None = None,
) -> Rollouts:
    """Generalised advantage estimation over the actions of each row; the state after the last action has value 0.

    delta_t = r_t + discount * V_{t+1} - V_t, A_t = delta_t + discount * trace_decay * A_{t+1}, where t + 1 is the next
    action: tokens between two actions (a prompt, a tool's answer) take no time. The critic's targets A_t + V_t go to
    `extras["returns"]` [N, T].

    Args:
      rollouts: with `extras["behavior_value"]` [N, T], value of the state before each token.
      discount: gamma.
      trace_decay: lambda, or a function of the rollouts that gives one for each row, such as `length_adaptive_decay()`.
      value_trace_decay: another lambda for the critic's targets; None for the same.
      step: "token", or "turn": the actions of one turn are one step with the sum of their rewards and the value before the
        first of them; all share its advantage and target.
      reward_weights: factor of each reward component; 1 by default.

    Raises:
      ValueError: an unknown step.

    Source: https://arxiv.org/abs/1506.02438; decoupled and length-adaptive decays: VAPO, https://arxiv.org/abs/2504.05118
    """
    require(step in STEPS, "step", step, f"one of {STEPS}")
    rewards, present = rewards_per_token(rollouts, reward_weights)
    values, steps = masked(rollouts.extras["behavior_value"], rollouts.mask), rollouts.mask
    if step == "turn":
        rewards, steps = over_turns(rewards, rollouts), first_actions(rollouts)

    def estimate(decay):
        decay = decay(rollouts) if callable(decay) else decay
        found = _estimate(rewards, values, steps, discount, discount * decay)
        return found if step == "token" else along_turns(found, rollouts)

    advantage = estimate(trace_decay)
    targets = advantage if value_trace_decay is None else estimate(value_trace_decay)
    before = values if step == "token" else along_turns(values, rollouts)
    extras = {**rollouts.extras, "returns": targets + before}
    return rollouts.replace(advantage=advantage, extras=extras, valid=rollouts.valid * present)


def _estimate(rewards, values, steps, discount: float, fading):
    """A [N, T] at the steps, 0 elsewhere; `fading` is discount * trace decay, of all or [N]."""

    def backward(carry, inputs):
        next_value, next_advantage = carry
        reward, value, is_step = inputs
        advantage = reward + discount * next_value - value + fading * next_advantage
        return (jnp.where(is_step, value, next_value), jnp.where(is_step, advantage, next_advantage)), advantage

    zeros = jnp.zeros(rewards.shape[0])
    inputs = (rewards.T, values.T, steps.T > 0)
    return masked(jax.lax.scan(backward, (zeros, zeros), inputs, reverse=True)[1].T, steps)


@stateless(annotations=("behavior_value",), provides=("returns",))
def minus_value(rollouts: Rollouts) -> Rollouts:
    """Takes the critic's value off advantages that are returns, A - V; the returns go to `extras["returns"]` as its targets.

    Behind `reward_to_go` it is the Monte-Carlo advantage, which is `gae(trace_decay=1)`.
    """
    values = masked(rollouts.extras["behavior_value"], rollouts.mask)
    returns = masked(rollouts.advantage, rollouts.mask)
    return rollouts.replace(advantage=returns - values, extras={**rollouts.extras, "returns": returns})
