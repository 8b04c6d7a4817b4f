"""Baselines and scales of rows by plain loops: each gives one number a row of `score`, from the rows with `present`."""

import math


def members(present, group, over, extras, n):
    """Present rows of the pool of row n."""
    rows = [m for m in range(len(group)) if present[m] > 0]
    if over == "batch":
        return rows
    rows = [m for m in rows if group[m] == group[n]]
    return rows if over == "group" else [m for m in rows if extras[over][m] == extras[over][n]]


def _mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values) if values else 0.0


def _median(values):
    values = sorted(values)
    half = len(values) // 2
    if not values:
        return 0.0
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def _variance(values, degrees_of_freedom):
    if len(values) <= degrees_of_freedom or min(values, default=0) == max(values, default=0):
        return 0.0
    mean = _mean(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - degrees_of_freedom)


def _pool(score, present, case, over, n):
    return [score[m] for m in members(present, case.group, over, getattr(case, "extras", {}), n)]


def _alone(present, case, over, n):
    return not [m for m in members(present, case.group, over, getattr(case, "extras", {}), n) if m != n]


def _nothing_for_rows_alone(baseline, present, case, over, alone):
    return [0.0 if alone == "none" and _alone(present, case, over, n) else value for n, value in enumerate(baseline)]


def mean_baseline(score, present, case, *, over="group", virtual=(), alone="own"):
    """NGRPO (https://arxiv.org/abs/2509.18851): the mean over the rows of the pool and the virtual ones."""
    result = [_mean(_pool(score, present, case, over, n) + list(virtual)) for n in range(len(score))]
    return _nothing_for_rows_alone(result, present, case, over, alone)


def median_baseline(score, present, case, *, over="group", alone="own"):
    result = [_median(_pool(score, present, case, over, n)) for n in range(len(score))]
    return _nothing_for_rows_alone(result, present, case, over, alone)


def leave_one_out_baseline(score, present, case, *, over="group", alone="own"):
    """RLOO (https://arxiv.org/abs/2402.14740), equation 9: the mean over j != i; without any other row, the row itself."""
    result = []
    for n in range(len(score)):
        others = [m for m in members(present, case.group, over, getattr(case, "extras", {}), n) if m != n]
        rest = score[n] if alone == "own" else 0.0
        result.append(_mean([score[m] for m in others]) if others else rest)
    return result


def constant_baseline(score, present, case, *, value):
    return [value] * len(score)


def length_weighted_baseline(score, present, case, *, over="group", alone="own"):
    """OPO (https://arxiv.org/abs/2505.23585): sum_i l_i r_i / sum_i l_i; rows without actions have no say."""
    result = []
    for n in range(len(score)):
        rows = members(present, case.group, over, getattr(case, "extras", {}), n)
        length = [sum(1 for t in range(case.mask.shape[1]) if case.mask[m, t] > 0) for m in rows]
        total = sum(length)
        uniform = len({score[m] for m in rows}) <= 1
        mean = sum(k * score[m] for k, m in zip(length, rows, strict=True)) / total if total else 0.0
        result.append(score[n] if uniform else mean)
    return _nothing_for_rows_alone(result, present, case, over, alone)


def given_baseline(score, present, case, *, annotation="greedy_reward"):
    """ReMax (https://arxiv.org/abs/2310.10505): the reward of the greedy answer."""
    given = case.extras[annotation]
    return [score[n] if math.isnan(given[n]) else float(given[n]) for n in range(len(score))]


def std_scale(
    score,
    present,
    case,
    *,
    over="group",
    degrees_of_freedom=0,
    epsilon=1e-6,
    placement="outside",
    virtual=(),
    others=False,
    alone="own",
):
    """With `others`, the deviation of row n leaves the row itself out."""
    result = []
    for n in range(len(score)):
        rows = members(present, case.group, over, getattr(case, "extras", {}), n)
        pool = [score[m] for m in rows if not others or m != n]
        variance = _variance(pool + list(virtual), degrees_of_freedom)
        if alone == "none" and _alone(present, case, over, n):
            result.append(1.0)
            continue
        result.append({
            "outside": math.sqrt(variance) + epsilon,
            "inside": math.sqrt(variance + epsilon),
            "floor": max(math.sqrt(variance), epsilon),
            "where_positive": math.sqrt(variance) + epsilon if variance > 0 else 1.0,
        }[placement])  # fmt: skip
    return result


def mean_scale(score, present, case, *, over="group", epsilon=1e-6):
    return [_mean(_pool(score, present, case, over, n)) + epsilon for n in range(len(score))]


def constant_scale(score, present, case, *, value):
    return [value] * len(score)


def nonzero_share_scale(score, present, case, *, factor=1.0):
    """verl's alpha of GPG, inverted: rows with a score other than 0, at least 1, over all rows."""
    rows = [n for n in range(len(score)) if present[n] > 0]
    nonzero = max(sum(1 for n in rows if score[n] != 0), 1)
    return [factor * nonzero / len(rows) if rows else 0.0] * len(score)


def mad_scale(score, present, case, *, over="group", epsilon=1e-6, factor=1.0):
    result = []
    for n in range(len(score)):
        own = _pool(score, present, case, over, n)
        result.append(factor * _median([abs(value - _median(own)) for value in own]) + epsilon)
    return result


def standardised(score, present, case, baseline, scale):
    """(R - b) / s by row, 0 where s is 0 or the row is absent; `baseline` and `scale` are (function, options) or None."""
    below = [0.0] * len(score) if baseline is None else baseline[0](score, present, case, **baseline[1])
    divisor = [1.0] * len(score) if scale is None else scale[0](score, present, case, **scale[1])
    return [(score[n] - below[n]) / divisor[n] if present[n] > 0 and divisor[n] != 0 else 0.0 for n in range(len(score))]


def spread(values, mask):
    """The value of its row at each action."""
    return [[values[n] if mask[n, t] > 0 else 0.0 for t in range(mask.shape[1])] for n in range(len(mask))]


def group_advantage(score, present, case, *, baseline=(mean_baseline, {}), scale=(std_scale, {})):
    """GRPO (https://arxiv.org/abs/2402.03300), section 4.1.2, with other baselines and scales in the place of its own."""
    return spread(standardised(score, present, case, baseline, scale), case.mask)


def component_advantage(rewards, present, case, *, weights, baseline=(mean_baseline, {}), scale=(std_scale, {})):
    """GDPO (https://arxiv.org/abs/2601.05242): the sum over components of their own group advantages."""
    total = [0.0] * len(rewards)
    for k in range(rewards.shape[1]):
        known = [present[n] * (not math.isnan(rewards[n, k])) for n in range(len(rewards))]
        values = [0.0 if math.isnan(rewards[n, k]) else float(rewards[n, k]) for n in range(len(rewards))]
        own = standardised(values, known, case, baseline, scale)
        for n in range(len(rewards)):
            total[n] += weights[k] * own[n]
    return spread(total, case.mask)
