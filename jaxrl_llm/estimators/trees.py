"""Advantages of tokens from the values of states: at the ends of segments, in trees of rows, and at exits."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.pools import classes, group_bounds, group_mean, group_sum
from jaxrl_llm.estimators.scores import row_scores, set_row_advantage
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts

VALUES = ("value_before", "value_behind")


@stateless(annotations=lambda options: VALUES if options["below"] is None else (*VALUES, "behavior_logp"))
def segment_advantage(rollouts: Rollouts, *, below: float | None = None) -> Rollouts:
    """A = V(behind the segment of the token) - V(before it): `extras["value_behind"]` and `extras["value_before"]` [N, T].

    Args:
      rollouts: with values, and `behavior_logp` where `below` is given.
      below: probability of a token from which on it has no advantage, and no part in the loss; None for all tokens.

    Source: VinePPO, https://arxiv.org/abs/2410.01679; SPO and its mask of probabilities, https://arxiv.org/abs/2505.23564
    """
    _, present = row_scores(rollouts)
    gain = rollouts.extras["value_behind"] - rollouts.extras["value_before"]
    if below is not None:
        rollouts = rollouts.replace(mask=rollouts.mask * (rollouts.behavior_logp < jnp.log(below)))
    return rollouts.replace(advantage=masked(gain, rollouts.mask * present[:, None]), valid=rollouts.valid * present)


@stateless
def tree_advantage(
    rollouts: Rollouts, *, kind: Literal["parent", "global_and_local", "ancestors", "depth"] = "parent", depths: int = 8,
    epsilon: float = 1e-6, reward_weights: tuple[float, ...] | None = None,
) -> Rollouts:  # fmt: skip
    """Advantages in a tree whose leaves are the rows of a group: rows that begin alike have passed the same nodes.

    A node n is a run of tokens that the same leaves have in common, |n| their number, V(n) the mean of their scores R; the
    root, with all rows of the group, is in front of the first token. By `kind` the tokens of node n get:

    - "parent": V(n) - V(parent of n).
    - "global_and_local": (V(n) - V(root) + V(n) - V(parent)) / sqrt(|n|), times N / (N - 1), since the paper takes scores less
      the mean of the others.
    - "ancestors": sum of |m| (R - V(m)) over the nodes m on the way that have other leaves, over the sum of |m|.
    - "depth": (V(n) - mean) / (deviation + epsilon) over the nodes of the group at the same depth, each once.

    Args:
      rollouts: N rows whose prompts are alike within a group, place by place.
      kind: see above; "ancestors" is one number a row.
      depths: of "depth", levels with statistics of their own; deeper nodes are counted with the last.
      epsilon: of "depth".

    Source: SPO-tree, https://arxiv.org/abs/2505.23564; TreeRL, https://arxiv.org/abs/2506.11902; TreePO,
      https://arxiv.org/abs/2508.17445; BranchGRPO, https://arxiv.org/abs/2509.06040
    """
    score, present = row_scores(rollouts, reward_weights)
    root, size = group_mean(score, present, rollouts.group), group_sum(present, rollouts.group)
    value, parent, leaves, depth, weighted = _descend(rollouts, score, present, root, size)
    if kind == "ancestors":
        return set_row_advantage(rollouts, weighted, present)
    if kind == "parent":
        advantage = value - parent
    elif kind == "global_and_local":
        others = safe_divide(size, size - 1.0)[:, None]
        advantage = others * safe_divide(value - root[:, None] + value - parent, jnp.sqrt(leaves))
    else:
        advantage = _within_depths(rollouts, value, leaves, depth, present, depths, epsilon)
    return rollouts.replace(advantage=masked(advantage, rollouts.mask * present[:, None]), valid=rollouts.valid * present)


def _descend(rollouts: Rollouts, score, present, root, size):
    """Of each token the value of its node and of the parent, its leaves and depth, [N, T]; of each row `ancestors` [N]."""
    width = rollouts.tokens.shape[1]
    tokens = jnp.where(jnp.arange(width) < rollouts.length[:, None], rollouts.tokens, -1)

    def step(carry, token):
        prefix, value, parent, leaves, depth, total, weight = carry
        prefix = classes(prefix, token)
        now = group_sum(present, prefix)
        split = now < leaves
        parent = jnp.where(split, value, parent)
        value = jnp.where(split, group_mean(score, present, prefix), value)
        depth = depth + split
        counted = split & (now > 1)
        total = total + jnp.where(counted, now * (score - value), 0.0)
        weight = weight + jnp.where(counted, now, 0.0)
        return (prefix, value, parent, jnp.minimum(now, leaves), depth, total, weight), (value, parent, now, depth)

    zeros = jnp.zeros_like(root)
    start = (rollouts.group.astype(jnp.int32), root, root, size, zeros.astype(jnp.int32), size * (score - root), size)
    (*_, total, weight), found = jax.lax.scan(step, start, tokens.T)
    value, parent, leaves, depth = (x.T for x in found)
    return value, parent, leaves, depth, safe_divide(total, weight)


def _within_depths(rollouts: Rollouts, value, leaves, depth, present, depths: int, epsilon: float):
    """Values less the mean over the nodes of their depth, over their deviation; each node counts once."""
    level = jnp.clip(depth, 0, depths - 1)
    inside = rollouts.mask * present[:, None]
    result = jnp.zeros_like(value)
    for number in range(depths):
        here = inside * (level == number)
        # A row passes at most one node of a level (but of the last); it counts there as one leaf among those of the node.
        at = here.argmax(axis=1)[:, None]
        passes = (here.sum(axis=1) > 0).astype(jnp.float32)
        own = jnp.take_along_axis(value, at, axis=1)[:, 0]
        share = passes * safe_divide(1.0, jnp.take_along_axis(leaves, at, axis=1)[:, 0])
        nodes = group_sum(share, rollouts.group)
        mean = safe_divide(group_sum(share * own, rollouts.group), nodes)
        variance = safe_divide(group_sum(share * jnp.square(own - mean), rollouts.group), nodes)
        standard = (value - mean[:, None]) / (jnp.sqrt(variance) + epsilon)[:, None]
        # Means of equal rewards may differ in their last bits, which are no difference.
        low, high = group_bounds(own, passes, rollouts.group)
        uniform = high - low <= 1e-6 * jnp.maximum(jnp.abs(low), jnp.abs(high))
        result = jnp.where(here > 0, jnp.where(uniform[:, None], 0.0, standard), result)
    return result


@stateless(annotations=("cut",))
def exit_rewards(rollouts: Rollouts, *, threshold: float = 0.0, reward_weights: tuple[float, ...] | None = None) -> Rollouts:
    """Rewards of serial exits: the k-th right exit of a group, by `extras["cut"]` int [N], gets 1 / 2^(k-1), wrong ones 0.

    It takes the place of all reward components. Behind it stands `group_advantage(scale=None)`.

    Source: S-GRPO, https://arxiv.org/abs/2505.07686
    """
    score, present = row_scores(rollouts, reward_weights)
    right = present * (score > threshold)
    cut, same = rollouts.extras["cut"], rollouts.group[:, None] == rollouts.group[None, :]
    row = jnp.arange(len(cut))
    first = (cut[None, :] < cut[:, None]) | ((cut[None, :] == cut[:, None]) & (row[None, :] <= row[:, None]))
    number = (same * first * right[None, :]).sum(axis=1)
    reward = right * jnp.exp2(-(number - 1.0))
    unknown = jnp.full_like(rollouts.rewards[:, 1:], jnp.nan)
    first_component = jnp.where(present > 0, reward, jnp.nan)[:, None]
    return rollouts.replace(rewards=jnp.concatenate([first_component, unknown], axis=1))
