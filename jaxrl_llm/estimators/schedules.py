"""Rewards that change in the course of the training, or with what was reached before."""

import jax.numpy as jnp

from jaxrl_llm.compose import require
from jaxrl_llm.estimators.base import stateful
from jaxrl_llm.estimators.components import component_of, with_component
from jaxrl_llm.estimators.pools import classes, group_bounds, group_sum
from jaxrl_llm.estimators.tables import check_size, read, write
from jaxrl_llm.numerics import safe_divide


def no_steps(**options):
    """State of an estimator that counts the steps."""
    return jnp.zeros((), jnp.int32)


@stateful(no_steps)
def budget_length_reward(
    rollouts,
    steps,
    key,
    *,
    budget: float = 256.0,
    decay: float = 0.7,
    interval: int = 200,
    weight: float = 0.5,
    component: int = 0,
):
    """Adds `weight` * max(0, 1 - |l / L - 1|): the answer shall have as many tokens as the budget L, which shrinks.

    L = max(1, budget * decay^floor(step / interval)). The prompt has to state it, too; that is up to the data.

    Args:
      budget: tokens at the start.
      decay: factor of the budget each `interval` steps.
      interval: in steps.
      weight: reward of an answer of just that length.
      component: the reward component that it is added to.

    Raises:
      ValueError: an interval below 1.

    Source: Train Long, Think Short, https://arxiv.org/abs/2508.08940
    """
    require(interval >= 1, "interval", interval, "at least 1 step")
    value, _ = component_of(rollouts, component)
    allowed = jnp.maximum(budget * decay ** (steps // interval).astype(jnp.float32), 1.0)
    fit = jnp.maximum(1.0 - jnp.abs(rollouts.mask.sum(axis=1) / allowed - 1.0), 0.0)
    return with_component(rollouts, component, value + weight * fit), steps + 1


def _no_lengths(*, prompts: int, **options):
    check_size(prompts)
    return jnp.full(prompts, jnp.inf)


@stateful(_no_lengths)
def history_length_reward(
    rollouts,
    shortest,
    key,
    *,
    prompts: int,
    weight: float = 1.0,
    lowest: float = -0.7,
    threshold: float = 0.5,
    component: int = 0,
):
    """Adds a reward for being shorter than the shortest right answer that the prompt has had in earlier steps.

    With h its length, f = cos(min(pi l / (2 h), pi)): right answers get `weight` * max(f, lowest), wrong ones `weight` *
    min(f, 0), and nobody anything before the first right answer.

    Args:
      prompts: size of the table of shortest lengths; prompts numbered from there on have no history.
      weight: of the reward.
      lowest: least reward of a right answer.
      threshold: rewards above it are right.
      component: the reward component that it is added to.

    Raises:
      ValueError: no prompts.

    Source: HAPO, https://arxiv.org/abs/2505.11225
    """
    value, present = component_of(rollouts, component)
    length, right = rollouts.mask.sum(axis=1), value > threshold
    before = read(shortest, rollouts.prompt_id, jnp.inf)
    fit = jnp.cos(jnp.minimum(0.5 * jnp.pi * length / jnp.maximum(before, 1.0), jnp.pi))
    bonus = jnp.where(right, jnp.maximum(fit, lowest), jnp.minimum(fit, 0.0))
    found, _ = group_bounds(length, present * right, classes(rollouts.prompt_id))
    shortest = write(shortest, rollouts.prompt_id, jnp.minimum(before, found), present)
    return with_component(rollouts, component, value + weight * jnp.where(jnp.isfinite(before), bonus, 0.0)), shortest


@stateful(no_steps, annotations=("format",))
def format_diversity_reward(rollouts, steps, key, *, steps_total: int, component: int = 0):
    """Multiplies the reward by how rare the format of the answer is in its group, less and less so.

    With a = (rows of the group) / (those of the row's format), the factor is 1 + (a - 1) (1 + cos(pi t / T)) / 2 at step
    t of T, and 1 afterwards. Answers without a known format get 0.

    Args:
      rollouts: with `extras["format"]` int [N], number of the answer's format, -1 for none.
      steps_total: T.
      component: the reward component that is multiplied.

    Raises:
      ValueError: `steps_total` is below 1.

    Source: ARM, Ada-GRPO, https://arxiv.org/abs/2505.20258
    """
    require(steps_total >= 1, "steps_total", steps_total, "at least 1")
    value, present = component_of(rollouts, component)
    of_format = group_sum(present, classes(rollouts.group, rollouts.extras["format"]))
    rarity = safe_divide(group_sum(present, rollouts.group), of_format)
    fading = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(steps / steps_total, 1.0)))
    known = rollouts.extras["format"] >= 0
    return with_component(rollouts, component, jnp.where(known, value * (1.0 + (rarity - 1.0) * fading), 0.0)), steps + 1
