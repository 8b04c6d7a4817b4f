"""Rows that may not be at all, and a baseline from the steps before."""

import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateful, stateless
from jaxrl_llm.estimators.scores import row_scores, set_row_advantage
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts


@stateless(annotations=("feasible",))
def drop_infeasible(rollouts: Rollouts) -> Rollouts:
    """Takes rows out of the training that are not feasible, `extras["feasible"]` [N] being 0, such as those out of format.

    What is left samples the policy cut to feasible answers, whose gradient is that of `objectives.truncated_policy`.

    Source: rejection in TabNAS, https://arxiv.org/abs/2204.07615
    """
    return rollouts.replace(valid=rollouts.valid * (rollouts.extras["feasible"] > 0))


def _no_average(**options):
    return {"mean": jnp.zeros(()), "share": jnp.zeros(())}


@stateful(_no_average)
def moving_average_advantage(
    rollouts: Rollouts, state, key, *, decay: float = 0.9, reward_weights: tuple[float, ...] | None = None
):
    """A = score - b, b the exponential average of the mean scores of the steps before, without bias to its beginning.

    b is 0 in the first step. Steps without any score leave the average as it is.

    Args:
      decay: share of the average that each step keeps, from 0 up to 1.
      reward_weights: factor of each reward component; 1 by default.

    Raises:
      ValueError: a decay that is not from 0 up to 1.

    Source: REINFORCE with a moving baseline, https://doi.org/10.1007/BF00992696
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}; it must be from 0 up to 1")
    score, present = row_scores(rollouts, reward_weights)
    baseline = safe_divide(state["mean"], state["share"])
    new = {"mean": safe_divide(masked(score, present).sum(), present.sum()), "share": jnp.ones(())}
    moved = {name: decay * state[name] + (1.0 - decay) * new[name] for name in state}
    kept = {name: jnp.where(present.sum() > 0, moved[name], state[name]) for name in state}
    return set_row_advantage(rollouts, score - baseline, present), kept
