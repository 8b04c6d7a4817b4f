"""A drift, log-ratios alike over buckets, weights by difficulty, truncated policies: plain loops in extended precision."""

import numpy as np

from oracles.contrast import members_of
from oracles.harness import rollouts_of
from oracles.policy_terms import counting, each, finite, kept_within, tokens, zeros
from oracles.preference_terms import share


@each
def discovered_drift(x, fixed, logp, a, place, case, *, alpha=2.0, beta=0.6):
    """https://arxiv.org/abs/2210.05639: r A - f, f = relu(z - c tanh(z / c)) with a z and a c for each sign of A."""
    r = np.exp(x)
    z, c = ((r - 1) * a, np.longdouble(alpha)) if a >= 0 else (x * a, np.longdouble(beta))
    return -(r * a - max(z - c * np.tanh(z / c), np.longdouble(0)))


def bucket_normalised(live, case, *, by="position", buckets=8, shrinkage=0.1):
    """(x - sg mean_b) sg((s + e) / (s_b + e)), mean_b and s_b of the token's bucket, s of all distances from those means."""
    x, fixed, result, places = tokens(live, case), tokens(case, case), zeros(case), counting(case)
    members = {}
    for place in places:
        members.setdefault(_bucket(place, places, case, by, buckets), []).append(place)
    center = {p: sum(fixed[q] for q in own) / len(own) for own in members.values() for p in own}
    distance = {p: fixed[p] - center[p] for p in places}

    def deviation(own):
        return np.sqrt(sum(distance[p] ** 2 for p in own) / len(own))

    for own in members.values():
        for place in own:
            small = shrinkage * deviation(places) + 1e-3
            scale = (deviation(places) + small) / (deviation(own) + small)
            result[place] = kept_within((x[place] - center[place]) * scale)
    return result


def _bucket(place, places, case, by, buckets):
    if by == "entropy":
        lower = sum(case.proximal_entropy[p] < case.proximal_entropy[place] for p in places)
        return lower * buckets // len(places)
    own = next(own for own in rollouts_of(case).values() if place in own)
    own = [p for p in own if p in places]
    return own.index(place) * buckets // len(own)


def difficulty_weight(case, *, steepness=np.e):
    """https://arxiv.org/abs/2506.21655: w(d) = 1 - exp(-e (1 - d)), d = 1 - accuracy, at A > 0; 1 for d of 0 and 1."""
    weights = {}
    for place in counting(case):
        difficulty = 1 - case.accuracy[place]
        eased = case.advantage[place] > 0 and 0 < difficulty < 1
        weights[place] = 1 - np.exp(-steepness * (1 - difficulty)) if eased else np.longdouble(1)
    return weights


def truncated_policy(live, case):
    """https://arxiv.org/abs/2204.07615: -A (log pi(y) - log P), P = 1 / n sum_k pi(z_k) / q(z_k) over the group's rows."""
    loss, found, x = np.longdouble(0), rollouts_of(case), tokens(live, case)
    for numbers in members_of(case):
        weights = [np.exp(kept_within(sum(x[p] for p in found[n]))) for n in numbers]
        log_feasible = np.log(sum(weights) / len(weights))
        for n in numbers:
            advantage = sum(case.advantage[p] for p in found[n]) / len(found[n])
            logp = sum(finite(live.logp[p]) for p in found[n])
            loss -= share(case, n) * advantage * (logp - log_feasible)
    return loss
