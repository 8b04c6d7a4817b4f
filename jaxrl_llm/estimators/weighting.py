"""Aggregation, decided once: the share `weight` [N, T] of each action in the loss `sum(weight * token_loss)`.

The counts are those of the whole step, so no later split into micro-batches, rows or devices can change the loss.
Rows that are not valid have no share and do not count. With nothing valid, all shares are 0.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.numerics import safe_divide
from jaxrl_llm.types import Rollouts


def _actions(rollouts: Rollouts):
    return rollouts.mask * rollouts.valid[:, None]


@stateless
def token_mean(rollouts: Rollouts) -> Rollouts:
    """Each action counts alike: 1 / (actions of the step). Source: DAPO, https://arxiv.org/abs/2503.14476"""
    actions = _actions(rollouts)
    return rollouts.replace(weight=safe_divide(actions, actions.sum()))


@stateless
def sequence_mean(rollouts: Rollouts) -> Rollouts:
    """Mean over rows of the mean over each row's actions. Source: GRPO, https://arxiv.org/abs/2402.03300"""
    actions = _actions(rollouts)
    return rollouts.replace(weight=safe_divide(actions, actions.sum(axis=1, keepdims=True) * rollouts.valid.sum()))


@stateless
def sequence_mean_token_sum(rollouts: Rollouts) -> Rollouts:
    """Mean over rows of the sum over each row's actions. Source: RLOO, https://arxiv.org/abs/2402.14740"""
    actions = _actions(rollouts)
    return rollouts.replace(weight=safe_divide(actions, rollouts.valid.sum()))


@stateless
def constant(rollouts: Rollouts, *, length: int) -> Rollouts:
    """Mean over rows of (sum over actions) / `length` tokens, a fixed number such as the longest answer allowed.

    Source: Dr. GRPO, https://arxiv.org/abs/2503.20783
    """
    if length < 1:
        raise ValueError(f"length is {length}; it must be at least 1 token")
    actions = _actions(rollouts)
    return rollouts.replace(weight=safe_divide(actions, jnp.float32(length) * rollouts.valid.sum()))
