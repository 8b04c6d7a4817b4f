"""What is remembered from step to step: of the training, or of each prompt in arrays with one entry for each of a data set."""

import jax.numpy as jnp

from jaxrl_llm.compose import require
from jaxrl_llm.estimators.base import no_steps, stateful
from jaxrl_llm.estimators.pools import classes, group_bounds, group_mean, group_sum, group_variance
from jaxrl_llm.estimators.scores import component_of, row_scores, set_row_advantage, with_component
from jaxrl_llm.numerics import masked, safe_divide


def read(table, prompt_id, otherwise: float):
    """Entries [N] of `table` [P] for the prompts of the rows; `otherwise` for prompts with a number outside of it."""
    known = (prompt_id >= 0) & (prompt_id < table.shape[0])
    return jnp.where(known, table[jnp.clip(prompt_id, 0, table.shape[0] - 1)], otherwise)


def write(table, prompt_id, values, present):
    """`table` with `values` [N] for the prompts of the present rows, where rows of one prompt have one value."""
    place = jnp.where((present > 0) & (prompt_id >= 0), prompt_id, table.shape[0])
    return table.at[place].set(values, mode="drop")


def check_size(prompts: int) -> None:
    """Refuses tables without an entry."""
    require(prompts >= 1, "prompts", prompts, "the number of prompts in the data set, at least 1")


def _beta_prior(*, prompts: int, prior: tuple[float, float] = (0.5, 0.5), **options):
    check_size(prompts)
    return {"successes": jnp.full(prompts, prior[0]), "failures": jnp.full(prompts, prior[1])}


@stateful(_beta_prior, annotations=lambda options: () if options["half_life"] is None else ("drift",))
def tracked_advantage(
    rollouts, state, key, *, prompts: int, prior: tuple[float, float] = (0.5, 0.5), half_life: float | None = 0.06,
    forgetting: tuple[float, float] = (0.875, 0.96), reward_weights: tuple[float, ...] | None = None,
):  # fmt: skip
    """Advantage = score - success rate of the prompt in earlier steps: no group is needed.

    The rate of a prompt is a / (a + b), of the counts before this step. Behind it they become a <- rho a + r and
    b <- rho b + 1 - r, summed over the rows of the prompt, with its scores r within [0, 1]. Old counts fade by
    rho = 2^(-drift / half_life), kept within `forgetting`.

    Args:
      rollouts: with `extras["drift"]` [N] in nats per token, how far the policy has moved on the prompt since its last visit
        (0 at the first), unless `half_life` is None.
      prompts: size of the table; prompts numbered from there on have no memory and their rate is that of the prior.
      prior: successes a and failures b at the start.
      half_life: drift that halves the counts; None for one rho whatever the drift.
      forgetting: smallest and largest rho, equal ones without `half_life`.

    Raises ValueError: no prompts, bounds of forgetting that are not 0 <= low <= high <= 1, or two of them without `half_life`.
    Source: SPO, https://arxiv.org/abs/2509.13232, with `whiten(over="rows")` behind it.
    """
    if not 0 <= forgetting[0] <= forgetting[1] <= 1:
        raise ValueError(f"forgetting is {forgetting}; it must be two numbers from 0 to 1, the smaller one first")
    if half_life is None and forgetting[0] != forgetting[1]:
        raise ValueError(f"forgetting is {forgetting}, but without half_life there is one rho: give it twice, or a half_life")
    score, present = row_scores(rollouts, reward_weights)
    prompt = rollouts.prompt_id
    successes, failures = read(state["successes"], prompt, prior[0]), read(state["failures"], prompt, prior[1])
    pool, reward = classes(prompt), masked(jnp.clip(score, 0.0, 1.0), present)
    kept = forgetting[0]
    if half_life is not None:
        drift = group_mean(rollouts.extras["drift"], present, pool)
        kept = jnp.clip(jnp.exp2(-drift / half_life), *forgetting)
    after = {
        "successes": kept * successes + group_sum(reward, pool),
        "failures": kept * failures + group_sum(present - reward, pool),
    }
    advantage = score - successes / (successes + failures)
    return set_row_advantage(rollouts, advantage, present), {
        name: write(state[name], prompt, values, present) for name, values in after.items()
    }


def _no_visits(*, prompts: int, **options):
    check_size(prompts)
    return {name: jnp.zeros(prompts) for name in ("visits", "mean", "variance")}


@stateful(_no_visits)
def cumulative_advantage(rollouts, state, key, *, prompts: int, reward_weights: tuple[float, ...] | None = None):
    """Smooth standardisation: the scores of a prompt against those of this visit and those of all visits so far.

    With i the number of visits, this one included, A_new = (R - mu_i) / s_i and A_tot = (R - mu_tot) / s_tot, each 0 where its
    deviation is. The advantage is that of ((i - 1) A_new + A_tot) / i and (A_new + (i - 1) A_tot) / i with the smaller size.
    Deviations are Bessel's, and those of all visits are merged as the paper does. At the first visit it is GRPO.

    Args:
      rollouts: N rows; all rows of a prompt are one visit.
      prompts: size of the table; every visit of prompts numbered from there on is the first.

    Raises ValueError: no prompts.
    Source: DCPO, https://arxiv.org/abs/2509.02333
    """
    score, present = row_scores(rollouts, reward_weights)
    prompt, pool = rollouts.prompt_id, classes(rollouts.prompt_id)
    before, mean, variance = (read(state[name], prompt, 0.0) for name in ("visits", "mean", "variance"))
    now, spread = group_mean(score, present, pool), group_variance(score, present, pool, 1)
    visits = before + 1
    after = {
        "visits": visits,
        "mean": mean + (now - mean) / visits,
        "variance": (before * variance + spread + before / visits * jnp.square(now - mean)) / visits,
    }
    new = safe_divide(score - now, jnp.sqrt(spread))
    total = safe_divide(score - after["mean"], jnp.sqrt(after["variance"]))
    by_new, by_total = (before * new + total) / visits, (new + before * total) / visits
    advantage = jnp.where(jnp.abs(by_new) < jnp.abs(by_total), by_new, by_total)
    return set_row_advantage(rollouts, advantage, present), {
        name: write(state[name], prompt, values, present) for name, values in after.items()
    }


def _no_scores(*, roles: int = 2, **options):
    require(roles >= 1, "roles", roles, "at least 1")
    return jnp.zeros(roles)


@stateful(_no_scores, annotations=("role",))
def role_advantage(
    rollouts, means, key, *, roles: int = 2, decay: float = 0.95, reward_weights: tuple[float, ...] | None = None
):
    """Advantage = score - running mean of the scores of the row's role in earlier steps: for games of several players.

    The mean b of a role starts at 0 and becomes, behind the step, decay * b + (1 - decay) * (mean score of its present rows).

    Args:
      rollouts: with `extras["role"]` int [N].
      roles: number of roles; rows with another number have the baseline 0.

    Raises ValueError: no roles.
    Source: role-conditioned advantage estimation in SPIRAL, https://arxiv.org/abs/2506.24119
    """
    score, present = row_scores(rollouts, reward_weights)
    role = rollouts.extras["role"]
    now = group_mean(score, present, classes(role))
    before = read(means, role, 0.0)
    after = write(means, role, decay * before + (1.0 - decay) * now, present)
    return set_row_advantage(rollouts, score - before, present), after


@stateful(no_steps)
def budget_length_reward(
    rollouts, steps, key, *, budget: float = 256.0, decay: float = 0.7, interval: int = 200, weight: float = 0.5,
    component: int = 0,
):  # fmt: skip
    """Adds `weight` * max(0, 1 - |l / L - 1|): the answer shall have as many tokens as the budget L, which shrinks.

    L = max(1, budget * decay^floor(step / interval)). The prompt has to state it, too; that is up to the data.

    Args:
      budget: tokens at the start.
      decay: factor of the budget each `interval` steps.
      interval: in steps.
      weight: reward of an answer of just that length.

    Raises ValueError: an interval below 1.
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
    rollouts, shortest, key, *, prompts: int, weight: float = 1.0, lowest: float = -0.7, threshold: float = 0.5,
    component: int = 0,
):  # fmt: skip
    """Adds a reward for being shorter than the shortest right answer that the prompt has had in earlier steps.

    With h its length, f = cos(min(pi l / (2 h), pi)): right answers get `weight` * max(f, lowest), wrong ones `weight` *
    min(f, 0), and nobody anything before the first right answer.

    Args:
      prompts: size of the table of shortest lengths; prompts numbered from there on have no history.
      lowest: least reward of a right answer.

    Raises ValueError: no prompts.
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

    Raises ValueError: `steps_total` is below 1.
    Source: ARM, Ada-GRPO, https://arxiv.org/abs/2505.20258
    """
    require(steps_total >= 1, "steps_total", steps_total, "at least 1")
    value, present = component_of(rollouts, component)
    of_format = group_sum(present, classes(rollouts.group, rollouts.extras["format"]))
    rarity = safe_divide(group_sum(present, rollouts.group), of_format)
    fading = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(steps / steps_total, 1.0)))
    known = rollouts.extras["format"] >= 0
    return with_component(rollouts, component, jnp.where(known, value * (1.0 + (rarity - 1.0) * fading), 0.0)), steps + 1
