"""Risk, constraints, targets, feasibility and support, by plain loops. `score` and `present` are lists by row."""

import math

import numpy as np


def _own(present, group, n):
    return [m for m in range(len(group)) if present[m] > 0 and group[m] == group[n]]


def _mean(values):
    return sum(values) / len(values) if values else 0.0


def _less_mean(value, present, group):
    """Differences from the mean of the group; 0 where all of it are equal, and for rows that are not there."""
    result = []
    for n in range(len(value)):
        own = [value[m] for m in _own(present, group, n)]
        result.append(value[n] - _mean(own) if present[n] > 0 and min(own) != max(own) else 0.0)
    return result


def _length(mask):
    return [sum(1 for t in range(mask.shape[1]) if mask[n, t] > 0) for n in range(len(mask))]


def cvar_advantage(score, present, group, *, share=0.5, level=0.25):
    """https://arxiv.org/abs/2301.10932: costs c = -r, CVaR = min over eta of eta + mean (c - eta)_+ / alpha."""
    result = [0.0] * len(score)
    for n in range(len(score)):
        if present[n] <= 0:
            continue
        cost = [-score[m] for m in _own(present, group, n)]

        def value(eta, cost=cost):
            return eta + _mean([max(c - eta, 0.0) for c in cost]) / level

        # Among equally good thresholds the largest cost.
        eta = min(cost, key=lambda c: (round(value(c), 9), -c))
        shaped = [(1 - share) * c + share * (eta + max(c - eta, 0.0) / level) for c in (-score[n], *cost)]
        result[n] = -(shaped[0] - _mean(shaped[1:])) if min(cost) != max(cost) else 0.0
    return result


def long_wrong_penalty(advantage, correct, valid, mask, group, *, base=1.00001):
    """https://arxiv.org/abs/2506.21655: A <- A (1 + 1 - base^-(l - m)) for wrong answers longer than m."""
    length, result = _length(mask), np.where(mask > 0, advantage, 0.0).astype(float)
    for n in range(len(mask)):
        right = [length[m] for m in _own(valid, group, n) if correct[m] > 0]
        if correct[n] <= 0 and right and length[n] > _mean(right):
            result[n] *= 1.0 + (1.0 - base ** -(length[n] - _mean(right)))
    return result


def drop_infeasible(valid, feasible):
    return [v if f > 0 else 0.0 for v, f in zip(valid, feasible, strict=True)]


def moving_average_advantage(history, score, present, *, decay=0.9):
    """`history` holds the mean scores of earlier steps; the baseline weighs the one k steps ago by decay^k."""
    weights = [decay ** (len(history) - 1 - i) for i in range(len(history))]
    baseline = sum(w * x for w, x in zip(weights, history, strict=True)) / sum(weights) if history else 0.0
    there = [score[n] for n in range(len(score)) if present[n] > 0]
    advantage = [score[n] - baseline if present[n] > 0 else 0.0 for n in range(len(score))]
    return advantage, [*history, _mean(there)] if there else history


def support_reward(token_rewards, reference_logp, mask, *, coefficient=0.05, floor=1e-3, kind="likelihood"):
    """r_t + lambda max(log p, log eps), or r_t + lambda min(log p - log eps, 0)."""
    result = np.zeros(mask.shape)
    for n, t in np.ndindex(*mask.shape):
        if mask[n, t] <= 0:
            continue
        logp = float(reference_logp[n, t])
        if kind == "likelihood":
            amount = max(logp, math.log(floor))
        else:
            amount = max(min(logp - math.log(floor), 0.0), -20.0)
        result[n, t] = coefficient * amount + (0.0 if token_rewards is None else float(token_rewards[n, t]))
    return result


def lagrangian_advantage(multiplier, score, present, cost, known, group, *, limit, rate=0.01, penalty=10.0, confidence=0.5):
    """https://arxiv.org/abs/2401.14758: the advantages, and the multiplier after the step."""
    costs = [cost[n] for n in range(len(cost)) if known[n] > 0]
    excess = 0.0
    if costs:
        mean = _mean(costs)
        deviation = math.sqrt(_mean([(c - mean) ** 2 for c in costs]))
        excess = mean + confidence * deviation / math.sqrt(len(costs)) - limit
    strength = max(0.0, multiplier + penalty * excess)
    gain, loss = _less_mean(score, present, group), _less_mean(cost, known, group)
    advantage = [gain[n] - strength * loss[n] if present[n] > 0 else 0.0 for n in range(len(score))]
    return advantage, max(0.0, multiplier + rate * excess)


def log_barrier_advantage(values, known, present, group, *, bounds, objective=0, sharpness=20.0, margin=1e-3):
    """https://arxiv.org/abs/2410.02236: the slope of J_l + (1 / t) sum_i log(J_i - bound_i), by differences of the barrier."""
    total = _less_mean(values[objective], known[objective], group)
    others = [k for k in range(len(values)) if k != objective]
    for k, bound in zip(others, bounds, strict=True):
        there = [values[k][n] for n in range(len(group)) if known[k][n] > 0]
        slack = _mean(there) - bound

        def barrier(s):
            return math.log(s) if s > margin else math.log(margin) + (s - margin) / margin

        step = 1e-5 * max(abs(slack), margin)
        # At the edge, where the curvature changes, the slope from below is that from above.
        slope = (barrier(slack + step) - barrier(slack - step)) / (2 * step)
        lead = _less_mean(values[k], known[k], group)
        total = [a + slope / sharpness * b for a, b in zip(total, lead, strict=True)]
    return [a if present[n] > 0 else 0.0 for n, a in enumerate(total)]


def target_return(advantage, score, present, mask, *, target):
    """https://arxiv.org/abs/2307.13192: -d (J - R)^2 = -2 (J - R) dJ."""
    mean = _mean([score[n] for n in range(len(score)) if present[n] > 0])
    return -2.0 * (mean - target) * np.where(mask > 0, advantage, 0.0)
