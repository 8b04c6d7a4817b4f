"""Changes to rewards before they become advantages; lengths of answers are numbers of actions (tokens)."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import require
from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.pools import group_bounds, group_mean, group_rank, group_sum, group_variance, one_each
from jaxrl_llm.estimators.scores import by_action, component_of, last_action, row_logp, with_component
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts


@stateless
def overlong_penalty(rollouts: Rollouts, *, max_length: int, buffer: int, penalty: float = 1.0) -> Rollouts:
    """Soft penalty for answers near or beyond the limit, added to the token reward of the last action.

    With L = number of actions of the row, in tokens: 0 up to `max_length - buffer`, falling linearly to `-penalty` at
    `max_length`, and `-penalty` beyond.

    Raises ValueError: the buffer is not in [1, max_length].
    Source: DAPO, equation 13, https://arxiv.org/abs/2503.14476
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"buffer is {buffer} tokens; it must be from 1 to max_length = {max_length}")
    actions = rollouts.mask.sum(axis=1)
    amount = -penalty * jnp.clip((actions - (max_length - buffer)) / buffer, 0.0, 1.0)
    earlier = 0.0 if rollouts.token_rewards is None else rollouts.token_rewards
    return rollouts.replace(token_rewards=earlier + amount[:, None] * last_action(rollouts.mask))


@stateless(annotations=("rounds_left",))
def round_discount(rollouts: Rollouts, *, discount: float = 0.95) -> Rollouts:
    """Multiplies all rewards of a row by `discount` to the power of the rounds that its agent had behind it.

    Args:
      rollouts: with `extras["rounds_left"]` [N], 0 for the last row of an agent's work.

    Raises ValueError: a discount outside of (0, 1].
    Source: IterResearch, https://arxiv.org/abs/2511.07327
    """
    require(0 < discount <= 1, "discount", discount, "above 0 and at most 1")
    factor = jnp.float32(discount) ** rollouts.extras["rounds_left"][:, None]
    tokens = None if rollouts.token_rewards is None else rollouts.token_rewards * factor
    return rollouts.replace(rewards=rollouts.rewards * factor, token_rewards=tokens)


@stateless(annotations=("mode",))
def mode_cost(rollouts: Rollouts, *, power: float = 2.0, component: int = 0, threshold: float = 0.0) -> Rollouts:
    """Multiplies all rewards of rows of dear modes by 1 - p^power, with p the share of right rows of the group's cheap mode.

    Where a group has no row of the cheap mode, p is the share of all its rows.

    Args:
      rollouts: with `extras["mode"]` int [N]: 0 is cheap, other modes are dear.
      power: alpha; the larger, the easier a question must be before dear modes lose.

    Raises ValueError: a power that is not positive.
    Source: A2FM, https://arxiv.org/abs/2510.12838
    """
    require(power > 0, "power", power, "positive")
    score, present = component_of(rollouts, component)
    right, cheap = (score > threshold).astype(jnp.float32), (rollouts.extras["mode"] == 0).astype(jnp.float32)
    there = group_sum(present * cheap, rollouts.group) > 0
    share = jnp.where(there, group_mean(right, present * cheap, rollouts.group), group_mean(right, present, rollouts.group))
    factor = jnp.where(cheap > 0, 1.0, 1.0 - share**power)
    return rollouts.replace(rewards=rollouts.rewards * factor[:, None])


@stateless
def repetition_penalty(rollouts: Rollouts, *, size: int = 3, penalty: float = 1.0) -> Rollouts:
    """Takes `penalty` times the share of repeated runs of `size` tokens off the token reward of the last action.

    The share is 1 - different runs / all runs of consecutive actions; rows with fewer actions have none.

    Raises ValueError: a size below 1.
    Source: https://arxiv.org/abs/2502.03373, appendix C.2, as in TRL
    """
    require(size >= 1, "size", size, "at least 1 token")
    runs = rollouts.tokens.shape[1] - size + 1
    if runs < 1:
        return rollouts
    (tokens, there), _ = by_action(rollouts.mask, rollouts.tokens, rollouts.mask)
    complete = there[:, size - 1 :] > 0
    keys = [jnp.where(complete, tokens[:, start : start + runs], -1) for start in range(size)]
    order = jnp.lexsort((*keys, ~complete), axis=1)
    keys, complete = ([jnp.take_along_axis(key, order, axis=1) for key in keys], jnp.take_along_axis(complete, order, axis=1))
    new = sum(jnp.pad(key[:, 1:] != key[:, :-1], ((0, 0), (1, 0)), constant_values=True) for key in keys) > 0
    share = safe_divide((complete & ~new).sum(axis=1).astype(jnp.float32), complete.sum(axis=1).astype(jnp.float32))
    earlier = 0.0 if rollouts.token_rewards is None else rollouts.token_rewards
    return rollouts.replace(token_rewards=earlier - penalty * share[:, None] * last_action(rollouts.mask))


@stateless(annotations=("behavior_logp",))
def unlikeliness_reward(rollouts: Rollouts, *, strength: float = 0.25, component: int = 0) -> Rollouts:
    """Multiplies the reward by 1 - strength * rank / G: of right answers, those that were unlikely get most.

    The rank is 0 for the least likely row of the group, by the mean of `behavior_logp` over its actions, and at most G - 1 for
    G rows; equally likely rows share the lower rank.

    Source: https://arxiv.org/abs/2506.02355, with the mean over tokens of the authors' code
    """
    value, present = component_of(rollouts, component)
    likelihood = safe_divide(row_logp(rollouts), rollouts.mask.sum(axis=1))
    rank = group_rank(likelihood, present, rollouts.group)
    factor = 1.0 - strength * safe_divide(rank.astype(jnp.float32), group_sum(present, rollouts.group))
    return with_component(rollouts, component, value * factor)


@stateless(annotations=("calls",))
def tool_call_reward(rollouts: Rollouts, *, smoothing: float = 1.0, threshold: float = 0.5, component: int = 0) -> Rollouts:
    """Multiplies the reward by how near the number of tool calls is to the least that a right answer of the group took.

    With m calls and n the least: where n is 0, cos(pi m / (2 m + smoothing)), with `smoothing` above 0 slowing the fall, and 1
    for m = 0; else sin(pi f / (2 n)) with f = 2 m n / (m + n), which is 1 at m = n. Without any right answer n is 0.

    Args:
      rollouts: with `extras["calls"]` int [N].

    Raises ValueError: smoothing that is not positive.
    Source: OTC, https://arxiv.org/abs/2504.14870
    """
    require(smoothing > 0, "smoothing", smoothing, "positive")
    value, present = component_of(rollouts, component)
    calls = rollouts.extras["calls"].astype(jnp.float32)
    least, _ = group_bounds(calls, present * (value > threshold), rollouts.group)
    least = jnp.where(jnp.isfinite(least), least, 0.0)
    without = jnp.cos(jnp.pi * calls / (2.0 * calls + smoothing))
    near = jnp.sin(jnp.pi * safe_divide(calls, calls + least))
    return with_component(rollouts, component, value * jnp.where(least > 0, near, without))


@stateless(annotations=("flawed",))
def flaw_penalty(rollouts: Rollouts, *, penalty: float = 1.0, threshold: float = 0.5, component: int = 0) -> Rollouts:
    """Takes `penalty` off the reward of right answers whose reasoning is flawed, `extras["flawed"]` [N] being 1.

    Source: FAPO, https://arxiv.org/abs/2510.22543
    """
    value, _ = component_of(rollouts, component)
    flawed = (value > threshold) & (rollouts.extras["flawed"] > 0)
    return with_component(rollouts, component, value - penalty * flawed)


@stateless
def contrasted_bonus(rollouts: Rollouts, *, bonus: int = 1, margin: float = 1e-3, component: int = 0) -> Rollouts:
    """Multiplies the reward `bonus` by 1 where it helps, -1 where it harms and 0 where neither is seen.

    With d the mean of `component` over the group's rows of source 1, which were asked for what the bonus is paid for, less
    that over its others: it helps where d > `margin` and harms where d < -`margin`; a group without rows of both kinds sees
    neither.

    Source: GCPO of GeometryZero, https://arxiv.org/abs/2506.07160
    """
    value, present = component_of(rollouts, component)
    asked, others = present * (rollouts.source == 1), present * (rollouts.source != 1)
    gap = group_mean(value, asked, rollouts.group) - group_mean(value, others, rollouts.group)
    both = (group_sum(asked, rollouts.group) > 0) & (group_sum(others, rollouts.group) > 0)
    sign = jnp.where(both & (jnp.abs(gap) > margin), jnp.sign(gap), 0.0)
    return with_component(rollouts, bonus, component_of(rollouts, bonus)[0] * sign)


@stateless(annotations=("first_call",))
def early_call_bonus(
    rollouts: Rollouts, *, strength: float = -2.0, bound: float = 0.7, threshold: float = 0.5, component: int = 0
) -> Rollouts:
    """Adds to the advantages of right answers that call a tool, the more the earlier they do (`strength` below 0).

    Within E, the right rows of the group with a call, A <- A + clip(strength (p - mean p) / mean l, -bound |A|, bound
    |A|), where p is the number of actions before the first call and l the length. It stands behind the baseline and the
    scale, which would otherwise undo it.

    Args:
      rollouts: with one advantage a row, and `extras["first_call"]` int [N], number of actions before the first call, -1
        without.
      strength: delta.
      bound: k; below 1 it keeps the sign of the advantage.

    Source: ASPO in https://arxiv.org/abs/2508.19201
    """
    value, present = component_of(rollouts, component)
    first = rollouts.extras["first_call"].astype(jnp.float32)
    chosen = present * (value > threshold) * (first >= 0)
    length = group_mean(rollouts.mask.sum(axis=1), chosen, rollouts.group)
    later = safe_divide(first - group_mean(first, chosen, rollouts.group), length)
    size = bound * jnp.abs(rollouts.advantage)
    bias = chosen[:, None] * jnp.clip(strength * later[:, None], -size, size)
    return rollouts.replace(advantage=masked(rollouts.advantage + bias, rollouts.mask))


@stateless
def length_penalty(rollouts: Rollouts, *, coefficient: float = 1e-3, component: int = 0) -> Rollouts:
    """Takes `coefficient` off the reward for each token of the answer."""
    value, _ = component_of(rollouts, component)
    return with_component(rollouts, component, value - coefficient * rollouts.mask.sum(axis=1))


@stateless
def relative_length_reward(rollouts: Rollouts, *, weight: float = 1.0, threshold: float = 0.5, component: int = 0) -> Rollouts:
    """Adds `weight` * (0.5 - (l - l_min) / (l_max - l_min)), from the shortest and longest answer of the group.

    Wrong answers get it only where it is negative. Where all are of one length, nothing is added.

    Source: Kimi k1.5, section 2.3.3, https://arxiv.org/abs/2501.12599
    """
    value, present = component_of(rollouts, component)
    length = rollouts.mask.sum(axis=1)
    low, high = group_bounds(length, present, rollouts.group)
    differ = high > low
    bonus = 0.5 - safe_divide(length - jnp.where(differ, low, 0.0), jnp.where(differ, high - low, 0.0))
    bonus = jnp.where(value > threshold, bonus, jnp.minimum(bonus, 0.0))
    return with_component(rollouts, component, value + weight * masked(bonus, differ))


@stateless
def shortest_correct_penalty(
    rollouts: Rollouts, *, coefficient: float = 1e-3, threshold: float = 0.5, component: int = 0
) -> Rollouts:
    """Takes `coefficient` * |l - l*| off the reward; l* is the length of the shortest right answer of the group.

    Without any right answer, l* is the mean length.

    Source: ShorterBetter, https://arxiv.org/abs/2504.21370
    """
    value, present = component_of(rollouts, component)
    length = rollouts.mask.sum(axis=1)
    shortest, _ = group_bounds(length, present * (value > threshold), rollouts.group)
    mean = group_mean(length, present, rollouts.group)
    best = jnp.where(jnp.isfinite(shortest), shortest, mean)
    return with_component(rollouts, component, value - coefficient * jnp.abs(length - best))


@stateless
def cosine_length_reward(
    rollouts: Rollouts, *, max_length: int, right: tuple[float, float] = (1.0, 0.5), wrong: tuple[float, float] = (0.0, -0.5),
    threshold: float = 0.5, component: int = 0,
) -> Rollouts:  # fmt: skip
    """Replaces the reward by one that goes along half a cosine from length 0 to `max_length`, and stays there beyond.

    Args:
      max_length: in tokens.
      right: the reward of right answers at length 0 and at `max_length`.
      wrong: that of wrong answers; by default they are punished for their length, as the authors' program does when it is run.

    Raises ValueError: `max_length` is below 1.
    Source: Open-RS, https://arxiv.org/abs/2503.16219; the shape is that of https://arxiv.org/abs/2502.03373
    """
    require(max_length >= 1, "max_length", max_length, "at least 1 token")
    value, _ = component_of(rollouts, component)
    way = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(rollouts.mask.sum(axis=1) / max_length, 1.0)))
    ends = [jnp.where(value > threshold, of_right, of_wrong) for of_right, of_wrong in zip(right, wrong, strict=True)]
    return with_component(rollouts, component, ends[1] + (ends[0] - ends[1]) * way)


@stateless
def efficient_length_reward(
    rollouts: Rollouts, *, share: float = 0.2, strength: float = 0.6, threshold: float = 0.5, component: int = 0
) -> Rollouts:
    """Rewards short right answers, only in the groups of the step that have the most of them.

    In the best `share` of the groups by accuracy, a right answer gets 1 - strength * sigmoid((l - mean) / std), with mean and
    population's deviation of the lengths of the right answers of its group; in all others it gets 1. Wrong answers get 0.
    Groups that tie with the last of the best are among them.

    Raises ValueError: a share that is not from 0 to 1.
    Source: GRPO-lambda, https://arxiv.org/abs/2505.18086
    """
    require(0 <= share <= 1, "share", share, "from 0 to 1")
    value, present = component_of(rollouts, component)
    group, length = rollouts.group, rollouts.mask.sum(axis=1)
    right = present * (value > threshold)
    accuracy = group_mean(right, present, group)
    counted = one_each(present, group)
    better = group_rank(-accuracy, counted, jnp.zeros_like(group))
    among_best = group_sum(counted * (better < jnp.ceil(share * counted.sum())), group) > 0
    longer = safe_divide(length - group_mean(length, right, group), jnp.sqrt(group_variance(length, right, group)))
    reward = jnp.where(among_best, 1.0 - strength * jax.nn.sigmoid(longer), 1.0)
    return with_component(rollouts, component, masked(reward, right))
