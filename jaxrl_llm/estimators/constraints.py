"""Several rewards with bounds on what they may be on average, and a single one with a target."""

import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateful, stateless
from jaxrl_llm.estimators.pools import group_mean
from jaxrl_llm.estimators.scores import component_of, row_scores, set_row_advantage
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts


@stateful(lambda *, initial, **options: jnp.float32(initial))
def lagrangian_advantage(
    rollouts: Rollouts,
    multiplier,
    key,
    *,
    limit: float,
    cost: int = 1,
    initial: float = 0.0,
    rate: float = 0.01,
    penalty: float = 10.0,
    confidence: float = 0.5,
):
    """A = A_reward - l A_cost under a limit of the cost, with the multiplier l of an augmented Lagrangian.

    A_reward is the sum of all components but the cost, A_cost the cost, each less its mean over the group. With the cautious
    estimate J = mean + `confidence` std / sqrt(n) of the step's n costs and the excess J - `limit`, l = max(0, lambda +
    `penalty` excess); after the step lambda <- max(0, lambda + `rate` excess). The state is lambda; a step without any cost has
    no excess.

    Args:
      limit: d, largest mean cost that is allowed.
      cost: the reward component that is a cost: the less, the better.
      initial: lambda at the first step.
      rate: step size of lambda.
      penalty: c, factor of the quadratic term.
      confidence: k, standard errors that the estimate lies above the mean.

    Raises:
      ValueError: there is no such component.

    Source: CAL, https://arxiv.org/abs/2401.14758
    """
    value, known = component_of(rollouts, cost)
    group, number = rollouts.group, known.sum()
    mean = safe_divide(value @ known, number)
    deviation = jnp.sqrt(safe_divide(jnp.square(value - mean) @ known, number))
    excess = jnp.where(number > 0, mean + confidence * safe_divide(deviation, jnp.sqrt(number)) - limit, 0.0)
    others = jnp.asarray(rollouts.rewards, jnp.float32).at[:, cost].set(jnp.nan)
    score, present = row_scores(rollouts.replace(rewards=others))
    strength = jnp.maximum(multiplier + penalty * excess, 0.0)
    costly = known * (value - group_mean(value, known, group))
    advantage = score - group_mean(score, present, group) - strength * costly
    return set_row_advantage(rollouts, advantage, present), jnp.maximum(multiplier + rate * excess, 0.0)


@stateless
def log_barrier_advantage(
    rollouts: Rollouts, *, bounds: tuple[float, ...], objective: int = 0, sharpness: float = 20.0, margin: float = 1e-3
) -> Rollouts:
    """A = A_objective + sum_i A_i / (t s_i): gradient of J_objective + (1 / t) sum_i log(J_i - bound_i), t = `sharpness`.

    J_i is the mean of component i over the step's rows, A_i the component less its mean over the group, and the slack s_i is
    max(J_i - bound_i, `margin`): below the margin, where the logarithm would end, its tangent goes on. So a component that is
    below its bound pulls with the full weight 1 / (t margin). A component that no row has pulls at nothing.

    Args:
      rollouts: N rows with K reward components.
      bounds: least mean of each of the other components, in their order.
      objective: the component that is maximised.
      sharpness: t; the larger, the nearer to its bound a component may go.
      margin: smallest slack.

    Raises:
      ValueError: `bounds` is not for K - 1 components, there is no component `objective`, or sharpness or margin are not
        above 0.

    Source: C-MORL, https://arxiv.org/abs/2410.02236; the barrier is that of IPO, https://arxiv.org/abs/1910.09615
    """
    if sharpness <= 0 or margin <= 0:
        raise ValueError(f"sharpness={sharpness}, margin={margin}: both must be above 0")
    others = [component for component in range(rollouts.rewards.shape[1]) if component != objective]
    if len(bounds) != len(others):
        raise ValueError(f"bounds has {len(bounds)} entries; beside component {objective} the rollouts have {len(others)}")
    value, known = component_of(rollouts, objective)
    _, present = row_scores(rollouts)
    total = known * (value - group_mean(value, known, rollouts.group))
    for component, bound in zip(others, bounds, strict=True):
        value, known = component_of(rollouts, component)
        slack = jnp.maximum(safe_divide(value @ known, known.sum()) - bound, margin)
        total += known * (value - group_mean(value, known, rollouts.group)) / (sharpness * slack)
    return set_row_advantage(rollouts, total, present)


@stateless
def target_return(rollouts: Rollouts, *, target: float, reward_weights: tuple[float, ...] | None = None) -> Rollouts:
    """Multiplies the advantages by 2 (`target` - J), J the mean score of the step: descent on (J - `target`)^2.

    Below the target the policy learns what is good, above it what is bad, and at the target nothing. J and the advantages are
    of the same rows, so that their product is biased by a share of 1 / N.

    Args:
      rollouts: with advantages.
      target: mean score that is aimed at.
      reward_weights: factor of each reward component; 1 by default.

    Source: CounterPol, https://arxiv.org/abs/2307.13192
    """
    score, present = row_scores(rollouts, reward_weights)
    mean = safe_divide(masked(score, present).sum(), present.sum())
    return rollouts.replace(advantage=2.0 * (target - mean) * masked(rollouts.advantage, rollouts.mask))
