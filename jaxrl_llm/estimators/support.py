"""A reward for tokens that the reference policy could have given."""

import math

import jax.numpy as jnp

from jaxrl_llm.compose import require
from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.numerics import MAX_LOG_RATIO, masked
from jaxrl_llm.types import Rollouts

SUPPORTS = ("likelihood", "shortfall")


@stateless(annotations=("reference_logp",))
def support_reward(rollouts: Rollouts, *, coefficient: float = 0.05, floor: float = 1e-3, kind: str = "likelihood") -> Rollouts:
    """Adds to the token reward of each action what its probability p under the reference policy says.

    "likelihood" adds `coefficient` max(log p, log `floor`); "shortfall" adds `coefficient` min(log p - log `floor`, 0), at
    least -20 `coefficient`: nothing within the support, and more and more beyond. Unlike a KL penalty they have no term for
    the policy's entropy: it may settle on one token, as long as the reference knows it.

    Args:
      rollouts: with `extras["reference_logp"]` [N, T].
      coefficient: lambda, per nat.
      floor: epsilon, the probability where the support ends, above 0 and up to 1.
      kind: "likelihood" or "shortfall".

    Raises:
      ValueError: an unknown kind, or a floor out of (0, 1].

    Source: SPOT, https://arxiv.org/abs/2202.06239, whose constraint is on the density of whole actions
    """
    require(kind in SUPPORTS, "kind", kind, f"one of {SUPPORTS}")
    require(0 < floor <= 1, "floor", floor, "above 0 and at most 1")
    logp, end = masked(rollouts.extras["reference_logp"], rollouts.mask), math.log(floor)
    likelihood, shortfall = jnp.maximum(logp, end), jnp.clip(logp - end, -MAX_LOG_RATIO, 0.0)
    amount = likelihood if kind == "likelihood" else shortfall
    earlier = 0.0 if rollouts.token_rewards is None else rollouts.token_rewards
    return rollouts.replace(token_rewards=earlier + coefficient * masked(amount, rollouts.mask))
