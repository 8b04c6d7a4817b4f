"""Entropy-shaped advantages, conflicts, weights of rows, and which rows and tokens are kept, by plain loops."""

import math

import numpy as np


def _actions(mask, n):
    return [t for t in range(mask.shape[1]) if mask[n, t] > 0]


def _own(present, group, n):
    return [m for m in range(len(group)) if present[m] > 0 and group[m] == group[n]]


def _mean(values):
    return sum(values) / len(values) if values else 0.0


def _mean_of(array, mask):
    """Mean over the actions of each row."""
    return [_mean([float(array[n, t]) for t in _actions(mask, n)]) for n in range(len(mask))]


def entropy_shaped_advantage(value, present, entropy, mask, group, *, base=1.0, bonus=0.1, threshold=0.5):
    """GTPO (https://arxiv.org/abs/2508.04349), token rewards, normalised over the tokens of each side."""
    result = np.zeros(mask.shape)
    for g in set(group):
        for right in (True, False):
            rows = [n for n in range(len(mask)) if present[n] > 0 and group[n] == g and (value[n] > threshold) == right]
            rewards = {}
            for n in rows:
                for i, t in enumerate(_actions(mask, n)):
                    there = [float(entropy[m, _actions(mask, m)[i]]) for m in rows if len(_actions(mask, m)) > i]
                    own = float(entropy[n, t])
                    strength, total = own, sum(there)
                    if not right:
                        strength, total = 1 / (own + 1e-8), sum(1 / (h + 1e-8) for h in there)
                    size = base + bonus * strength / (total + 1e-8) * len(there)
                    rewards[n, t] = size if right else -size
            if rewards and min(rewards.values()) != max(rewards.values()):
                mean = _mean(list(rewards.values()))
                deviation = math.sqrt(_mean([(r - mean) ** 2 for r in rewards.values()]))
                for place, reward in rewards.items():
                    result[place] = (reward - mean) / (deviation + 1e-8)
    return result


def sequence_entropy_reward(value, present, entropy, mask, group, *, base=1.0, bonus=0.1, threshold=0.5):
    """GRPO-S (https://arxiv.org/abs/2508.04349)."""
    mean, result = _mean_of(entropy, mask), list(value)
    for n in range(len(mask)):
        right = value[n] > threshold
        rows = [m for m in _own(present, group, n) if (value[m] > threshold) == right]
        strength = [mean[m] if right else 1 / (mean[m] + 1e-8) for m in rows]
        own = mean[n] if right else 1 / (mean[n] + 1e-8)
        size = base + bonus * own / (sum(strength) + 1e-8) * len(rows)
        result[n] = size if right else -size
    return result


def entropy_penalty(advantage, entropy, mask, *, coefficient=0.1, ceiling=0.7):
    """GTPO (github winstonsmith1897/GTPO): A - gamma <H>, and 0 where <H> is above the ceiling."""
    result, mean = np.zeros(mask.shape), _mean_of(entropy, mask)
    for n in range(len(mask)):
        for t in _actions(mask, n):
            result[n, t] = float(advantage[n, t]) - coefficient * mean[n] if mean[n] <= ceiling else 0.0
    return result


def conflict_weighting(advantage, tokens, valid, mask, group, *, bad=0.0, good=2.0):
    """GTPO (https://arxiv.org/abs/2508.03772): runs of shared tokens from the first action on, and from the last one back."""
    result = np.where((mask > 0) & (valid[:, None] > 0), advantage, 0.0)
    rows = [n for n in range(len(mask)) if valid[n] > 0]
    for step in (1, -1):
        for n in rows:
            for i, t in enumerate(_actions(mask, n)[::step]):
                sides = set()
                for m in rows:
                    places = _actions(mask, m)[::step]
                    if group[m] == group[n] and len(places) > i and tokens[m, places[i]] == tokens[n, t]:
                        sides.add(np.sign(advantage[m, places[i]]))
                if not {1.0, -1.0} <= sides or advantage[n, t] == 0:
                    break
                result[n, t] *= good if advantage[n, t] > 0 else bad
    return result


def conflict_mean(tokens, valid, mask, group, advantage):
    """The code of GTPO: 1 / (rows, actions, conflicts of either direction), the last at least 1."""
    changed = conflict_weighting(np.sign(advantage), tokens, valid, mask, group, bad=3.0, good=3.0)
    result, rows = np.zeros(mask.shape), int((valid > 0).sum())
    for n in range(len(mask)):
        places = _actions(mask, n) if valid[n] > 0 else []
        conflicts = sum(1 for t in places if abs(changed[n, t]) > 1)
        for t in places:
            result[n, t] = 1.0 / (rows * len(places) * max(conflicts, 1))
    return result


def _times(advantage, factor, mask):
    return np.where(mask > 0, np.where(mask > 0, advantage, 0.0) * np.asarray(factor)[:, None], 0.0)


def max_entropy_weight(advantage, value, present, mask, group, *, sharpness=1.0, threshold=0.5):
    """MGPO (https://arxiv.org/abs/2511.06221): exp(-lambda D(p || 1/2))."""
    factor = []
    for n in range(len(mask)):
        own = _own(present, group, n)
        p = _mean([1.0 if value[m] > threshold else 0.0 for m in own])
        distance = sum(q * math.log(q / 0.5) for q in (p, 1 - p) if q > 0)
        factor.append(math.exp(-sharpness * distance))
    return _times(advantage, factor, mask)


def fading(advantage, mask, number, *, start=0.5, rate=0.01, rest=False):
    """RL Tango (https://arxiv.org/abs/2505.15034): a share that falls by the step."""
    share = start * math.exp(-rate * number)
    return _times(advantage, [1.0 - share if rest else share] * len(mask), mask)


def balanced_classes(advantage, right, valid, mask, factors, *, momentum=0.9):
    """RL Tango: 1 / sqrt(rows of the class), averaged over steps; `factors` are those before, None where there was none."""
    found = list(factors)
    for kind in (0, 1):
        count = sum(1 for n in range(len(mask)) if valid[n] > 0 and right[n] == kind)
        if count:
            now = 1.0 / math.sqrt(count)
            found[kind] = now if factors[kind] is None else momentum * factors[kind] + (1.0 - momentum) * now
    return _times(advantage, [found[int(kind)] or 0.0 for kind in right], mask), found


def round_discount(rewards, rounds_left, *, discount=0.95):
    """IterResearch (https://arxiv.org/abs/2511.07327): rewards of a row times gamma for each round behind it."""
    return np.array([[value * discount ** int(left) for value in row] for row, left in zip(rewards, rounds_left, strict=True)])


def mode_cost(rewards, value, present, mode, group, *, power=2.0, threshold=0.0):
    """A2FM (https://arxiv.org/abs/2510.12838): dear modes lose the share p^alpha of right rows of the cheap one."""
    result = np.array(rewards, np.float64)
    for n in range(len(result)):
        own = [m for m in range(len(group)) if group[m] == group[n] and present[m] > 0]
        cheap = [m for m in own if mode[m] == 0] or own
        share = _mean([1.0 if value[m] > threshold else 0.0 for m in cheap]) if cheap else 0.0
        result[n] *= 1.0 if mode[n] == 0 else 1.0 - share**power
    return result


def _softmax(values):
    high = max(values.values(), default=0.0)
    total = sum(math.exp(value - high) for value in values.values())
    return {key: math.exp(value - high) / total for key, value in values.items()}


def entropy_guided_weight(advantage, entropy, valid, mask, group, *, entropy_weight=1.0, temperature=1.0):
    """EGSW (https://arxiv.org/abs/2503.22456), once for each sequence."""
    merit, uncertain, factor = _mean_of(advantage, mask), _mean_of(entropy, mask), []
    for n in range(len(mask)):
        own = _own(valid, group, n)
        shares = _softmax({m: (merit[m] + entropy_weight * uncertain[m]) / temperature for m in own})
        factor.append(shares.get(n, 0.0) * len(own))
    return _times(advantage, factor, mask)


def semantic_entropy_weight(advantage, answer, logp, valid, mask, group, *, strength=0.0417):
    """SEED-GRPO (https://arxiv.org/abs/2505.12346) as its authors' program has it."""
    mean, factor = _mean_of(logp, mask), []
    for n in range(len(mask)):
        own, mass = _own(valid, group, n), {}
        for m, share in _softmax({m: mean[m] for m in own}).items():
            meaning = ("row", m) if answer[m] < 0 else answer[m]
            mass[meaning] = mass.get(meaning, 0.0) + share
        entropy = -sum(p * math.log(p) for p in mass.values() if p > 0)
        factor.append(1.0 / (1.0 + strength * entropy / math.log(len(own)) if len(own) > 1 else 1.0))
    return _times(advantage, factor, mask)


def exponential_weight(advantage, mask, *, temperature=1.0):
    """RED-Weight (https://arxiv.org/abs/2509.24203): A exp(A / T)."""
    return np.where(mask > 0, advantage * np.exp(advantage.astype(float) / temperature), 0.0)


def group_gap_weight(advantage, score, present, easy, mask, *, strength=1.0):
    """d/dR_i of mean(R) - strength Var_g(J_g), times n, by finite differences of that very objective."""
    rows = [n for n in range(len(score)) if present[n] > 0]
    parts = [{n: float(chance) for n, chance in enumerate(side)} for side in (1.0 - easy.astype(float), easy)]

    def target(values):
        mean = _mean([values[n] for n in rows])
        totals = [sum(part[n] for n in rows) for part in parts]
        if min(totals) == 0:
            return mean
        returns = [sum(part[n] * values[n] for n in rows) / total for part, total in zip(parts, totals, strict=True)]
        return mean - strength * (returns[1] - returns[0]) ** 2 / 4

    factor = [0.0] * len(score)
    for n in rows:
        up, down = ([value + (change if m == n else 0.0) for m, value in enumerate(score)] for change in (1e-4, -1e-4))
        factor[n] = len(rows) * (target(up) - target(down)) / 2e-4
    return _times(advantage, factor, mask)


def down_sample(step, advantage, entropy, valid, mask, *, rows=(0.5, 1.0), tokens=(0.5, 1.0), steps_total):
    """D3S (https://arxiv.org/abs/2509.22115): sizes of the kept rows' variance and the least |A| H of a kept token."""
    way = min(step / steps_total, 1.0)
    share, share_of_tokens = (first + (last - first) * way for first, last in (rows, tokens))
    mean = _mean_of(advantage, mask)
    present = sorted((n for n in range(len(mask)) if valid[n] > 0), key=lambda n: mean[n])
    wanted = math.ceil(share * len(present) - 1e-4)

    def variance(chosen):
        values = [mean[n] for n in chosen]
        return _mean([(value - _mean(values)) ** 2 for value in values])

    choices = [present[:low] + present[len(present) - (wanted - low) :] for low in range(wanted + 1)]
    best = max((variance(chosen) for chosen in choices), default=0.0)
    return wanted, best, variance, share_of_tokens


def policy_filtration(score, present, group, logp, mask, *, keep):
    """PF-PPO (https://arxiv.org/abs/2409.06957): for each group the rows that must be kept, and how many are."""
    found = {}
    for g in set(group):
        own = [n for n in range(len(score)) if present[n] > 0 and group[n] == g]
        total = {n: round(math.fsum(float(logp[n, t]) for t in _actions(mask, n)), 4) for n in own}
        own.sort(key=lambda n: (score[n], total[n], n))
        if own:
            must = {own[-1]} | ({own[0]} if keep == "best_and_worst" else set())
            found[g] = (must, min(len(own), 1 if keep == "best" else 2))
    return found


def resample_by_score(score, present, *, emphasis, power=2.0):
    """Chance of each row in verl's compute_pf_ppo_reweight_data."""
    own = [score[n] for n in range(len(score)) if present[n] > 0]
    chance = []
    for n in range(len(score)):
        size = {
            "power": abs(score[n]) ** power + 1e-8,
            "largest": 1.0 if own and score[n] in (min(own), max(own)) else 0.0,
            "largest_and_random": 0.4 if own and score[n] == max(own) else 0.1,
        }[emphasis]
        chance.append(size if present[n] > 0 else 0.0)
    return [size / sum(chance) if sum(chance) else 0.0 for size in chance]


def drop_surplus_negatives(advantage, valid, mask, group):
    """RED-Drop: by group, how many rows with a negative advantage stay."""
    mean, kept = _mean_of(advantage, mask), {}
    for g in set(group):
        own = [mean[n] for n in range(len(mask)) if valid[n] > 0 and group[n] == g]
        kept[g] = min(sum(a < 0 for a in own), sum(a > 0 for a in own))
    return kept
