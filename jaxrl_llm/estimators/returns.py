"""Returns and advantages along a row, by actions or by turns, and KL penalties in the reward."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable, require
from jaxrl_llm.estimators.base import stateful, stateless
from jaxrl_llm.estimators.pools import classes, divisor, group_mean, group_variance
from jaxrl_llm.estimators.scores import last_action, row_scores
from jaxrl_llm.numerics import kl_estimate, masked, over_segments, safe_divide
from jaxrl_llm.types import Rollouts


def rewards_per_token(rollouts: Rollouts, reward_weights: tuple[float, ...] | None = None) -> tuple[jax.Array, jax.Array]:
    """Rewards [N, T] at the actions they follow: components at the last action, token rewards at their own.

    Returns: rewards [N, T] and present [N].
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
      kind: see `numerics.kl_estimate`.
      bound: largest size of an estimate (nats); OpenRLHF bounds every kind at 10.

    Raises ValueError: an unknown kind, or one such as "k3+", whose other gradient has no meaning in a reward.
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
      kind, bound: as in `kl_in_reward`.

    Raises ValueError: as in `kl_in_reward`.
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


@stateful(lambda *, initial, **options: jnp.float32(initial), annotations=("behavior_logp", "reference_logp"))
def adaptive_kl_in_reward(
    rollouts: Rollouts, state, key, *, initial: float = 0.2, target: float = 6.0, horizon: float = 10_000.0, kind: str = "k1",
    bound: float | None = None,
):  # fmt: skip
    """`kl_in_reward` with a coefficient c that rises where answers have more KL than the target and falls where they have less.

    After each step c <- c (1 + clip(KL / target - 1, -0.2, 0.2) N / horizon), with KL the mean over the N valid rows of the
    sum of their actions' estimates. The state is c; without a valid row it stays.

    Args:
      initial: c at the first step.
      target: KL of a whole answer that is aimed at, nats.
      horizon: in answers; so many with an error of 0.2 change c by about the factor e^0.2.
      kind, bound: as in `kl_in_reward`; the KL that is measured has the bound too.

    Source: Ziegler et al., https://arxiv.org/abs/1909.08593, section 2.2
    """
    valid = (rollouts.valid > 0).astype(jnp.float32)
    estimate = kl_estimate(rollouts.behavior_logp, rollouts.extras["reference_logp"], kind)
    estimate = estimate if bound is None else jnp.clip(estimate, -bound, bound)
    mean = safe_divide(jnp.sum(masked(estimate, rollouts.mask).sum(axis=1) * valid), valid.sum())
    error = jnp.where(valid.sum() > 0, jnp.clip(mean / target - 1.0, -0.2, 0.2), 0.0)
    penalised = kl_in_reward.function(rollouts, coefficient=state, kind=kind, bound=bound)
    return penalised, state * (1.0 + error * valid.sum() / horizon)


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
    return first * over_segments(jax.ops.segment_sum, masked(values, rollouts.mask), number)


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


@stateless
def turn_reward_to_go(
    rollouts: Rollouts, *, discount: float = 1.0, lengths: bool = False, reward_weights: tuple[float, ...] | None = None
) -> Rollouts:
    """Advantage of each action = discounted sum of the rewards from its turn onwards, in which time counts turns.

    Args:
      discount: by turn; 0 leaves each turn its own reward.
      lengths: whether it is divided by the number of the turn's actions, so that turns count alike in sums over tokens.

    Source: EPO, https://arxiv.org/abs/2502.12486
    """
    rewards, present = rewards_per_token(rollouts, reward_weights)
    returns = discounted_sums(over_turns(rewards, rollouts), first_actions(rollouts), discount)
    advantage = along_turns(returns, rollouts)
    if lengths:
        advantage = safe_divide(advantage, along_turns(over_turns(rollouts.mask, rollouts), rollouts))
    return rollouts.replace(advantage=masked(advantage, rollouts.mask), valid=rollouts.valid * present)


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


@stateless(annotations=("step_reward",))
def step_returns(rollouts: Rollouts, *, discount: float = 1.0, epsilon: float | None = 1e-6) -> Rollouts:
    """Rewards of steps, standardised over all steps of the group, summed from each step onwards.

    With r~ = (r - mean) / (std + epsilon), A of step i is the sum over k >= i of discount^(k - i) r~_k. Steps are the turns
    of a row. The deviation is Bessel's.

    Args:
      rollouts: with `extras["step_reward"]` [N, T], whose sum over a step is its reward.

    Source: GRPO with process supervision, https://arxiv.org/abs/2402.03300, section 4.1.3
    """
    first = first_actions(rollouts)
    counted = first * (rollouts.valid > 0)[:, None]
    rewards = over_turns(rollouts.extras["step_reward"], rollouts)
    groups = jnp.broadcast_to(rollouts.group[:, None], first.shape).ravel()
    rewards = counted * _standardised(rewards.ravel(), counted.ravel(), groups, epsilon).reshape(first.shape)
    return rollouts.replace(advantage=along_turns(first * discounted_sums(rewards, first, discount), rollouts))


def _standardised(values, present, group, epsilon: float | None):
    centred = masked(values - group_mean(values, present, group), present)
    if epsilon is None:
        return centred
    return safe_divide(centred, divisor(group_variance(values, present, group, 1), epsilon, "outside"))


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
    rollouts: Rollouts, *, discount: float = 1.0, trace_decay: float | Composable = 0.95,
    value_trace_decay: float | Composable | None = None, step: str = "token", reward_weights: tuple[float, ...] | None = None,
) -> Rollouts:  # fmt: skip
    """Generalised advantage estimation over the actions of each row; the state after the last action has value 0.

    delta_t = r_t + discount * V_{t+1} - V_t, A_t = delta_t + discount * trace_decay * A_{t+1}, where t + 1 is the next
    action: tokens between two actions (a prompt, a tool's answer) take no time. The critic's targets A_t + V_t go to
    `extras["returns"]` [N, T].

    Args:
      rollouts: with `extras["behavior_value"]` [N, T], value of the state before each token.
      trace_decay: lambda, or a function of the rollouts that gives one for each row, such as `length_adaptive_decay()`.
      value_trace_decay: another lambda for the critic's targets; None for the same.
      step: "token", or "turn": the actions of one turn are one step with the sum of their rewards and the value before the
        first of them; all share its advantage and target.

    Raises ValueError: an unknown step.
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
