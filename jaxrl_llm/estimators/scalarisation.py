"""Several rewards as several objectives: advantages of each by itself, and weights that a scalarisation gives them."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import require
from jaxrl_llm.estimators.base import Estimator, stateful
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts


@stateful(lambda *, inner, objectives: tuple(inner.init() for _ in range(objectives)), provides=("objective_advantage",))
def objective_advantages(rollouts: Rollouts, state, key, *, inner: Estimator, objectives: int):
    """Advantages of each reward component by itself, `extras["objective_advantage"]` [N, T, K], and their mean as advantage.

    A row must be valid for all of them. `optimizers.objective_weights` weighs the gradients of the components.

    Args:
      inner: estimator of advantages, such as `group_advantage()`.
      objectives: K.

    Raises ValueError: the rollouts have another number of reward components.
    Source: https://arxiv.org/abs/2509.11452
    """
    if rollouts.rewards.shape[1] != objectives:
        raise ValueError(f"objectives is {objectives}, and there are {rollouts.rewards.shape[1]} rewards; give one for each")
    found, states, valid = [], [], rollouts.valid
    for number in range(objectives):
        alone = rollouts.replace(rewards=rollouts.rewards[:, number : number + 1])
        alone, own = inner.update(alone, state[number], jax.random.fold_in(key, number))
        found.append(alone.advantage)
        states.append(own)
        valid = valid * (alone.valid > 0)
    each = jnp.stack(found, axis=-1)
    extras = {**rollouts.extras, "objective_advantage": each}
    return rollouts.replace(advantage=each.mean(axis=-1), valid=valid, extras=extras), tuple(states)


@stateful(lambda *, objectives, **options: {"mean": jnp.zeros(objectives), "count": jnp.int32(0)})
def fair_rewards(rollouts: Rollouts, state, key, *, objectives: int, floor: float = 0.1, decay: float = 0.9):
    """Each reward component times 1 / (`floor` + J_k): the gradient of sum_k log(`floor` + J_k), which a lagging one leads.

    J_k is a running mean of the component over the valid rows of the steps so far, this one included, of at least 0.

    Args:
      objectives: K.
      floor: above 0.
      decay: share of what was known that each step keeps.

    Raises ValueError: `floor` is 0 or less, or the rollouts have another number of reward components.
    Source: MO-TSIVR-PG, https://arxiv.org/abs/2508.10608, for the scalarisation that is proportionally fair
    """
    del key
    require(floor > 0, "floor", floor, "above 0")
    if rollouts.rewards.shape[1] != objectives:
        raise ValueError(f"objectives is {objectives}, and there are {rollouts.rewards.shape[1]} rewards; give one for each")
    known = (rollouts.valid[:, None] > 0) & jnp.isfinite(rollouts.rewards)
    now = safe_divide(masked(rollouts.rewards, known).sum(axis=0), known.sum(axis=0))
    kept = jnp.where(state["count"] == 0, 0.0, decay)
    mean = jnp.where(known.any(axis=0), kept * state["mean"] + (1.0 - kept) * now, state["mean"])
    weights = 1.0 / (floor + jnp.maximum(mean, 0.0))
    counted = state["count"] + known.any()
    return rollouts.replace(rewards=rollouts.rewards * weights), {"mean": mean, "count": counted.astype(jnp.int32)}
