"""What is known of whole rows, by plain loops."""

import math


def row_statistics(score, present, group, *, threshold=0.5):
    """Score, whether it is above the threshold, and the share of such rows among the present ones of the group."""
    rows = range(len(score))
    correct = [1.0 if present[n] > 0 and score[n] > threshold else 0.0 for n in rows]
    accuracy = []
    for n in rows:
        own = [correct[m] for m in rows if present[m] > 0 and group[m] == group[n]]
        accuracy.append(sum(own) / len(own) if own else 0.0)
    return [score[n] if present[n] > 0 else 0.0 for n in rows], correct, accuracy


def best_and_worst(score, present, group, behavior_logp, mask):
    """1 for the best row of a group and -1 for its worst; the likelier of several is the higher."""
    rows = range(len(score))

    def key(n):
        logp = math.fsum(float(behavior_logp[n, t]) for t in range(mask.shape[1]) if mask[n, t] > 0)
        return score[n], round(logp, 4), n

    preference = [0.0] * len(score)
    for g in set(group):
        own = sorted((n for n in rows if present[n] > 0 and group[n] == g), key=key)
        if own and score[own[0]] != score[own[-1]]:
            preference[own[0]], preference[own[-1]] = -1.0, 1.0
    return preference


def running_scale(state, score, present, advantage, mask, *, decay=0.99, epsilon=1e-6):
    """Advantages over the deviation of all scores so far, where those k steps ago weigh decay^k.

    `state` is the list of (weight, score) before this step; the one after it is returned too.
    """
    state = [(decay * weight, value) for weight, value in state]
    state += [(1.0, score[n]) for n in range(len(score)) if present[n] > 0]
    total = sum(weight for weight, _ in state)
    mean = sum(weight * value for weight, value in state) / total if total else 0.0
    variance = sum(weight * (value - mean) ** 2 for weight, value in state) / total if total else 0.0
    result = [
        [float(advantage[n, t]) / (math.sqrt(variance) + epsilon) if mask[n, t] > 0 else 0.0 for t in range(mask.shape[1])]
        for n in range(len(mask))
    ]
    return result, state


def blend(*terms):
    """Weighted sum of arrays."""
    return sum(weight * values for weight, values in terms)
