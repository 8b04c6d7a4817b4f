"""A KL penalty in the reward whose coefficient follows a target."""

import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateful
from jaxrl_llm.estimators.returns import kl_in_reward
from jaxrl_llm.numerics import kl_estimate, masked, safe_divide
from jaxrl_llm.types import Rollouts


def _initial(*, initial: float, **options):
    return jnp.float32(initial)


@stateful(init=_initial, annotations=("behavior_logp", "reference_logp"))
def adaptive_kl_in_reward(
    rollouts: Rollouts,
    state,
    key,
    *,
    initial: float = 0.2,
    target: float = 6.0,
    horizon: float = 10_000.0,
    kind: str = "k1",
    bound: float | None = None,
):
    """`kl_in_reward` with a coefficient c that rises where answers have more KL than the target and falls where they have less.

    After each step c <- c (1 + clip(KL / target - 1, -0.2, 0.2) N / horizon), with KL the mean over the N valid rows of the
    sum of their actions' estimates. The state is c; without a valid row it stays.

    Args:
      initial: c at the first step.
      target: KL of a whole answer that is aimed at, nats.
      horizon: in answers; so many with an error of 0.2 change c by about the factor e^0.2.
      kind: see `numerics.kl_estimate`.
      bound: as in `kl_in_reward`; the KL that is measured has it too.

    Source: Ziegler et al., https://arxiv.org/abs/1909.08593, section 2.2
    """
    del key, initial
    valid = (rollouts.valid > 0).astype(jnp.float32)
    estimate = kl_estimate(rollouts.behavior_logp, rollouts.extras["reference_logp"], kind)
    estimate = estimate if bound is None else jnp.clip(estimate, -bound, bound)
    mean = safe_divide(jnp.sum(masked(estimate, rollouts.mask).sum(axis=1) * valid), valid.sum())
    error = jnp.where(valid.sum() > 0, jnp.clip(mean / target - 1.0, -0.2, 0.2), 0.0)
    penalised = kl_in_reward.function(rollouts, coefficient=state, kind=kind, bound=bound)
    return penalised, state * (1.0 + error * valid.sum() / horizon)
