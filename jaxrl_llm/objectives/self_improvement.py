"""Preferences of a policy that answers and of one that revises answers, played against each other."""

import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.numerics import masked
from jaxrl_llm.objectives.base import traits
from jaxrl_llm.objectives.groups import Groups, find_groups, group_count, group_mean, rollout_mean, rollout_to_tokens
from jaxrl_llm.objectives.implicit_rewards import REFERENCE_RATIO, rollout_reward
from jaxrl_llm.types import Batch, Scores


@composable(annotations=("preference", "revises"))
@traits(coupled=True)
def self_improving(
    scores: Scores, batch: Batch, *, alpha: float = 0.5, beta: float = 0.1, evidence: Composable = REFERENCE_RATIO
):
    """(1 - `alpha`) times a squared error of the generator plus `alpha` times those of the reviser, of each pair of answers.

    For a preferred answer w and another one l a group has six rollouts: w and l behind the prompt, and w and l behind a
    prompt that shows w or l and asks for a better answer. `extras["preference"]` says which answer a rollout gives (1 for w,
    -1 for l) and `extras["revises"]` which its prompt shows (0 for none); both are equal along a rollout. With g(a) the
    sum of `evidence` of the answer a alone and d(a|b) that of a as a revision of b, the errors are

        (1 - beta [d(w|l) - d(l|w) + g(w) - g(l)])^2 for the generator,
        (1/2 - beta [d(w|l) - d(l|l)])^2 + (1/2 - beta [d(w|w) - d(l|w)])^2 for the reviser.

    A group counts by the sum of its weights; one that does not have exactly one rollout of each of the six contributes 0.

    Args:
      alpha: share of the reviser.
      beta: weight of the divergences from the reference.
      evidence: what a token tells (nats).

    Source: SRPO, https://arxiv.org/abs/2406.01660
    """
    groups = find_groups(batch)
    reward = rollout_reward(scores, batch, groups.rollout, evidence=evidence)
    answer, shown = (
        jnp.sign(rollout_mean(batch.extras[name], batch.mask, groups.rollout)) for name in ("preference", "revises")
    )
    win, lose = ((answer == side).astype(jnp.float32) for side in (1, -1))
    alone, of_win, of_lose = ((shown == side).astype(jnp.float32) for side in (0, 1, -1))

    def gap(condition):
        return group_mean(reward, win * condition, groups) - group_mean(reward, lose * condition, groups)

    crossed = group_mean(reward, win * of_lose, groups) - group_mean(reward, lose * of_win, groups)
    generator = jnp.square(1.0 - beta * (crossed + gap(alone)))
    reviser = jnp.square(0.5 - beta * gap(of_lose)) + jnp.square(0.5 - beta * gap(of_win))
    complete = _each_once([side * condition for side in (win, lose) for condition in (alone, of_win, of_lose)], groups)
    return rollout_to_tokens(masked((1.0 - alpha) * generator + alpha * reviser, complete), groups), {}


def _each_once(roles, groups: Groups):
    """1 where a rollout's group has exactly one rollout of each role."""
    return jnp.stack([group_count(role, groups) == 1 for role in roles]).all(axis=0).astype(jnp.float32)
