"""Advantages that a teacher gives to the student's own samples."""

import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.numerics import log_ratio, masked, safe_divide
from jaxrl_llm.types import Rollouts


@stateless(annotations=("behavior_logp", "teacher_logp"))
def teacher_advantage(rollouts: Rollouts, *, emphasis: float = 0.0) -> Rollouts:
    """A_t = w_t a_t with a_t = log teacher - log sampler (nats), and w_t = 1 + `emphasis` (1 - sum_{k<t} |a_k| / sum |a|).

    With the trust region `score_function` it is on-policy distillation by sampled tokens: the gradient of the reverse KL, token
    by token. The weight falls from 1 + `emphasis` at the first action to 1 at the end of what is to be learnt.

    Args:
      rollouts: with `behavior_logp` and `extras["teacher_logp"]` [N, T].
      emphasis: gamma, not negative; 0.5 in the paper.

    Raises:
      ValueError: a negative emphasis.

    Source: IW-OPD, https://arxiv.org/abs/2606.22600
    """
    if emphasis < 0:
        raise ValueError(f"emphasis is {emphasis}; it must be at least 0")
    taken = rollouts.mask * rollouts.valid[:, None]
    gap = masked(log_ratio(rollouts.extras["teacher_logp"], rollouts.behavior_logp), taken)
    size = jnp.abs(gap)
    before = safe_divide(jnp.cumsum(size, axis=1) - size, size.sum(axis=1, keepdims=True))
    return rollouts.replace(advantage=masked((1.0 + emphasis * (1.0 - before)) * gap, taken))
