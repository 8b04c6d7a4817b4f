"""Losses on samples of another policy: weights by sign, centred scores and balanced flows, by plain loops."""

import numpy as np

from oracles.harness import actions, log_ratio, rollouts_of
from oracles.policy_terms import each


@each
def tapered(x, fixed, logp, a, place, case, *, positive=(1.0, 1.0), negative=(0.0, 1.0)):
    """https://arxiv.org/abs/2503.14286: R log pi where R >= 0, [pi / mu]_0^1 R log pi where R < 0, with other bounds too."""
    low, high = positive if a >= 0 else negative
    return -min(max(np.exp(fixed), np.longdouble(low)), np.longdouble(high)) * a * logp


def score_centering(live, case, *, low=None, high=None):
    """https://arxiv.org/abs/2609.20807: A sum_H (m - alpha p) log p with p and q held fixed in m and alpha."""
    total = np.longdouble(0)
    for place in actions(case):
        p = [np.exp(x) for x in case.candidate_logp[place]]
        q = [np.exp(x) for x in case.proximal_candidate_logp[place]]
        rho = max(1 - sum(q), np.longdouble(1e-6)) / max(1 - sum(p), np.longdouble(1e-6))
        lower, upper = (0 if low is None else low), (np.longdouble(1e30) if high is None else np.longdouble(high))
        for k in range(len(p)):
            if np.isinf(live.candidate_logp[place][k]):
                continue
            if low is None and high is None:
                mean, alpha = q[k], rho
            else:
                mean = min(max(p[k], lower * q[k]), upper * q[k])
                alpha = min(max(np.longdouble(1), lower * rho), upper * rho)
            total += case.weight[place] * case.advantage[place] * (mean - alpha * p[k]) * live.candidate_logp[place][k]
    return total


def trajectory_balance(live, case, *, beta=15.0, factors=()):
    """https://arxiv.org/abs/2509.15207, equation 6: w (log Z + 1 / |y| log pi - beta r - 1 / |y| log pi_ref)^2."""
    total, scales = np.longdouble(0), [factor(case) for factor in factors]
    for places in rollouts_of(case).values():
        mean = sum(log_ratio(live.logp[p], case.reference_logp[p]) for p in places) / len(places)
        for place in places:
            loss = (live.value[min(places)] + mean - beta * case.advantage[place]) ** 2
            for scale in scales:
                loss = loss * scale[place]
            total += case.weight[place] * loss
    return total
