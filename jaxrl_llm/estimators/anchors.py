"""Values of prompts, from what a reference policy's answers to them earned."""

import jax
import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.types import Rollouts


@stateless(annotations=("anchor_rewards",), provides=("optimal_value",))
def optimal_value(rollouts: Rollouts, *, beta: float = 0.5, solvable: bool = True) -> Rollouts:
    """beta log mean exp(r / beta) over `extras["anchor_rewards"]` [N, M], into `extras["optimal_value"]` [N].

    It is the value of the best policy under a KL penalty of weight beta from the reference policy whose rewards these are.

    Args:
      beta: above 0.
      solvable: rows of prompts for which no anchor has a positive reward leave the training.

    Raises:
      ValueError: `beta` is not above 0.

    Source: A*-PO, https://arxiv.org/abs/2505.20686, equation 3
    """
    if beta <= 0:
        raise ValueError(f"beta is {beta}; it must be above 0")
    rewards = rollouts.extras["anchor_rewards"].astype(jnp.float32)
    value = beta * (jax.nn.logsumexp(rewards / beta, axis=1) - jnp.log(rewards.shape[1]))
    valid = rollouts.valid * (rewards > 0).any(axis=1) if solvable else rollouts.valid
    return rollouts.replace(extras=rollouts.extras | {"optimal_value": value}, valid=valid)
