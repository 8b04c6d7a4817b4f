"""Token hidden rewards by loops over pairs of tokens."""

import numpy as np


def hidden_reward_weighting(
    advantage, hidden, logp, candidates, tokens, mask, score, present, group, *, strength, share, threshold
):
    """The advantages after weighting; s of a token is the sum over tokens of right answers of (g . g') (h . h')."""
    rows, width = mask.shape
    places = [(n, t) for n in range(rows) for t in range(width) if mask[n, t] > 0 and present[n] > 0]
    errors = {p: (candidates[p] == tokens[p]) - np.exp(logp[p].astype(np.float64)) for p in places}
    states = {p: hidden[p].astype(np.float64) for p in places}
    right = {n for n in range(rows) if present[n] > 0 and score[n] > threshold}
    result = np.where(mask > 0, advantage, 0).astype(np.float64)
    influence = {
        p: sum(
            (errors[p] @ errors[q]) * (states[p] @ states[q]) for q in places if q[0] in right and group[q[0]] == group[p[0]]
        )
        for p in places
    }
    for number in set(group.tolist()):
        members = [n for n in range(rows) if group[n] == number and present[n] > 0]
        winners = [n for n in members if n in right]
        if not winners or len(winners) == len(members):
            continue
        means = [np.mean([influence[p] for p in places if p[0] == n]) for n in winners if any(p[0] == n for p in places)]
        tau = share * min(means) if means else 0.0
        for p in places:
            if p[0] in members:
                s = influence[p] if p[0] in right else -influence[p]
                result[p] *= (abs(s) > tau) * (1 + strength * np.sign(s))
    return result
