"""What another policy would have earned, from rollouts that a sampler logged: pure functions of arrays, for users.

They are no estimators of a method and no measures of `evaluate`, which samples anew: call them on `Rollouts.behavior_logp`, on
the log-probabilities that `scoring` gives of the candidate policy, and on rewards, before it is deployed. Rows without a reward
have to be left out. Weights are kept as their logarithms (nats), and within +-20 where an exponential of one stands by itself;
of no rows, every result is 0.

Source: SCOPE-RL, https://arxiv.org/abs/2311.18206
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import require
from jaxrl_llm.numerics import MAX_LOG_RATIO, log_ratio, masked, safe_divide


def trajectory_log_weight(logp, behavior_logp, mask):
    """log of the product over the actions of pi / mu, [N], nats.

    Args:
      logp: log-probabilities [N, T] under the policy that is evaluated, pi.
      behavior_logp: under the one that sampled, mu.
      mask: [N, T], 1 where the token is an action.
    """
    return _action_log_ratio(logp, behavior_logp, mask).sum(axis=1)


def importance_sampling_value(log_weight, returns):
    """mean of w R: unbiased while no weight is cut, and of a variance that grows with the length.

    Args:
      log_weight: [N], nats; see `trajectory_log_weight`.
      returns: total rewards R, [N].
    """
    return _mean(_weight(log_weight) * returns)


def self_normalised_value(log_weight, returns):
    """sum w R / sum w: biased, within the range of the returns, and finite for weights of any size."""
    return _shares(log_weight) @ jnp.asarray(returns, jnp.float32)


def per_decision_value(logp, behavior_logp, mask, rewards, *, discount: float = 1.0):
    """mean over rows of sum_t discount^t w_{1:t} r_t: a reward has the weight of the actions up to it alone.

    Args:
      logp, behavior_logp, mask: as in `trajectory_log_weight`.
      rewards: [N, T], at the actions that they follow.
    """
    until = jnp.cumsum(_action_log_ratio(logp, behavior_logp, mask), axis=1)
    return _mean(masked(_discounts(mask, discount) * _weight(until) * masked(rewards, mask), mask).sum(axis=1))


def doubly_robust_value(logp, behavior_logp, mask, rewards, values, action_values, *, discount: float = 1.0):
    """mean over rows of sum_t discount^t [w_{1:t} (r_t - Q_t) + w_{1:t-1} V_t]: exact where either the weights or Q and V are.

    Args:
      logp, behavior_logp, mask, rewards: as in `per_decision_value`.
      values: V [N, T], estimates of the policy's return from the state before each action.
      action_values: Q [N, T], of its return after the action that was taken.
    """
    moved = _action_log_ratio(logp, behavior_logp, mask)
    until = jnp.cumsum(moved, axis=1)
    reward, value, action_value = (masked(array, mask) for array in (rewards, values, action_values))
    gain = _weight(until) * (reward - action_value) + _weight(until - moved) * value
    return _mean(masked(_discounts(mask, discount) * gain, mask).sum(axis=1))


def return_distribution(log_weight, returns):
    """The returns in rising order [N], and the self-normalised probability [N] of one that is not above each of them."""
    order = jnp.argsort(returns)
    return jnp.asarray(returns, jnp.float32)[order], jnp.cumsum(_shares(log_weight)[order])


def return_variance(log_weight, returns):
    """Self-normalised variance of the return."""
    return _shares(log_weight) @ jnp.square(returns - self_normalised_value(log_weight, returns))


def return_quantile(log_weight, returns, *, level: float):
    """The smallest return that is not exceeded with a probability of `level` (self-normalised).

    Raises ValueError: a level that is not from 0 to 1.
    """
    require(0 <= level <= 1, "level", level, "from 0 to 1")
    ordered, probability = return_distribution(log_weight, returns)
    enough = probability >= min(level, 1.0 - 1e-6) - 1e-6
    smallest = jnp.where(enough, ordered, jnp.inf).min(initial=jnp.inf)
    return jnp.where(jnp.isfinite(smallest), smallest, 0.0)


def conditional_value_at_risk(log_weight, returns, *, level: float):
    """Mean of the worst returns that make up a probability of `level` (self-normalised): CVaR, the expected shortfall.

    Raises ValueError: a level out of (0, 1].
    """
    require(0 < level <= 1, "level", level, "above 0 and at most 1")
    ordered, probability = return_distribution(log_weight, returns)
    before = jnp.pad(probability, (1, 0))[:-1]
    mass = jnp.clip(jnp.minimum(probability, level) - before, 0.0)
    return mass @ ordered / level


def sharpe_ratio_at_k(estimates, values, *, baseline: float, k: int):
    """max(best - `baseline`, 0) / deviation of the true values of the `k` policies with the highest estimates.

    It judges an estimator of values by the return and the risk of deploying what it recommends. The deviation is Bessel's, as
    in the authors' program; where all values are equal, the ratio is 0.

    Args:
      estimates: of P policies, [P].
      values: their true values, [P].
      baseline: value of the policy that sampled.
      k: at least 2, at most P.

    Raises ValueError: an impossible `k`.
    Source: https://arxiv.org/abs/2311.18207
    """
    count = len(estimates)
    require(2 <= k <= count, "k", k, f"from 2 to the number of policies, {count}")
    chosen = jnp.asarray(values, jnp.float32)[jnp.argsort(jnp.asarray(estimates), descending=True)[:k]]
    spread = jnp.where(chosen.max() > chosen.min(), jnp.std(chosen, ddof=1), 0.0)
    return safe_divide(jnp.maximum(chosen.max() - baseline, 0.0), spread)


def _action_log_ratio(logp, behavior_logp, mask):
    return masked(log_ratio(masked(logp, mask), masked(behavior_logp, mask)), mask)


def _weight(log_weight):
    return jnp.exp(jnp.clip(log_weight, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _shares(log_weight):
    return jax.nn.softmax(jnp.asarray(log_weight, jnp.float32))


def _discounts(mask, discount: float):
    """discount^t [N, T] of the t-th action of each row, t from 0."""
    actions = (jnp.asarray(mask) > 0).astype(jnp.float32)
    return discount ** masked(jnp.cumsum(actions, axis=1) - 1.0, actions)


def _mean(values):
    return safe_divide(values.sum(), jnp.float32(values.shape[0]))
