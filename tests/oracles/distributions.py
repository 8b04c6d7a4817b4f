"""Losses over whole distributions of the next token, over candidates and over entropies, by plain loops."""

import numpy as np

from oracles.harness import actions

SMALLEST = 1e-6


def outcomes(ours, theirs, rest):
    """Probabilities of both policies over the candidates and, for a bucket, over everything else."""
    both = []
    for logp in (theirs, ours):
        p = np.array([np.exp(x) if np.isfinite(x) else np.longdouble(0) for x in logp])
        if rest == "renormalise" and p.sum() > 0:
            p = p / p.sum()
        if rest == "bucket":
            p = np.append(p, max(1 - p.sum(), np.longdouble(SMALLEST)))
        both.append(p)
    return both


def kullback_leibler(p, q):
    return sum((a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True) if a > 0 and b > 0), np.longdouble(0))


def forward_divergence(other, policy):
    """KL(other || policy)."""
    return kullback_leibler(other, policy)


def reverse_divergence(other, policy):
    """KL(policy || other)."""
    return kullback_leibler(policy, other)


def cross_entropy(other, policy):
    """-sum policy log other, where the other has mass."""
    return -sum((a * np.log(b) for a, b in zip(policy, other, strict=True) if b > 0), np.longdouble(0))


def jensen_shannon(other, policy, *, beta=0.5):
    """https://arxiv.org/abs/2306.13649, equation 1, with the scaled limits at 0 and 1."""
    if beta == 0:
        return kullback_leibler(other, policy)
    if beta == 1:
        return kullback_leibler(policy, other)
    middle = beta * other + (1 - beta) * policy
    return beta * kullback_leibler(other, middle) + (1 - beta) * kullback_leibler(policy, middle)


def alpha_divergence(other, policy, *, alpha=0.5):
    """(1 - sum p^alpha q^(1 - alpha)) / (alpha (1 - alpha))."""
    overlap = sum(
        (p**alpha * q ** (1 - alpha) for p, q in zip(policy, other, strict=True) if p > 0 and q > 0), np.longdouble(0)
    )
    return (1 - overlap) / (alpha * (1 - alpha))


def generalised_divergence(other, policy, *, direction="forward"):
    """sum [p log(p / q) - p + q], of outcomes that either can have."""
    p, q = (other, policy) if direction == "forward" else (policy, other)
    return kullback_leibler(p, q) - sum(p, np.longdouble(0)) + sum(q, np.longdouble(0))


def divergence(live, case, *, kind, rest, coefficient=1.0, against="teacher"):
    """c sum_t w_t D(other_t, policy_t)."""
    theirs = getattr(case, f"{against}_candidate_logp")
    total = np.longdouble(0)
    for b, t in actions(case):
        total += coefficient * case.weight[b, t] * kind(*outcomes(live.candidate_logp[b, t], theirs[b, t], rest))
    return total


def one_token_rollouts(live, case, *, wrong=-0.1):
    """https://arxiv.org/abs/2509.26313: REINFORCE on one-token samples, right where they are the given token."""
    total = np.longdouble(0)
    for b, t in actions(case):
        drawn = [k for k in range(case.candidates.shape[2]) if case.candidates[b, t, k] >= 0]
        for k in drawn:
            reward = 1.0 if case.candidates[b, t, k] == case.tokens[b, t] else wrong
            if np.isfinite(live.candidate_logp[b, t, k]):
                total -= case.weight[b, t] * reward * live.candidate_logp[b, t, k] / len(drawn)
    return total


def project(policy, old, bound):
    """The distribution p of https://arxiv.org/abs/2510.03817, its dual variable found by bisection."""

    def mixture(eta):
        p = policy ** (1 / (1 + eta)) * old ** (eta / (1 + eta))
        return p / p.sum()

    if kullback_leibler(policy, old) <= bound:
        return policy
    low, high = np.longdouble(-20), np.longdouble(20)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if kullback_leibler(mixture(np.exp(middle)), old) > bound else (low, middle)
    return mixture(np.exp(high))


def projected(live, case, *, bound, regression=1.0):
    """-(p / q) A + c KL(pi || sg(p)); the projection without gradient is that of `case.candidate_logp`."""
    total = np.longdouble(0)
    for b, t in actions(case):
        old, policy = outcomes(live.candidate_logp[b, t], case.proximal_candidate_logp[b, t], "bucket")
        _, fixed = outcomes(case.candidate_logp[b, t], case.proximal_candidate_logp[b, t], "bucket")
        known = [k for k in range(len(old)) if old[k] > 0 and policy[k] > 0]
        p, target = project(policy[known], old[known], bound), project(fixed[known], old[known], bound)
        gain = np.longdouble(0)
        for place, k in enumerate(known):
            if k < case.candidates.shape[2] and case.candidates[b, t, k] == case.tokens[b, t]:
                gain = p[place] / old[k]
        total += case.weight[b, t] * (-gain * case.advantage[b, t] + regression * kullback_leibler(policy[known], target))
    return total


def top_entropy_bonus(live, case, *, coefficient):
    """-c sum_t w_t H_t of the cut distribution."""
    return -coefficient * sum(case.weight[p] * live.top_entropy[p] for p in actions(case))


def smoothed_entropy(live, case, *, coefficient, smoothing, history, low, high, penalty):
    """-c sum_t w_t (H_t - s P_t), P_t = penalty outside of the band, a constant."""
    total = np.longdouble(0)
    for p in actions(case):
        outside = history > 0 and not low * history <= case.entropy[p] <= high * history
        total -= coefficient * case.weight[p] * (live.entropy[p] - smoothing * (penalty if outside else 0.0))
    return total


def vocabulary(log_probabilities):
    """All ids."""
    return [list(range(len(row))) for row in log_probabilities]


def tokens_of_group(group, tokens, mask):
    """For each row the ids of actions of its group, sorted."""
    found = []
    for own in group:
        ids = set()
        for other, row, acted in zip(group, tokens, mask, strict=True):
            ids |= {int(token) for token, action in zip(row, acted, strict=True) if other == own and action > 0}
        found.append(sorted(ids))
    return found


def top(log_probabilities, tokens, *, count, mass=1.0, with_token=False):
    """The likeliest ids, until their mass is enough, and the token itself in place of the last."""
    result = []
    for row, token in zip(log_probabilities, tokens, strict=True):
        order = sorted(range(len(row)), key=lambda i: -row[i])[:count]
        ids, covered = [], 0.0
        for i in order:
            ids.append(i if covered < mass else -1)
            covered += np.exp(row[i])
        if with_token and token not in ids:
            ids[-1] = int(token)
        result.append(ids)
    return result


def sampled(log_probabilities, temperature):
    """Probabilities that the draws come from."""
    shaped = np.exp(np.asarray(log_probabilities, np.float64) / temperature)
    return shaped / shaped.sum(axis=-1, keepdims=True)


def overconfidence(live, case, *, coefficient):
    """-c sum_t w_t / (|y| log pi(y)), log pi(y) the sum over the actions of its sequence; not above -1/1000."""
    total = np.longdouble(0)
    for b, t in actions(case):
        own = [u for c, u in actions(case) if c == b and case.segment[b, u] == case.segment[b, t]]
        logp = sum(live.logp[b, u] if np.isfinite(live.logp[b, u]) else np.longdouble(0) for u in own)
        total += case.weight[b, t] * -coefficient / (min(logp, np.longdouble(-1e-3)) * len(own))
    return total
