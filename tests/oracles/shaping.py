"""Rewards shaped by length, likelihood, tools, formats, votes and novelty, by plain loops.

`value` and `present` are lists by row: a reward component (0 where it is missing), and whether it is there in a valid row.
"""

import math

import numpy as np


def _length(mask):
    return [sum(1 for t in range(mask.shape[1]) if mask[n, t] > 0) for n in range(len(mask))]


def _own(present, group, n):
    return [m for m in range(len(group)) if present[m] > 0 and group[m] == group[n]]


def _mean(values):
    return sum(values) / len(values) if values else 0.0


def length_penalty(value, mask, *, coefficient=1e-3):
    return [value[n] - coefficient * length for n, length in enumerate(_length(mask))]


def relative_length_reward(value, present, mask, group, *, weight=1.0, threshold=0.5):
    """Kimi k1.5 (https://arxiv.org/abs/2501.12599), section 2.3.3."""
    result, length = list(value), _length(mask)
    for n in range(len(value)):
        own = [length[m] for m in _own(present, group, n)]
        if own and min(own) < max(own):
            bonus = 0.5 - (length[n] - min(own)) / (max(own) - min(own))
            result[n] += weight * (bonus if value[n] > threshold else min(0.0, bonus))
    return result


def shortest_correct_penalty(value, present, mask, group, *, coefficient=1e-3, threshold=0.5):
    """ShorterBetter (https://arxiv.org/abs/2504.21370): the least length of a right answer, or the mean length of all."""
    result, length = [], _length(mask)
    for n in range(len(value)):
        own = _own(present, group, n)
        right = [length[m] for m in own if value[m] > threshold]
        best = min(right) if right else _mean([length[m] for m in own])
        result.append(value[n] - coefficient * abs(length[n] - best))
    return result


def cosine_length_reward(value, mask, *, max_length, right=(1.0, 0.5), wrong=(0.0, -0.5), threshold=0.5):
    """Open-RS, rewards.py: lo + (hi - lo) / 2 (1 + cos(pi u)), where hi is the reward of no length at all."""
    result = []
    for n, length in enumerate(_length(mask)):
        high, low = right if value[n] > threshold else wrong
        result.append(low + 0.5 * (high - low) * (1.0 + math.cos(math.pi * min(length / max_length, 1.0))))
    return result


def efficient_length_reward(value, present, mask, group, *, share=0.2, strength=0.6, threshold=0.5):
    """GRPO-lambda (https://arxiv.org/abs/2505.18086): groups in the order of their accuracy, the best of them efficient."""
    length, result = _length(mask), [0.0] * len(value)
    groups = sorted({group[n] for n in range(len(value)) if present[n] > 0})
    rows = {g: [n for n in range(len(value)) if present[n] > 0 and group[n] == g] for g in groups}
    accuracy = {g: _mean([1.0 if value[n] > threshold else 0.0 for n in rows[g]]) for g in groups}
    wanted = math.ceil(share * len(groups))
    for g in groups:
        best = sum(1 for other in groups if accuracy[other] > accuracy[g]) < wanted
        right = [n for n in rows[g] if value[n] > threshold]
        mean = _mean([length[n] for n in right])
        spread = math.sqrt(_mean([(length[n] - mean) ** 2 for n in right]))
        for n in right:
            longer = (length[n] - mean) / spread if spread > 0 else 0.0
            result[n] = 1.0 - strength / (1.0 + math.exp(-longer)) if best else 1.0
    return result


def budget_length_reward(step, value, mask, *, budget=256.0, decay=0.7, interval=200, weight=0.5):
    """Train Long, Think Short (https://arxiv.org/abs/2508.08940): a triangle with its tip at the budget."""
    allowed = max(1.0, budget * decay ** (step // interval))
    result = []
    for n, length in enumerate(_length(mask)):
        if length <= allowed:
            fit = length / allowed
        elif length <= 2 * allowed:
            fit = 1.0 - (length - allowed) / allowed
        else:
            fit = 0.0
        result.append(value[n] + weight * fit)
    return result


def history_length_reward(table, value, present, mask, prompt_id, *, prompts, weight=1.0, lowest=-0.7, threshold=0.5):
    """HAPO (https://arxiv.org/abs/2505.11225): `table` is the shortest right length by prompt, before and after the step."""
    length, result, after = _length(mask), list(value), dict(table)
    for n in range(len(value)):
        if prompt_id[n] in table:
            fit = math.cos(min(math.pi / 2 * length[n] / max(table[prompt_id[n]], 1), math.pi))
            result[n] += weight * (max(lowest, fit) if value[n] > threshold else min(0.0, fit))
        if present[n] > 0 and value[n] > threshold and prompt_id[n] < prompts:
            after[prompt_id[n]] = min(after.get(prompt_id[n], math.inf), length[n])
    return result, after


def format_diversity_reward(step, value, present, group, form, *, steps_total):
    """ARM (https://arxiv.org/abs/2505.20258): r <- r (1 + (G / F - 1) (1 + cos(pi t / T)) / 2)."""
    result = []
    for n in range(len(value)):
        own = _own(present, group, n)
        alike = [m for m in own if form[m] == form[n]]
        rarity = len(own) / len(alike) if alike else 0.0
        factor = 1.0 + 0.5 * (rarity - 1.0) * (1.0 + math.cos(math.pi * min(step / steps_total, 1.0)))
        result.append(value[n] * factor if form[n] >= 0 else 0.0)
    return result


def unlikeliness_reward(value, present, logp, mask, group, *, strength=0.25):
    """https://arxiv.org/abs/2506.02355: R (1 - beta rank / G), ranks by the mean log-probability of a token, ascending."""
    mean = []
    for n in range(len(value)):
        own = [np.float32(logp[n, t]) for t in range(mask.shape[1]) if mask[n, t] > 0]
        mean.append(sum(own, np.float32(0.0)) / np.float32(max(len(own), 1)))
    result = []
    for n in range(len(value)):
        own = _own(present, group, n)
        rank = sum(1 for m in own if mean[m] < mean[n] and n in own)
        result.append(value[n] * (1.0 - strength * rank / len(own)) if n in own else value[n])
    return result


def tool_call_reward(value, present, group, calls, *, smoothing=1.0, threshold=0.5):
    """OTC (https://arxiv.org/abs/2504.14870): r_tool r_answer, with the piecewise r_tool of OTC-GRPO."""
    result = []
    for n in range(len(value)):
        m = float(calls[n])
        least = min((float(calls[k]) for k in _own(present, group, n) if value[k] > threshold), default=0.0)
        if least == 0:
            tool = 1.0 if m == 0 else math.cos(m * math.pi / (2 * m + smoothing))
        else:
            tool = math.sin((2 * m * least / (m + least)) * math.pi / (2 * least))
        result.append(value[n] * tool)
    return result


def contrasted_bonus(value, present, bonus, source, group, *, margin=1e-3):
    """GCPO of GeometryZero: the sign of the gap between the rows that were asked for it and the others."""
    result = []
    for n in range(len(bonus)):
        own = _own(present, group, n)
        asked, others = ([value[m] for m in own if (source[m] == 1) == wanted] for wanted in (True, False))
        gap = _mean(asked) - _mean(others) if asked and others else 0.0
        result.append(bonus[n] * (0.0 if abs(gap) <= margin else math.copysign(1.0, gap)))
    return result


def flaw_penalty(value, flawed, *, penalty=1.0, threshold=0.5):
    """FAPO (https://arxiv.org/abs/2510.22543): right but flawed answers lose lambda."""
    return [value[n] - (penalty if value[n] > threshold and flawed[n] > 0 else 0.0) for n in range(len(value))]


def early_call_bonus(advantage, value, present, mask, group, first_call, *, strength=-2.0, bound=0.7, threshold=0.5):
    """ASPO (https://arxiv.org/abs/2508.19201), section 3.3."""
    result, length = np.where(mask > 0, advantage, 0.0), _length(mask)
    for n in range(len(value)):
        chosen = [m for m in _own(present, group, n) if value[m] > threshold and first_call[m] >= 0]
        if n not in chosen:
            continue
        mean = _mean([length[m] for m in chosen])
        later = (first_call[n] - _mean([float(first_call[m]) for m in chosen])) / mean if mean > 0 else 0.0
        for t in range(mask.shape[1]):
            if mask[n, t] > 0:
                size = bound * abs(advantage[n, t])
                result[n, t] += min(max(strength * later, -size), size)
    return result


def _majority(answer, votes):
    """The answer with most votes, the smallest of several; None without votes."""
    counts = {}
    for n in votes:
        counts[answer[n]] = counts.get(answer[n], 0) + 1
    return min((a for a in counts if counts[a] == max(counts.values())), default=None)


def _votes(present, group, answer, n):
    return [m for m in _own(present, group, n) if answer[m] >= 0]


def majority_reward(present, group, answer):
    """TTRL (https://arxiv.org/abs/2504.16084)."""
    rows = range(len(group))
    chosen = [_majority(answer, _votes(present, group, answer, n)) for n in rows]
    return [1.0 if present[n] > 0 and answer[n] >= 0 and answer[n] == chosen[n] else 0.0 for n in rows]


def novelty_reward(present, group, answer, embedding):
    """EVOL-RL (https://arxiv.org/abs/2509.15194): bands by the vote of the majority, novelty within them."""
    rows, embedding = range(len(group)), np.asarray(embedding, np.float64)
    novelty, result = {}, [-1.0] * len(group)

    def similarity(a, b):
        return max(0.0, float(embedding[a] @ embedding[b] / np.linalg.norm(embedding[a]) / np.linalg.norm(embedding[b])))

    def peers(n):
        votes = _votes(present, group, answer, n)
        chosen = _majority(answer, votes)
        return votes, [m for m in votes if (answer[m] == chosen) == (answer[n] == chosen)], answer[n] == chosen

    voting = [n for n in rows if present[n] > 0 and answer[n] >= 0]
    for n in voting:
        votes, same, _ = peers(n)
        mean = _mean([similarity(n, m) for m in same if m != n])
        most = max((similarity(n, m) for m in votes if m != n), default=0.0)
        novelty[n] = 1.0 - (0.5 * mean + 0.5 * most)
    for n in voting:
        _, same, in_majority = peers(n)
        values = [novelty[m] for m in same]
        wide = max(values) - min(values)
        share = (novelty[n] - min(values)) / wide if wide > 1e-6 else 0.5
        share = 1.0 if len(same) == 1 else share
        result[n] = 0.5 + 0.5 * share if in_majority else -1.0 + 0.5 * share
    return result


def pseudo_label_advantage(present, group, answer, *, center=1.0, width=0.5, quorum=2, offset=1.0):
    """RESTRAIN (https://arxiv.org/abs/2510.02172): group advantages for each answer as the label, added with weights."""
    result = [0.0] * len(group)
    for n in range(len(group)):
        if present[n] <= 0:
            continue
        own, votes = _own(present, group, n), _votes(present, group, answer, n)
        counts = {a: sum(1 for m in votes if answer[m] == a) for a in {answer[m] for m in votes}}
        if max(counts.values(), default=0) < quorum:
            result[n] = -offset
            continue
        bump = {a: math.exp(-(((count / len(own)) - center) ** 2) / (2 * width**2)) for a, count in counts.items()}
        for a in counts:
            rewards = {m: 1.0 if answer[m] == a else 0.0 for m in own}
            mean = _mean(list(rewards.values()))
            deviation = math.sqrt(_mean([(r - mean) ** 2 for r in rewards.values()]))
            if deviation > 0:
                result[n] += bump[a] / sum(bump.values()) * (rewards[n] - mean) / deviation
    return result


def repetition_penalty(token_rewards, tokens, mask, *, size=3, penalty=1.0):
    """https://arxiv.org/abs/2502.03373, appendix C.2: -p (1 - different n-grams / n-grams) at the last action."""
    result = np.zeros(mask.shape) if token_rewards is None else np.array(token_rewards, np.float64)
    for n in range(len(mask)):
        places = [t for t in range(mask.shape[1]) if mask[n, t] > 0]
        runs = [tuple(int(tokens[n, t]) for t in places[i : i + size]) for i in range(len(places) - size + 1)]
        if runs:
            result[n, places[-1]] -= penalty * (1 - len(set(runs)) / len(runs))
    return result


def teacher_advantage(teacher, sampler, mask, valid, *, emphasis=0.0):
    """(1 + gamma (1 - sum_{k<t} |a_k| / sum |a|)) a_t with a = log teacher - log sampler within +-20."""
    result = np.zeros(mask.shape)
    for n in range(len(mask)):
        places = [t for t in range(mask.shape[1]) if mask[n, t] > 0 and valid[n] > 0]
        gap = {t: min(max(float(teacher[n, t]) - float(sampler[n, t]), -20.0), 20.0) for t in places}
        whole, before = sum(abs(a) for a in gap.values()), 0.0
        for t in places:
            result[n, t] = (1 + emphasis * (1 - before / whole)) * gap[t] if whole else 0.0
            before += abs(gap[t])
    return result
