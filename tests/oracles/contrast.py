"""Losses that contrast the rollouts of a group, by loops over all pairs of them."""

import numpy as np

from oracles.harness import actions, groups_of, log_ratio, rollouts_of
from oracles.preference_terms import likelihood, log_sigmoid, reward_of, share, to_reference, to_sampler


def members_of(case):
    """Numbers of the rollouts of each group that have a weight."""
    found = rollouts_of(case)
    kept = [[n for n in numbers if any(case.weight[p] != 0 for p in found[n])] for numbers in groups_of(case).values()]
    return [numbers for numbers in kept if numbers]


def row(case, name, number):
    return getattr(case, name)[rollouts_of(case)[number][0]]


def over_groups(case, value):
    """Sum over groups of the weights of their rollouts times `value(numbers)`."""
    return sum((sum(share(case, n) for n in numbers) * value(numbers) for numbers in members_of(case)), np.longdouble(0))


def contrastive_policy_gradient(live, case, *, beta=0.1, evidence=to_reference):
    """https://arxiv.org/abs/2406.19185, less the square of the rewards, which no parameter moves."""

    def value(numbers):
        total, count = np.longdouble(0), len(numbers)
        for i in range(count):
            for j in range(i):
                r = row(case, "score", numbers[i]) - row(case, "score", numbers[j])
                x = reward_of(live, case, numbers[i], evidence) - reward_of(live, case, numbers[j], evidence)
                total += (r - beta * x) ** 2 / (2 * beta) - r**2 / (2 * beta)
        return total / (count * (count - 1)) if count > 1 else total

    return over_groups(case, value)


def log_ratio_regression(live, case, *, beta, evidence=to_reference):
    loss = np.longdouble(0)
    for n, places in rollouts_of(case).items():
        advantage = sum(case.advantage[p] for p in places) / len(places)
        loss += share(case, n) * (beta * reward_of(live, case, n, evidence) - advantage) ** 2
    return loss


def brevity_weight(case, number, *, temperature=0.1, max_length=8192):
    return np.exp((1 - np.longdouble(len(rollouts_of(case)[number])) / max_length) / temperature)


def probability_ratio(live, case, place):
    return np.exp(log_ratio(live.logp[place], case.behavior_logp[place]))


def discriminative(live, case, *, evidence=likelihood, temperature=10.0, weight=lambda case, number: 1):
    def value(numbers):
        s = {n: reward_of(live, case, n, evidence, average=True) for n in numbers}
        right = [n for n in numbers if row(case, "correct", n) > 0.5]
        wrong = [n for n in numbers if n not in right]
        if not right or not wrong:
            return np.longdouble(0)
        top = max(s[n] for n in wrong)
        soft = top + temperature * np.log(sum(np.exp((s[n] - top) / temperature) for n in wrong) / len(wrong))
        return -sum(weight(case, n) * (s[n] - soft) for n in right) / sum(weight(case, n) for n in right)

    return over_groups(case, value)


def squared_hinge_kl(live, case, *, coefficient=1e3, bound=1e-4):
    counted = [p for p in actions(case) if case.weight[p] != 0]
    if not counted:
        return np.longdouble(0)
    divergence = -sum(log_ratio(live.logp[p], case.behavior_logp[p]) for p in counted) / len(counted)
    return coefficient / 2 * max(divergence - bound, np.longdouble(0)) ** 2


def group_preference(live, case, *, beta=0.1, variance=1.0):
    def value(numbers):
        x = {n: reward_of(live, case, n) for n in numbers}
        winners = [x[n] for n in numbers if row(case, "correct", n) > 0.5]
        losers = [x[n] for n in numbers if row(case, "correct", n) <= 0.5]
        if not winners or not losers:
            return np.longdouble(0)
        center = sum(winners) / len(winners)
        spread = sum((w - center) ** 2 for w in winners) / len(winners)
        return -log_sigmoid(beta * (center - sum(losers) / len(losers))) + variance * spread

    return over_groups(case, value)


def plackett_luce(live, case, *, beta=0.1, evidence=to_reference, members=16):
    def value(numbers):
        if len(numbers) > members:
            return np.longdouble(0)
        x = {n: beta * reward_of(live, case, n, evidence) for n in numbers}
        total = np.longdouble(0)
        for i in numbers:
            rivals = [j for j in numbers if j == i or row(case, "score", j) < row(case, "score", i)]
            top = max(x[j] for j in rivals)
            total -= x[i] - top - np.log(sum(np.exp(x[j] - top) for j in rivals))
        return total

    return over_groups(case, value)


def pairwise_ranking(live, case, *, beta=0.1, evidence=to_reference, gains=True, members=16):
    def value(numbers):
        if len(numbers) > members:
            return np.longdouble(0)
        x, kept = (
            {n: reward_of(live, case, n, evidence) for n in numbers},
            {n: reward_of(case, case, n, evidence) for n in numbers},
        )
        r = {n: row(case, "score", n) for n in numbers}
        rank = {n: 1 + sum(kept[m] > kept[n] for m in numbers) for n in numbers}
        ordered = [(i, j) for i in numbers for j in numbers if r[i] > r[j]]
        total = np.longdouble(0)
        for i, j in ordered:
            gain = abs(np.exp2(r[i]) - np.exp2(r[j])) * abs(
                1 / np.log1p(np.longdouble(rank[i])) - 1 / np.log1p(np.longdouble(rank[j]))
            )
            total -= (gain if gains else np.longdouble(1) / len(ordered)) * log_sigmoid(beta * (x[i] - x[j]))
        return total

    return over_groups(case, value)


def pairwise_clip(live, case, *, clip=0.2, evidence=to_sampler, members=16):
    def value(numbers):
        count = len(numbers)
        if count > members or count == 1:
            return np.longdouble(0)
        total = np.longdouble(0)
        for i in range(count):
            for j in range(i):
                half = (row(case, "score", numbers[i]) - row(case, "score", numbers[j])) / 2
                q = reward_of(live, case, numbers[i], evidence) - reward_of(live, case, numbers[j], evidence)
                total -= min(half * q, half * min(max(q, -np.longdouble(clip)), np.longdouble(clip)))
        return total / (count * (count - 1) / 2)

    return over_groups(case, value)
