"""Losses on pairs and their exact gradients with respect to the scores, by plain loops in float64."""

import math

import numpy as np


def pairs_of(rollout, group, preference, segment, mask):
    """(chosen, rejected) rollout numbers of each group that has one of each with an action."""
    sides = {}
    for b, t in np.ndindex(*mask.shape):
        if segment[b, t] > 0 and mask[b, t] > 0 and preference[b, t] != 0:
            name = "chosen" if preference[b, t] > 0 else "rejected"
            sides.setdefault(int(group[b, t]), {"chosen": set(), "rejected": set()})[name].add(int(rollout[b, t]))
    complete = [side for _, side in sorted(sides.items()) if len(side["chosen"]) == len(side["rejected"]) == 1]
    return [(*side["chosen"], *side["rejected"]) for side in complete]


def ends(rollout, segment):
    """Place (b, t) of the last token of each rollout."""
    result = {}
    for b, t in np.ndindex(*segment.shape):
        if segment[b, t] > 0 and (int(rollout[b, t]) not in result or t > result[int(rollout[b, t])][1]):
            result[int(rollout[b, t])] = (b, t)
    return result


def share(number, rollout, weight, mask):
    """Sum over the actions of a rollout of their weights."""
    return sum(float(weight[b, t]) for b, t in np.ndindex(*mask.shape) if rollout[b, t] == number and mask[b, t] > 0)


def bradley_terry(value, rollout, group, preference, segment, mask, weight, *, margin=None, center=0.0):
    """sum over pairs of w (-log sigmoid(r_c - r_r - m) + center (r_c + r_r)^2), with w the weights of both members.

    https://arxiv.org/abs/2203.02155, equation 1; the margin of https://arxiv.org/abs/2307.09288, equation 2. Returns the
    loss, its gradient by the values, and the weighted means of accuracy, margin and both rewards.
    """
    loss, gradient = 0.0, np.zeros(value.shape)
    means, total = np.zeros(4), 0.0
    last = ends(rollout, segment)
    for chosen, rejected in pairs_of(rollout, group, preference, segment, mask):
        w = share(chosen, rollout, weight, mask) + share(rejected, rollout, weight, mask)
        r_chosen, r_rejected = float(value[last[chosen]]), float(value[last[rejected]])
        x = r_chosen - r_rejected - (0.0 if margin is None else float(margin[last[chosen]]))
        total += w
        accurate = (r_chosen > r_rejected) + 0.5 * (r_chosen == r_rejected)
        means += w * np.array([accurate, r_chosen - r_rejected, r_chosen, r_rejected])
        loss += w * (math.log1p(math.exp(-abs(x))) + max(-x, 0.0) + center * (r_chosen + r_rejected) ** 2)
        slope = -1.0 / (1.0 + math.exp(x)) if x < 500 else 0.0
        gradient[last[chosen]] += w * (slope + 2 * center * (r_chosen + r_rejected))
        gradient[last[rejected]] += w * (-slope + 2 * center * (r_chosen + r_rejected))
    return loss, gradient, means / total if total else means


def pair_mean(mask, valid, group, preference):
    """1 / (2 pairs |o_n|) for each action of a row of a complete pair."""
    rows = {}
    for n in range(len(mask)):
        if valid[n] > 0 and mask[n].sum() > 0 and preference[n] != 0:
            rows.setdefault(int(group[n]), []).append(n)
    complete = [members for members in rows.values() if sorted(np.sign(preference[members])) == [-1, 1]]
    weight = np.zeros(mask.shape)
    for members in complete:
        for n in members:
            for t in range(mask.shape[1]):
                if mask[n, t] > 0:
                    weight[n, t] = 1.0 / (2 * len(complete) * sum(1 for u in mask[n] if u > 0))
    return weight
