"""Off-policy evaluation by plain loops, with weights as products of ratios."""

import math

import numpy as np


def _actions(mask, n):
    return [t for t in range(mask.shape[1]) if mask[n, t] > 0]


def _ratio(p, q):
    if math.isinf(p) or math.isinf(q):
        return np.longdouble(0.0 if p == q else (20.0 if p > q else -20.0))
    return np.longdouble(min(max(float(p) - float(q), -20.0), 20.0))


def _bounded(log_weight):
    return np.exp(min(max(log_weight, np.longdouble(-20)), np.longdouble(20)))


def _mean(values):
    return sum(values) / len(values) if values else np.longdouble(0)


def trajectory_log_weight(logp, behavior_logp, mask):
    return [
        sum((_ratio(logp[n, t], behavior_logp[n, t]) for t in _actions(mask, n)), np.longdouble(0)) for n in range(len(mask))
    ]


def importance_sampling_value(log_weight, returns):
    return _mean([_bounded(w) * r for w, r in zip(log_weight, returns, strict=True)])


def _probabilities(log_weight):
    weights = [np.exp(np.longdouble(w)) for w in log_weight]
    return [w / sum(weights) for w in weights]


def self_normalised_value(log_weight, returns):
    return sum(p * r for p, r in zip(_probabilities(log_weight), returns, strict=True))


def doubly_robust_value(logp, behavior_logp, mask, rewards, values, action_values, *, discount=1.0):
    rows = []
    for n in range(len(mask)):
        total, before = np.longdouble(0), np.longdouble(0)
        for i, t in enumerate(_actions(mask, n)):
            after = before + _ratio(logp[n, t], behavior_logp[n, t])
            gain = _bounded(after) * (rewards[n, t] - action_values[n, t]) + _bounded(before) * values[n, t]
            total, before = total + discount**i * gain, after
        rows.append(total)
    return _mean(rows)


def per_decision_value(logp, behavior_logp, mask, rewards, *, discount=1.0):
    nothing = np.zeros(mask.shape)
    return doubly_robust_value(logp, behavior_logp, mask, rewards, nothing, nothing, discount=discount)


def return_distribution(log_weight, returns):
    """F(m) = sum of w where R <= m, by sum of w, at each return in rising order; equal ones one by one."""
    pairs = sorted(zip(returns, _probabilities(log_weight), strict=True), key=lambda pair: pair[0])
    return [r for r, _ in pairs], list(np.cumsum([p for _, p in pairs]))


def return_variance(log_weight, returns):
    mean = self_normalised_value(log_weight, returns)
    return sum(p * (r - mean) ** 2 for p, r in zip(_probabilities(log_weight), returns, strict=True))


def return_quantile(log_weight, returns, *, level):
    ordered, probability = return_distribution(log_weight, returns)
    return next((r for r, p in zip(ordered, probability, strict=True) if p >= level - 1e-6), ordered[-1])


def conditional_value_at_risk(log_weight, returns, *, level):
    """The largest value over q of q - mean (q - R)_+ / level; it lies at one of the returns."""
    shares = _probabilities(log_weight)

    def value(q):
        return q - sum(p * max(q - r, 0) for p, r in zip(shares, returns, strict=True)) / level

    return max(value(q) for q in returns)


def sharpe_ratio_at_k(estimates, values, *, baseline, k):
    best = sorted(range(len(values)), key=lambda i: -estimates[i])[:k]
    chosen = [float(values[i]) for i in best]
    mean = sum(chosen) / k
    deviation = math.sqrt(sum((v - mean) ** 2 for v in chosen) / (k - 1))
    return max(max(chosen) - baseline, 0.0) / deviation if min(chosen) != max(chosen) else 0.0
