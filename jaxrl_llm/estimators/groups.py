"""Advantages from comparing the answers to one prompt."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, require
from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.baselines import length_weighted_baseline, mean_baseline, std_scale
from jaxrl_llm.estimators.pools import classes, group_bounds, group_mean, group_sum
from jaxrl_llm.estimators.scores import by_action, by_place, component_weights, row_scores, set_row_advantage
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts

MEAN, STD, BESSEL = mean_baseline(), std_scale(), std_scale(degrees_of_freedom=1)


@stateless
def group_advantage(
    rollouts: Rollouts, *, baseline: Composable | None = MEAN, scale: Composable | None = STD,
    reward_weights: tuple[float, ...] | None = None,
) -> Rollouts:  # fmt: skip
    """Advantage of a row = (its score - baseline) / scale, given to each of its actions.

    Degenerate groups: where all scores are equal, and in groups of one, the advantage is exactly 0 under every baseline that
    is relative to the group. Rows without any reward leave statistics and training.

    Args:
      baseline, scale: see `baselines`; None for none.

    Raises ValueError: a baseline or scale that is no function.
    Source: GRPO, https://arxiv.org/abs/2402.03300; Dr. GRPO (no scale), https://arxiv.org/abs/2503.20783.
    """
    score, present = row_scores(rollouts, reward_weights)
    return set_row_advantage(rollouts, _standardised(score, present, rollouts, baseline, scale), present)


@stateless
def component_advantage(
    rollouts: Rollouts, *, baseline: Composable | None = MEAN, scale: Composable | None = STD,
    reward_weights: tuple[float, ...] | None = None,
) -> Rollouts:  # fmt: skip
    """Each reward component is made an advantage by itself, and these are summed: A = sum_k w_k (r_k - b_k) / s_k.

    So a component with small differences counts as much as one with large differences. Rows that lack a component are left out
    of its statistics, and get none of it. Token rewards have no part here.

    Args:
      baseline, scale: as in `group_advantage`, of each component.

    Source: GDPO, https://arxiv.org/abs/2601.05242, whose second step is `whiten(over="rows")`.
    """
    weights = component_weights(rollouts, reward_weights)
    _, present = row_scores(rollouts, reward_weights)
    total = jnp.zeros(present.shape)
    for component, weight in enumerate(weights):
        value = rollouts.rewards[:, component].astype(jnp.float32)
        known = present * ~jnp.isnan(value)
        share = _standardised(jnp.nan_to_num(value), known, rollouts, baseline, scale)
        total += weight * known * share
    return set_row_advantage(rollouts, total, present)


@stateless
def token_group_advantage(
    rollouts: Rollouts, *, limit: float = 5.0, epsilon: float = 1e-6, reward_weights: tuple[float, ...] | None = None
) -> Rollouts:
    """A = (score - mean) / (std + epsilon) with statistics over the actions of the group, each with the score of its row.

    A long answer so counts as often as it has tokens. The deviation is the population's. A group in which a size of `limit` is
    reached has the advantages of GRPO in place of these, with statistics over rows and Bessel's deviation.

    Raises ValueError: a limit that is not positive.
    Source: HAPO, https://arxiv.org/abs/2509.16591, section 3.2, with the limit of https://github.com/starriver030515/HAPO
    """
    require(limit > 0, "limit", limit, "positive")
    score, present = row_scores(rollouts, reward_weights)
    length, group = rollouts.mask.sum(axis=1) * present, rollouts.group
    mean = length_weighted_baseline.function(score, present, rollouts)
    squares = group_sum(length * jnp.square(masked(score - mean, present)), group)
    spread = jnp.sqrt(safe_divide(squares, group_sum(length, group))) + epsilon
    by_token = (score - mean) / spread
    by_row = _standardised(score, present, rollouts, MEAN, std_scale(degrees_of_freedom=1, epsilon=epsilon))
    _, largest = group_bounds(jnp.abs(by_token), present * (length > 0), group)
    return set_row_advantage(rollouts, jnp.where(largest >= limit, by_row, by_token), present)


def _standardised(score, present, rollouts, baseline, scale):
    for name, slot, example in (("baseline", baseline, "mean_baseline()"), ("scale", scale, "std_scale()")):
        if slot is not None and not callable(slot):
            raise ValueError(f"{name} is {slot!r}; it must be a function such as {example}, or None for none")
    difference = score if baseline is None else score - baseline(score, present, rollouts)
    return difference if scale is None else safe_divide(difference, scale(score, present, rollouts))


@stateless
def prefix_tree_advantage(
    rollouts: Rollouts, *, baseline: Composable | None = MEAN, scale: Composable | None = BESSEL,
    reward_weights: tuple[float, ...] | None = None,
) -> Rollouts:  # fmt: skip
    """Outcome against the group, and at branches of the tree of answers what the token taken is worth more than the others.

    V(prefix) is the mean score of the rows of the group that begin with it, and the advantage of token t is
    (R - b + V(tokens up to t) - V(tokens before t)) / s. The difference of values is 0 wherever all rows that came so far go on
    alike, and so it is all along a row that shares its first action with no other, but there.

    Args:
      rollouts: N rows whose prompts are alike within a group, place by place.
      baseline, scale: b and s, as in `group_advantage`.

    Source: TEMPO, https://arxiv.org/abs/2509.18314
    """
    score, present = row_scores(rollouts, reward_weights)
    width = rollouts.tokens.shape[1]
    tokens = jnp.where(jnp.arange(width) < rollouts.length[:, None], rollouts.tokens, -1)

    def descend(carry, token):
        prefix, before = carry
        prefix = classes(prefix, token)
        after = group_mean(score, present, prefix)
        return (prefix, after), after - before

    start = (rollouts.group.astype(jnp.int32), group_mean(score, present, rollouts.group))
    gains = jax.lax.scan(descend, start, tokens.T)[1].T
    outcome = score if baseline is None else score - baseline(score, present, rollouts)
    advantage = outcome[:, None] + gains
    if scale is not None:
        advantage = safe_divide(advantage, scale(score, present, rollouts)[:, None])
    taken = rollouts.mask * present[:, None]
    return rollouts.replace(advantage=masked(advantage, taken), valid=rollouts.valid * present)


@stateless
def best_lead_advantage(
    rollouts: Rollouts, *, scale: Composable | None = BESSEL, reward_weights: tuple[float, ...] | None = None
) -> Rollouts:
    """The best row of a group gets its lead over the second, r_max - r_second, all others get 0.

    Where several are best, and in groups of one, there is no lead. What the group wins with a row is what it would lose
    without it.

    Args:
      scale: what the lead is divided by, as in `group_advantage`; None for nothing.

    Source: https://arxiv.org/abs/2503.19595; "grpo_passk" of verl
    """
    score, present = row_scores(rollouts, reward_weights)
    best = group_bounds(score, present, rollouts.group)[1]
    leading = present * (score == best)
    second = group_bounds(score, present * (1 - leading), rollouts.group)[1]
    alone = (group_sum(leading, rollouts.group) == 1) & jnp.isfinite(second)
    advantage = jnp.where((leading > 0) & alone, score - jnp.where(alone, second, 0.0), 0.0)
    if scale is not None:
        advantage = safe_divide(advantage, scale(score, present, rollouts))
    return set_row_advantage(rollouts, advantage, present)


@stateless
def pass_at_k_advantage(
    rollouts: Rollouts, *, k: int = 2, threshold: float = 0.5, reward_weights: tuple[float, ...] | None = None
) -> Rollouts:
    """Mean advantage of a row over all sets of k rows of its group, whose reward is 1 where one of them is right.

    With n rows of which w are wrong and C(a, b) the binomial coefficient, the mean reward of a set is m = 1 - C(w, k) / C(n, k)
    and its deviation s = sqrt(m (1 - m)). Right rows get (1 - m) / s, wrong ones (1 - m - C(w - 1, k - 1) / C(n - 1, k - 1)) /
    s. For k = 1 it is GRPO with the population's deviation. Groups with less than k rows, and those where s = 0, get 0.

    Raises ValueError: k is below 1.
    Source: https://arxiv.org/abs/2508.10751
    """
    require(k >= 1, "k", k, "at least 1")
    score, present = row_scores(rollouts, reward_weights)
    right = present * (score > threshold)
    count, wrong = group_sum(present, rollouts.group), group_sum(present - right, rollouts.group)
    none_right = _share_of_sets(wrong, count, k)
    deviation = jnp.sqrt(none_right * (1.0 - none_right))
    others = jnp.where(right > 0, 0.0, _share_of_sets(wrong - 1, count - 1, k - 1))
    # Numbers of rows tell whether the deviation is 0; it is a product of rounded shares.
    enough = (count >= k) & (wrong >= k) & (wrong < count)
    advantage = masked(safe_divide(none_right - others, deviation), enough)
    return set_row_advantage(rollouts, advantage, present)


def _share_of_sets(part, whole, k: int):
    """C(part, k) / C(whole, k) as a product of k shares."""
    share = jnp.ones_like(part)
    for taken in range(k):
        share *= jnp.maximum(safe_divide(part - taken, whole - taken), 0.0)
    return share


TAILS, ALIGNMENTS = ("own", "none"), ("action", "place")


def _read(options) -> tuple[str, ...]:
    weights = (options["weights"],) if options["weights"] else ()
    return ("proximal_logp", "proximal_log_collision", *weights)


@stateless(annotations=_read)
def optimal_token_baseline(
    rollouts: Rollouts, *, tail: str = "own", weights: str | None = None, by: str = "action"
) -> Rollouts:
    """Takes the baseline of least variance off advantages that are returns, for each number of action by itself.

    B_t = sum(G W) / sum(W) over the rows of the group that have a t-th action, where G is its return and W the sum, over the
    actions up to it, of the squared gradient of the log-probability with respect to the logits, 1 - 2 p + sum(p'^2).

    Args:
      rollouts: with returns as advantages, as `reward_to_go` gives them; `extras["proximal_logp"]` [N, T], the log-probability
        of the token, and `extras["proximal_log_collision"]` [N, T], log of the sum of squared probabilities there.
      tail: what happens where one row alone goes on: "own", the baseline is its own return and nothing is learnt, or "none", no
        baseline (verl).
      weights: name of `extras` [N, T], importance weights rho of the samples, such as truncated ones of the engine: the squared
        gradient of each action is multiplied by rho^2 (verl); None for none.
      by: "action" compares the t-th actions of the rows, "place" what stands at the same distance from the first action, tool
        output included (verl's "optimal_token_baseline", where "tir_..." compares actions).

    Raises ValueError: an unknown tail or alignment.
    Source: https://github.com/verl-project/verl, compute_multi_turn_optimal_token_baseline_advantage
    """
    require(tail in TAILS, "tail", tail, f"one of {TAILS}")
    require(by in ALIGNMENTS, "by", by, f"one of {ALIGNMENTS}")
    taken = rollouts.mask * rollouts.valid[:, None]
    chance, collision = (jnp.exp(jnp.minimum(rollouts.extras[f"proximal_{name}"], 0.0)) for name in ("logp", "log_collision"))
    square = 1.0 if weights is None else jnp.square(rollouts.extras[weights])
    energy = jnp.cumsum(masked((1.0 - 2.0 * chance + collision) * square, rollouts.mask), axis=1)
    align = by_action if by == "action" else by_place
    (there, returns, weight), back = align(rollouts.mask, taken, masked(rollouts.advantage, taken), masked(energy, taken))
    baseline = safe_divide(group_sum(returns * weight, rollouts.group), group_sum(weight, rollouts.group))
    low, high = group_bounds(returns, there, rollouts.group)
    baseline = jnp.where(high > low, baseline, returns)
    if tail == "none":
        baseline = jnp.where(group_sum(1.0 * (there > 0), rollouts.group) > 1, baseline, 0.0)
    return rollouts.replace(advantage=masked(back(returns - baseline), taken))
