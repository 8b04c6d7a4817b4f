"""Changes to rewards before they become advantages."""

from __future__ import annotations

import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.scores import last_action
from jaxrl_llm.types import Rollouts


@stateless
def overlong_penalty(rollouts: Rollouts, *, max_length: int, buffer: int, penalty: float = 1.0) -> Rollouts:
    """Soft penalty for answers near or beyond the limit, added to the token reward of the last action.

    With L = number of actions of the row, in tokens: 0 up to `max_length - buffer`, falling linearly to `-penalty` at
    `max_length`, and `-penalty` beyond.

    Raises:
      ValueError: the buffer is not in [1, max_length].

    Source: DAPO, equation 13, https://arxiv.org/abs/2503.14476
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"buffer is {buffer} tokens; it must be from 1 to max_length = {max_length}")
    actions = rollouts.mask.sum(axis=1)
    amount = -penalty * jnp.clip((actions - (max_length - buffer)) / buffer, 0.0, 1.0)
    earlier = 0.0 if rollouts.token_rewards is None else rollouts.token_rewards
    return rollouts.replace(token_rewards=earlier + amount[:, None] * last_action(rollouts.mask))
