"""Advantages from trees, places, sets, exams and earlier visits, by plain loops. `score` and `present` are lists by row."""

import itertools
import math

import numpy as np


def _own(present, group, n):
    return [m for m in range(len(group)) if present[m] > 0 and group[m] == group[n]]


def _mean(values):
    return sum(values) / len(values) if values else 0.0


def _deviation(values, degrees_of_freedom=1):
    """The deviation; 0 for equal values, whatever rounding says, and for too few."""
    if len(values) <= degrees_of_freedom or min(values) == max(values):
        return 0.0
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - degrees_of_freedom))


def prefix_tree_advantage(score, present, tokens, length, mask, group, *, divide=True):
    """TEMPO (https://arxiv.org/abs/2509.18314): [r - mean + V(s_t+1) - V(s_t)] / (std + 1e-6), V the mean of those who pass."""
    result = np.zeros(mask.shape)
    for n in range(len(mask)):
        own = _own(present, group, n)
        for t in range(mask.shape[1]):
            if mask[n, t] <= 0 or present[n] <= 0:
                continue

            def value(end, n=n, own=own):
                begin = list(tokens[n, :end])
                return _mean([score[m] for m in own if length[m] >= end and list(tokens[m, :end]) == begin])

            gain = value(t + 1) - value(t)
            difference = score[n] - _mean([score[m] for m in own]) + gain
            result[n, t] = difference / (_deviation([score[m] for m in own]) + 1e-6 if divide else 1.0)
    return result


def optimal_token_baseline(returns, logp, log_collision, valid, mask, group, *, tail="own", rho=None, by="action"):
    """verl's multi-turn optimal token baseline: B_t = sum(G W) / sum(W) over the t-th actions of the group.

    With `by="place"` (verl's other one) t is the distance from the first action; rho^2 multiplies what W sums up.
    """
    result, energy, actions = np.zeros(mask.shape), np.zeros(mask.shape), []
    for n in range(len(mask)):
        actions.append([t for t in range(mask.shape[1]) if mask[n, t] > 0])
        total = 0.0
        for t in actions[n]:
            square = 1.0 if rho is None else float(rho[n, t]) ** 2
            total += (1.0 - 2.0 * math.exp(logp[n, t]) + math.exp(log_collision[n, t])) * square
            energy[n, t] = total
    slots = [
        {i if by == "action" else t - actions[n][0]: t for i, t in enumerate(actions[n])} if valid[n] > 0 else {}
        for n in range(len(mask))
    ]
    for n in range(len(mask)):
        for i, t in slots[n].items():
            there = [m for m in range(len(mask)) if group[m] == group[n] and i in slots[m]]
            weight = [energy[m, slots[m][i]] for m in there]
            value = [float(returns[m, slots[m][i]]) for m in there]
            if len(there) == 1:
                baseline = value[0] if tail == "own" else 0.0
            elif min(value) == max(value):
                baseline = value[0]
            else:
                baseline = sum(w * v for w, v in zip(weight, value, strict=True)) / sum(weight)
            result[n, t] = float(returns[n, t]) - baseline
    return result


def best_lead_advantage(score, present, group, *, divide=True):
    """grpo_passk of verl (https://arxiv.org/abs/2503.19595): the best row gets (r_max - r_second) / (std + 1e-6)."""
    result = []
    for n in range(len(score)):
        own = sorted((score[m] for m in _own(present, group, n)), reverse=True)
        lead = own[0] - own[1] if present[n] > 0 and len(own) > 1 and score[n] == own[0] else 0.0
        result.append(lead / (_deviation(own) + 1e-6 if divide else 1.0))
    return result


def pass_at_k_advantage(score, present, group, *, k=2, threshold=0.5):
    """https://arxiv.org/abs/2508.10751: the mean of (reward - mean) / std over all sets of k rows that the row belongs to."""
    result = []
    for n in range(len(score)):
        own = _own(present, group, n)
        sets = [(chosen, float(any(score[m] > threshold for m in chosen))) for chosen in itertools.combinations(own, k)]
        rewards = [reward for _, reward in sets]
        deviation = _deviation(rewards, 0)
        mine = [reward for chosen, reward in sets if n in chosen]
        result.append((_mean(mine) - _mean(rewards)) / deviation if deviation > 0 and present[n] > 0 else 0.0)
    return result


def _quantile(values, level):
    values = sorted(values)
    place = level * (len(values) - 1)
    low = math.floor(place)
    return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def risk_advantage(quantiles, score, present, group, *, bundle=5, levels=(0.2, 0.8), tail_weight=1.5, rate=0.1, credit="share"):
    """RiskPO, from its authors' code (github RTkenny/RiskPO). Returns advantages by row and the quantiles after the step."""
    papers = {}
    for g in sorted(set(group)):
        for j, n in enumerate(m for m in range(len(score)) if group[m] == g and present[m] > 0):
            papers.setdefault((g // bundle, j), []).append(n)
    totals = {paper: sum(score[n] for n in rows) for paper, rows in papers.items()}
    if not totals:
        return [0.0] * len(score), quantiles
    if quantiles is None:
        quantiles = [_quantile(list(totals.values()), level) for level in levels]
    result = [0.0] * len(score)
    for paper, rows in papers.items():
        s, (a, b), (q_a, q_b) = totals[paper], levels, quantiles
        middle = (max(s - q_a, 0) - max(s - q_b, 0)) / (b - a + 1e-6)
        mixed = (tail_weight * -max(q_a - s, 0) / (a + 1e-6) + middle) / (tail_weight + 1)
        mixed /= _deviation([total for (number, _), total in totals.items() if number == paper[0]]) + 1e-6
        lead = {n: score[n] - _mean([score[m] for m in _own(present, group, n)]) for n in rows}
        whole = sum(lead.values())
        for n in rows:
            if credit == "share":
                result[n] = mixed * (lead[n] / whole if abs(whole) > 1e-6 else 1 / len(rows))
            elif credit == "std":
                deviation = _deviation([score[m] for m in _own(present, group, n)])
                result[n] = mixed / ((1.0 if deviation < 1e-3 else deviation) + 1e-6)
            else:
                result[n] = mixed
    below = [sum(total < q for total in totals.values()) / len(totals) for q in quantiles]
    return result, [q + rate * (level - share) for q, level, share in zip(quantiles, levels, below, strict=True)]


def tracked_advantage(
    table, score, present, prompt_id, drift, *, prompts, prior=(0.5, 0.5), half_life=0.06, forgetting=(0.875, 0.96)
):
    """SPO (https://arxiv.org/abs/2509.13232): A = r - a / (a + b), then a <- rho a + r and b <- rho b + 1 - r."""
    result, after = [0.0] * len(score), dict(table)
    for p in set(prompt_id):
        rows = [n for n in range(len(score)) if prompt_id[n] == p and present[n] > 0]
        a, b = table.get(p, prior)
        for n in rows:
            result[n] = score[n] - a / (a + b)
        rho = forgetting[0]
        if half_life is not None:
            rho = min(max(2.0 ** (-_mean([float(drift[n]) for n in rows]) / half_life), forgetting[0]), forgetting[1])
        reward = [min(max(score[n], 0.0), 1.0) for n in rows]
        if rows and p < prompts:
            after[p] = (rho * a + sum(reward), rho * b + sum(1 - r for r in reward))
    return result, after


def cumulative_advantage(table, score, present, prompt_id, *, prompts):
    """DCPO (https://arxiv.org/abs/2509.02333), smooth standardisation. `table`: (visits, mean, variance) by prompt."""
    result, after = [0.0] * len(score), dict(table)
    for p in set(prompt_id):
        rows = [n for n in range(len(score)) if prompt_id[n] == p and present[n] > 0]
        if not rows:
            continue
        own = [score[n] for n in rows]
        visits, mean, variance = table.get(p, (0, 0.0, 0.0))
        i, now, deviation = visits + 1, _mean(own), _deviation(own)
        total_mean = ((i - 1) * mean + now) / i
        total_variance = ((i - 1) * variance + deviation**2 + (i - 1) / i * (now - mean) ** 2) / i
        for n in rows:
            new = (score[n] - now) / deviation if deviation > 0 else 0.0
            total = (score[n] - total_mean) / math.sqrt(total_variance) if total_variance > 0 else 0.0
            by_new, by_total = ((i - 1) * new + total) / i, (new + (i - 1) * total) / i
            result[n] = by_new if abs(by_new) < abs(by_total) else by_total
        if p < prompts:
            after[p] = (i, total_mean, total_variance)
    return result, after


def role_advantage(table, score, present, role, *, roles=2, decay=0.95):
    """SPIRAL (https://arxiv.org/abs/2506.24119): A = R - b, then b <- alpha b + (1 - alpha) mean R of the role's rows."""
    result, after = [0.0] * len(score), list(table)
    for r in range(roles):
        rows = [n for n in range(len(score)) if role[n] == r and present[n] > 0]
        if rows:
            after[r] = decay * table[r] + (1 - decay) * _mean([score[n] for n in rows])
    for n in range(len(score)):
        if present[n] > 0:
            result[n] = score[n] - (table[role[n]] if 0 <= role[n] < roles else 0.0)
    return result, after
