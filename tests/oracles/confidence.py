"""Rewards from what the policy itself thinks, by plain loops."""

import math

import numpy as np


def self_certainty_reward(mask, mean_logp):
    """Intuitor (https://arxiv.org/abs/2505.19590), equation 3, without log V: 1 / |y| sum -mean log p."""
    result = []
    for n in range(len(mask)):
        own = [-float(mean_logp[n, t]) for t in range(mask.shape[1]) if mask[n, t] > 0 and math.isfinite(mean_logp[n, t])]
        result.append(sum(own) / len(own) if own else math.nan)
    return result


def answer_likelihood_advantage(present, group, mask, answer_mask, logp):
    """VeriFree (https://arxiv.org/abs/2505.21493): R - mean of the others' R at the reasoning, R at the reference answer."""
    rows, width = mask.shape
    places = [[t for t in range(width) if mask[n, t] > 0 and answer_mask[n, t] > 0] for n in range(rows)]
    reward = [math.exp(sum(float(logp[n, t]) for t in places[n])) if places[n] else 0.0 for n in range(rows)]
    counted = [n for n in range(rows) if present[n] > 0]
    advantage = np.zeros(mask.shape)
    for n in counted:
        others = [reward[m] for m in counted if m != n and group[m] == group[n]]
        baseline = sum(others) / len(others) if others else reward[n]
        for t in range(width):
            if mask[n, t] > 0:
                advantage[n, t] = reward[n] if t in places[n] else reward[n] - baseline
    return advantage
