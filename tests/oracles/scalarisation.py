"""Several rewards as several objectives, by plain loops."""

import math


def objective_advantages(advantages_of, rewards):
    """What `advantages_of(rewards [N, 1])` says of each component alone, and the mean over them, of each entry."""
    each = [advantages_of(rewards[:, k : k + 1]) for k in range(rewards.shape[1])]
    return each, sum(each) / len(each)


def fair_rewards(rewards, valid, mean, count, *, floor, decay):
    """Rewards over `floor` + J, with J the running means, at least 0; the means and their count afterwards."""
    rows = [n for n in range(len(rewards)) if valid[n] > 0]
    found, after, seen = [[0.0] * len(mean) for _ in rewards], list(mean), False
    for k in range(len(mean)):
        known = [float(rewards[n, k]) for n in rows if math.isfinite(rewards[n, k])]
        kept = decay if count else 0.0
        if known:
            after[k], seen = kept * mean[k] + (1 - kept) * sum(known) / len(known), True
        for n in range(len(rewards)):
            found[n][k] = float(rewards[n, k]) / (floor + max(after[k], 0.0))
    return found, after, count + seen
