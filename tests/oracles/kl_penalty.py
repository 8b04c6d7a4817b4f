"""The KL penalty whose coefficient follows a target, row by row."""

import numpy as np

from oracles.advantages import kl_in_reward


def adaptive_kl_in_reward(token_rewards, behavior, reference, mask, valid, coefficient, *, target, horizon, kind, bound=None):
    """Penalised token rewards, and the coefficient after the step."""
    penalised = kl_in_reward(token_rewards, behavior, reference, mask, coefficient=coefficient, kind=kind, bound=bound)
    unit = kl_in_reward(np.zeros(mask.shape), behavior, reference, mask, coefficient=1.0, kind=kind, bound=bound)
    totals = [-sum(unit[n, t] for t in range(mask.shape[1]) if mask[n, t] > 0) for n in range(len(mask)) if valid[n] > 0]
    if not totals:
        return penalised, coefficient
    error = min(max(np.mean(totals) / target - 1, -0.2), 0.2)
    return penalised, coefficient * (1 + error * len(totals) / horizon)
