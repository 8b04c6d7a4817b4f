"""Advantages that look at tails of the scores, at bounds of rewards on average, or at a target."""

import jax.numpy as jnp

from jaxrl_llm.compose import require
from jaxrl_llm.estimators import pools
from jaxrl_llm.estimators.base import stateful, stateless
from jaxrl_llm.estimators.pools import classes, group_bounds, group_mean, group_rank, group_sum, group_variance, one_each
from jaxrl_llm.estimators.scores import component_of, row_scores, set_row_advantage
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts

CREDITS = ("share", "std", "uniform")
EPSILON = 1e-6


@stateful(lambda **options: {"quantiles": jnp.zeros(2), "started": jnp.zeros((), bool)})
def risk_advantage(
    rollouts: Rollouts, state, key, *, bundle: int = 5, levels: tuple[float, float] = (0.2, 0.8), tail_weight: float = 1.5,
    rate: float = 0.1, credit: str = "share", reward_weights: tuple[float, ...] | None = None,
):  # fmt: skip
    """Mixed value at risk of bundles: several prompts are one exam, and bad exams count most.

    `bundle` consecutive groups make a bundle; the j-th rows of its groups make a paper with the score S, the sum of
    theirs. With the quantiles q_a and q_b of the scores of papers at the levels a and b, A = (w A_tail + A_middle) / (w +
    1) / std, where A_tail = -(q_a - S)_+ / a, A_middle = [(S - q_a)_+ - (S - q_b)_+] / (b - a), w is `tail_weight` and
    std Bessel's deviation of the bundle's papers. The quantiles are those of the first step, then they follow: q <- q +
    rate (level - share of S < q).

    Args:
      rollouts: N rows; `group` is numbered in the order of prompts, and rows of a group are taken in their order.
      bundle: prompts in a paper.
      levels: a and b.
      tail_weight: w.
      rate: step size of the quantiles.
      credit: how a paper's advantage goes to its rows: "share", in proportion to their difference from the mean score of their
        group (evenly where these add up to 0), "std", divided by the deviation of their group, or "uniform", to each.

    Raises ValueError: a bundle below 1, levels that are not 0 < a < b < 1, or an unknown credit.
    Source: RiskPO, https://arxiv.org/abs/2510.00911
    """
    require(bundle >= 1, "bundle", bundle, "at least 1 prompt")
    require(0 < levels[0] < levels[1] < 1, "levels", levels, "two numbers between 0 and 1, the smaller one first")
    require(credit in CREDITS, "credit", credit, f"one of {CREDITS}")
    score, present = row_scores(rollouts, reward_weights)
    score, together = masked(score, present), rollouts.group // bundle
    paper = classes(together, _number_in_group(rollouts.group, present))
    total, counted = group_sum(score, paper), one_each(present, paper)
    quantiles = _quantiles(state, total, counted, levels)
    spread = jnp.sqrt(group_variance(total, counted, together, 1)) + EPSILON
    value = _mixed_value(total, quantiles, levels, tail_weight) / spread
    advantage = value * _credit(credit, score, present, rollouts.group, paper)
    return set_row_advantage(rollouts, advantage, present), _followed(state, quantiles, total, counted, levels, rate)


def _number_in_group(group, present):
    """How many present rows of its own group stand before a row, int [N]."""
    rows = jnp.arange(group.shape[0])
    earlier = (group[:, None] == group) & (rows[:, None] > rows) & (present > 0)
    return earlier.sum(axis=1).astype(jnp.int32)


def _mixed_value(total, quantiles, levels, tail_weight: float):
    low, high = levels
    middle = jnp.maximum(total - quantiles[0], 0.0) - jnp.maximum(total - quantiles[1], 0.0)
    tail = -jnp.maximum(quantiles[0] - total, 0.0)
    return (tail_weight * tail / (low + EPSILON) + middle / (high - low + EPSILON)) / (tail_weight + 1)


def _quantiles(state, total, counted, levels):
    everything = jnp.zeros(total.shape, jnp.int32)
    empirical = jnp.stack([pools.group_quantile(total, counted, everything, level)[0] for level in levels])
    return jnp.where(state["started"], state["quantiles"], empirical)


def _followed(state, quantiles, total, counted, levels, rate: float):
    """The state after the step; a step without any paper leaves it as it is."""
    below = safe_divide((counted * (total < quantiles[:, None])).sum(axis=1), counted.sum())
    some = counted.any()
    moved = quantiles + rate * (jnp.asarray(levels) - below)
    return {"quantiles": jnp.where(some, moved, state["quantiles"]), "started": state["started"] | some}


def _credit(kind: str, score, present, group, paper):
    """What of the advantage of its paper each row gets, [N]."""
    if kind == "uniform":
        return jnp.ones_like(score)
    if kind == "std":
        deviation = jnp.sqrt(group_variance(score, present, group, 1))
        return 1.0 / (jnp.where(deviation < 1e-3, 1.0, deviation) + EPSILON)
    lead = masked(score - group_mean(score, present, group), present)
    total, members = group_sum(lead, paper), group_sum(present, paper)
    return jnp.where(jnp.abs(total) > EPSILON, safe_divide(lead, total), safe_divide(jnp.ones_like(score), members))


@stateless
def cvar_advantage(
    rollouts: Rollouts, *, share: float = 0.5, level: float = 0.25, reward_weights: tuple[float, ...] | None = None
) -> Rollouts:
    """A = u - mean u of the group, u = (1 - `share`) r + `share` (q - max(q - r, 0) / `level`).

    The mean of u over the group is the mix (1 - `share`) mean + `share` CVaR of its scores: the conditional value at risk
    (expected shortfall) at the `level` is the mean of so large a share of the worst of them. q is their `level`-quantile, the
    smallest score that at least this share of the rows do not exceed, which is where the CVaR, a maximum over q, lies. Groups
    of one and groups whose scores are equal have advantage 0.

    Args:
      share: lambda, from 0 (the mean alone) to 1 (the worst rows alone).
      level: alpha, above 0 and up to 1.

    Raises ValueError: a share that is not from 0 to 1, or a level out of (0, 1].
    Source: expected conditional risk measures, https://arxiv.org/abs/2301.10932
    """
    if not 0 <= share <= 1 or not 0 < level <= 1:
        raise ValueError(f"share={share}, level={level}: the share must be from 0 to 1, the level above 0 and at most 1")
    score, present = row_scores(rollouts, reward_weights)
    group = rollouts.group
    members = group_sum(present, group)
    not_above = members - group_rank(-score, present, group)
    # Rounding shall not make 0.3 * 10 a little more than 3.
    quantile, _ = group_bounds(score, present * (not_above >= level * members - 1e-4), group)
    quantile = jnp.where(jnp.isfinite(quantile), quantile, 0.0)
    utility = (1.0 - share) * score + share * (quantile - jnp.maximum(quantile - score, 0.0) / level)
    return set_row_advantage(rollouts, utility - group_mean(utility, present, group), present)


@stateful(lambda *, initial, **options: jnp.float32(initial))
def lagrangian_advantage(
    rollouts: Rollouts, multiplier, key, *, limit: float, cost: int = 1, initial: float = 0.0, rate: float = 0.01,
    penalty: float = 10.0, confidence: float = 0.5,
):  # fmt: skip
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

    Raises ValueError: there is no such component.
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
      bounds: least mean of each of the other components, in their order.
      objective: the component that is maximised.
      sharpness: t; the larger, the nearer to its bound a component may go.
      margin: smallest slack.

    Raises ValueError: `bounds` is not for K - 1 components, there is no component `objective`, or sharpness or margin are not
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

    Source: CounterPol, https://arxiv.org/abs/2307.13192
    """
    score, present = row_scores(rollouts, reward_weights)
    mean = safe_divide(masked(score, present).sum(), present.sum())
    return rollouts.replace(advantage=2.0 * (target - mean) * masked(rollouts.advantage, rollouts.mask))
