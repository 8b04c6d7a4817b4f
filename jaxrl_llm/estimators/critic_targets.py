"""Targets of critics: what the value of the state before each action shall become, `extras["returns"]` [N, T].

Time counts actions only, and the state behind the last one has value 0. `of` names whose values are bootstrapped from:
"behavior", the critic at the beginning of the step, or "target", its exponential average, which a method's `Critic` keeps.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, require
from jaxrl_llm.estimators.base import stateful, stateless
from jaxrl_llm.estimators.returns import discounted_sums, rewards_per_token
from jaxrl_llm.numerics import MAX_LOG_RATIO, log_ratio, masked, safe_divide
from jaxrl_llm.types import Rollouts


def _value_of(options: dict) -> tuple[str, ...]:
    return (f"{options['of']}_value",)


def at_next_action(values, steps):
    """Of [N, T, ...], at each place what stands at the next place where `steps` [N, T] is positive; 0 behind the last."""
    columns = steps.shape[1]
    places = jax.lax.cummin(jnp.where(steps > 0, jnp.arange(columns), columns), axis=1, reverse=True)
    following = jnp.pad(places[:, 1:], ((0, 0), (0, 1)), constant_values=columns)
    padded = jnp.pad(values, ((0, 0), (0, 1)) + ((0, 0),) * (values.ndim - 2))
    return jax.vmap(lambda row, places: row[places])(padded, following)


def _with_returns(rollouts: Rollouts, returns, **more) -> Rollouts:
    extras = {**rollouts.extras, "returns": masked(returns, rollouts.mask), **more}
    return rollouts.replace(extras=extras)


@stateless(provides=("returns",))
def monte_carlo_targets(rollouts: Rollouts, *, discount: float = 1.0) -> Rollouts:
    """The discounted sum of the rewards from the action onwards: no bootstrap, and so no bias.

    In continuous time this is the martingale loss, whose critic is the true value; the squared one-step error with a gradient
    through both of its values measures the noise of the returns instead.

    Source: https://arxiv.org/abs/2108.06655, section 4
    """
    rewards, _ = rewards_per_token(rollouts)
    return _with_returns(rollouts, discounted_sums(rewards, rollouts.mask, discount))


@stateless(annotations=_value_of, provides=("returns",))
def td_targets(rollouts: Rollouts, *, steps: int = 1, discount: float = 1.0, of: str = "target") -> Rollouts:
    """Rewards of the next `steps` actions and the value of the state behind them.

    Args:
      rollouts: with `extras["{of}_value"]` [N, T].
      steps: n, at least 1.
      of: "behavior" or "target".

    Raises ValueError: `steps` is below 1.
    Source: n-step returns, https://arxiv.org/abs/1602.01783
    """
    require(steps >= 1, "steps", steps, "at least 1")
    rewards, _ = rewards_per_token(rollouts)
    found = masked(rollouts.extras[f"{of}_value"], rollouts.mask)
    for _ in range(steps):
        found = rewards + discount * at_next_action(found, rollouts.mask)
    return _with_returns(rollouts, found)


@stateless(annotations=_value_of, provides=("returns",))
def blended_targets(
    rollouts: Rollouts, *, share: float = 0.5, by: Literal["constant", "sigmoid", "rank"] = "rank", discount: float = 1.0,
    of: str = "target",
) -> Rollouts:  # fmt: skip
    """r_t + discount ((1 - l) V_{t+1} + l G_{t+1}): values blended with the returns of the sample, more of a good one.

    l is `share` times 1 ("constant"), the logistic function of the standardised return ("sigmoid"), or the share of the rows
    of the step whose return is not above the row's own ("rank").

    Args:
      rollouts: with `extras["{of}_value"]` [N, T].
      share: largest l, from 0 to 1.
      of: "behavior" or "target".

    Raises ValueError: an unknown `by`, or a share outside of [0, 1].
    Source: HUBL, https://arxiv.org/abs/2306.00321, section 3
    """
    require(0 <= share <= 1, "share", share, "from 0 to 1")
    rewards, present = rewards_per_token(rollouts)
    whole, taken = rewards.sum(axis=1), rollouts.valid * present > 0
    count = taken.sum()
    if by == "constant":
        part = jnp.ones_like(whole)
    elif by == "rank":
        part = safe_divide(jnp.sum(taken & (whole <= whole[:, None]), axis=1), count)
    else:
        mean = safe_divide(masked(whole, taken).sum(), count)
        variance = safe_divide(masked(jnp.square(whole - mean), taken).sum(), count)
        part = jax.nn.sigmoid(safe_divide(whole - mean, jnp.sqrt(jnp.where(variance > 0, variance, 1.0))) * (variance > 0))
    sampled = discounted_sums(rewards, rollouts.mask, discount)
    value = masked(rollouts.extras[f"{of}_value"], rollouts.mask)
    trusted = (share * part)[:, None]
    following = at_next_action((1.0 - trusted) * value + trusted * sampled, rollouts.mask)
    return _with_returns(rollouts, rewards + discount * following)


@stateless(annotations=("behavior_value", "behavior_logp", "proximal_logp"), provides=("returns",))
def v_trace(
    rollouts: Rollouts, *, discount: float = 1.0, trace_decay: float = 1.0, clip_rho: float = 1.0, clip_c: float = 1.0
) -> Rollouts:
    """Values and advantages of the policy that learns, from samples of an older one.

    With the ratio w of the policy before the step to the one that sampled, rho = min(`clip_rho`, w) and
    c = `trace_decay` min(`clip_c`, w): v_t = V_t + rho_t (r_t + discount V_{t+1} - V_t) + discount c_t (v_{t+1} - V_{t+1}), and
    A_t = rho_t (r_t + discount v_{t+1} - V_t).

    Args:
      rollouts: with values and both log-probabilities [N, T].
      clip_rho: which policy's value is learnt; without bound that of the policy itself.
      clip_c: how far corrections reach back.

    Source: IMPALA, https://arxiv.org/abs/1802.01561, section 4
    """
    rewards, present = rewards_per_token(rollouts)
    mask = rollouts.mask
    ratio = jnp.exp(masked(log_ratio(rollouts.extras["proximal_logp"], rollouts.behavior_logp, MAX_LOG_RATIO), mask))
    rho, trace = jnp.minimum(ratio, clip_rho), discount * trace_decay * jnp.minimum(ratio, clip_c)
    values = masked(rollouts.extras["behavior_value"], mask)
    errors = rho * (rewards + discount * at_next_action(values, mask) - values)

    def backward(further, inputs):
        error, passed, is_step = inputs
        total = jnp.where(is_step, error + passed * further, further)
        return total, total

    beyond = jax.lax.scan(backward, jnp.zeros(len(mask)), (errors.T, trace.T, mask.T > 0), reverse=True)[1].T
    targets = masked(values + beyond, mask)
    advantage = rho * (rewards + discount * at_next_action(targets, mask) - values)
    found = _with_returns(rollouts, targets)
    return found.replace(advantage=masked(advantage, mask), valid=rollouts.valid * present)


@stateful(annotations=("target_value", "target_value_outputs"), provides=("returns", "return_samples"))
def distribution_targets(
    rollouts: Rollouts, state, key, *, kind: Literal["quantiles", "gaussian"], discount: float = 1.0, expected: bool = True
):
    """One-step targets of a critic of distributions: their mean r + discount V' in "returns", and samples r + discount Z'.

    Samples [N, T, m] go to `extras["return_samples"]`: all "quantiles" of the state behind the action, or one draw of the
    "gaussian" pair of outputs with the least mean, as `heads.gaussian` and `values.gaussian_value_loss` read it.

    Args:
      rollouts: with what the averaged critic says, [N, T] and [N, T, n].
      expected: whether "returns" are the means, or else the means of the samples: of one draw, the draw.

    Raises ValueError: an unknown kind.
    Source: https://arxiv.org/abs/1710.10044; DSAC, https://arxiv.org/abs/2001.02811
    """
    rewards, _ = rewards_per_token(rollouts)
    outputs = masked(rollouts.extras["target_value_outputs"], rollouts.mask[..., None])
    if kind == "gaussian":
        least = jnp.argmin(outputs[..., ::2], axis=-1)[..., None]
        mean, raw = (jnp.take_along_axis(part, least, axis=-1) for part in (outputs[..., ::2], outputs[..., 1::2]))
        outputs = mean + jax.nn.softplus(raw) * jax.random.normal(key, mean.shape)
    following = at_next_action(masked(outputs, rollouts.mask[..., None]), rollouts.mask)
    value = at_next_action(masked(rollouts.extras["target_value"], rollouts.mask), rollouts.mask)
    samples = masked(rewards[..., None] + discount * following, rollouts.mask[..., None])
    returns = rewards + discount * value if expected else samples.mean(axis=-1)
    return _with_returns(rollouts, returns, return_samples=samples), state


@stateless(annotations=("behavior_value_outputs",))
def stock_advantage(rollouts: Rollouts, *, share: float = 0.25, trace_decay: float = 0.95) -> Rollouts:
    """Generalised advantages of U_t = mean_j min(c_t + q_j(s_t), 0), whose greatest value is one of the tail of returns.

    c_t, the stock, is c_0 and the rewards before the action, q_j are quantiles of the return from there, and c_0 is minus their
    `share`-quantile at the first action: the return under which `share` of all lie. Behind the last action q is 0.

    Args:
      rollouts: with `extras["behavior_value_outputs"]` [N, T, n], quantiles of the return.
      share: of the returns that count.

    Raises ValueError: the share is not between 0 and 1.
    Source: https://arxiv.org/abs/2501.13028, section on the conditional value at risk
    """
    require(0 < share < 1, "share", share, "above 0 and below 1")
    rewards, present = rewards_per_token(rollouts)
    mask = rollouts.mask
    outputs = masked(rollouts.extras["behavior_value_outputs"], mask[..., None])
    first = (mask > 0) & (jnp.cumsum(mask > 0, axis=1) == 1)
    level = jnp.sum(masked(jnp.quantile(outputs, share, axis=-1), first), axis=1)
    stock = jnp.cumsum(rewards, axis=1) - rewards - level[:, None]
    utility = masked(jnp.minimum(stock[..., None] + outputs, 0.0).mean(axis=-1), mask)
    behind = jnp.minimum(rewards.sum(axis=1) - level, 0.0)[:, None]
    last = (mask > 0) & (jnp.cumsum(mask > 0, axis=1) == jnp.sum(mask > 0, axis=1, keepdims=True))
    gains = masked(jnp.where(last, behind, at_next_action(utility, mask)) - utility, mask)
    advantage = discounted_sums(gains, mask, trace_decay)
    return rollouts.replace(advantage=masked(advantage, mask), valid=rollouts.valid * present)


@stateless(annotations=("behavior_value", "candidates", "proximal_candidate_logp", "proximal_max_logp"), provides=("returns",))
def greedy_targets(rollouts: Rollouts, *, greedy: Composable, alpha: float = 0.1, discount: float = 1.0) -> Rollouts:
    """r_t + discount Q(s_{t+1}, b), b being the one candidate there, and Q = V + `alpha` (log pi(b) - log pi(likeliest token)).

    Args:
      rollouts: with values, and what the policy before the step says of its candidates, [N, T, 1].
      greedy: rule that picks the candidate, such as the reference policy's likeliest token.
      alpha: size of a nat in values.

    Source: the conservative Bellman operator of B-Coder, https://arxiv.org/abs/2310.03173
    """
    del greedy
    rewards, present = rewards_per_token(rollouts)
    lead = log_ratio(rollouts.extras["proximal_candidate_logp"][..., 0], rollouts.extras["proximal_max_logp"])
    value = masked(rollouts.extras["behavior_value"] + alpha * lead, rollouts.mask)
    found = _with_returns(rollouts, rewards + discount * at_next_action(value, rollouts.mask))
    return found.replace(valid=rollouts.valid * present)


@stateful(lambda *, initial, **options: jnp.log(jnp.float32(initial)), annotations=("behavior_logp",))
def soft_reward(rollouts: Rollouts, state, key, *, initial: float = 0.01, target: float | None = None, rate: float = 0.01):
    """Adds -alpha log pi of the sampled token to its reward; alpha rises while the entropy is below its target.

    After each step log alpha <- log alpha + `rate` (`target` - H), with H the mean of -log pi over the actions of valid rows.
    The state is log alpha.

    Args:
      rollouts: with `behavior_logp` [N, T].
      initial: alpha at the first step, above 0.
      target: entropy of an action (nats) that is aimed at; None for a fixed alpha.

    Source: SAC, https://arxiv.org/abs/1812.05905, sections 4 and 5
    """
    del key, initial
    taken = rollouts.mask * rollouts.valid[:, None]
    surprise = -masked(jnp.maximum(rollouts.behavior_logp, -MAX_LOG_RATIO), rollouts.mask)
    earlier = 0.0 if rollouts.token_rewards is None else rollouts.token_rewards
    found = rollouts.replace(token_rewards=masked(earlier + jnp.exp(state) * surprise, rollouts.mask))
    if target is None:
        return found, state
    entropy = safe_divide(masked(surprise, taken).sum(), taken.sum())
    return found, state + jnp.where(taken.sum() > 0, rate * (target - entropy), 0.0)
