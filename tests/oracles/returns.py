"""Rewards in time, by plain loops: lists of actions, lists of turns, and sums over them."""

import math

import numpy as np


def _actions(mask, n):
    return [t for t in range(mask.shape[1]) if mask[n, t] > 0]


def _turns(mask, turn, n):
    """Lists of the actions of each turn of row n."""
    found = []
    for t in _actions(mask, n):
        if found and turn[n, found[-1][-1]] == turn[n, t]:
            found[-1].append(t)
        else:
            found.append([t])
    return found


def length_adaptive_decay(mask, *, scale=0.05):
    """VAPO (https://arxiv.org/abs/2504.05118): lambda = 1 - 1 / (alpha l), where that is not negative."""
    return [max(1.0 - 1.0 / (scale * max(len(_actions(mask, n)), 1)), 0.0) for n in range(len(mask))]


def gae(token_reward, value, mask, turn, *, discount=1.0, trace_decay=0.95, value_trace_decay=None, step="token"):
    """https://arxiv.org/abs/1506.02438, equation 16: A_i = sum_l (gamma lambda)^l delta_{i+l}, over actions or over turns.

    delta_i = r_i + gamma V_{i+1} - V_i with V = 0 at the end. A decay is a number, or one for each row. Returns A and A' + V.
    """
    advantage, returns = np.zeros(mask.shape), np.zeros(mask.shape)
    for n in range(len(mask)):
        steps = [[t] for t in _actions(mask, n)] if step == "token" else _turns(mask, turn, n)
        rewards = [sum(token_reward[n, t] for t in places) for places in steps]
        values = [float(value[n, places[0]]) for places in steps] + [0.0]
        for i, places in enumerate(steps):
            advantage[n, places] = _trace(rewards, values, i, discount, _decay(trace_decay, n))
            other = trace_decay if value_trace_decay is None else value_trace_decay
            returns[n, places] = _trace(rewards, values, i, discount, _decay(other, n)) + values[i]
    return advantage, returns


def _decay(decay, n):
    return decay[n] if isinstance(decay, list) else decay


def _trace(rewards, values, i, discount, decay):
    total = 0.0
    for j in range(i, len(rewards)):
        total += (discount * decay) ** (j - i) * (rewards[j] + discount * values[j + 1] - values[j])
    return total


def minus_value(advantage, value, mask):
    """A - V, and the critic's targets A."""
    difference, returns = np.zeros(mask.shape), np.zeros(mask.shape)
    for n in range(len(mask)):
        for t in _actions(mask, n):
            difference[n, t], returns[n, t] = float(advantage[n, t]) - float(value[n, t]), float(advantage[n, t])
    return difference, returns


def _normalised(values, epsilon):
    """(x - mean) / (Bessel's deviation + epsilon), 0 for equal values; by key."""
    if not values or min(values.values()) == max(values.values()):
        return dict.fromkeys(values, 0.0)
    mean = sum(values.values()) / len(values)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in values.values()) / (len(values) - 1))
    return {key: (x - mean) / (1.0 if epsilon is None else deviation + epsilon) for key, x in values.items()}


def state_advantage(token_reward, present, mask, turn, group, state, *, discount=0.95, epsilon=1e-6):
    """GiGPO (https://arxiv.org/abs/2505.10978): discounted returns of turns, compared where the state is the same."""
    anchors = {}
    for n in range(len(mask)):
        turns = _turns(mask, turn, n) if present[n] > 0 else []
        for i, places in enumerate(turns):
            total = 0.0
            for k in range(i, len(turns)):
                total += discount ** (k - i) * sum(token_reward[n, t] for t in turns[k])
            anchors.setdefault((group[n], state[n, places[0]]), {})[n, i] = total
    result = np.zeros(mask.shape)
    for members in anchors.values():
        for (n, i), value in _normalised(members, epsilon).items():
            result[n, _turns(mask, turn, n)[i]] = value
    return result


def step_returns(step_reward, valid, mask, turn, group, *, discount=1.0, epsilon=1e-6):
    """GRPO with process supervision, https://arxiv.org/abs/2402.03300: rewards of steps normalised, summed from there on."""
    result = np.zeros(mask.shape)
    for g in set(group):
        own = [n for n in range(len(mask)) if valid[n] > 0 and group[n] == g]
        rewards = {
            (n, i): sum(float(step_reward[n, t]) for t in places) for n in own for i, places in enumerate(_turns(mask, turn, n))
        }
        rewards = _normalised(rewards, epsilon)
        for n in own:
            turns = _turns(mask, turn, n)
            for i, places in enumerate(turns):
                result[n, places] = sum(discount ** (k - i) * rewards[n, k] for k in range(i, len(turns)))
    return result


def turn_reward_to_go(token_reward, mask, turn, *, discount=1.0, lengths=False):
    """EPO (https://arxiv.org/abs/2502.12486): what a turn and those after it are rewarded with, perhaps over its length."""
    result = np.zeros(mask.shape)
    for n in range(len(mask)):
        turns = _turns(mask, turn, n)
        for i, places in enumerate(turns):
            for k in range(i, len(turns)):
                gain = sum(token_reward[n, t] for t in turns[k])
                result[n, places] += discount ** (k - i) * gain / (len(places) if lengths else 1)
    return result


def turn_returns(outcome, present, token_rewards, mask, turn, group, *, discount=1.0, epsilon=1e-6):
    """IGPO (https://arxiv.org/abs/2510.14967): gains of turns and outcomes normalised apart, then summed from each turn on."""
    result = np.zeros(mask.shape)
    for g in set(group):
        own = [n for n in range(len(mask)) if present[n] > 0 and group[n] == g]
        gains, outcomes = {}, {n: outcome[n] for n in own}
        for n in own:
            for i, places in enumerate(_turns(mask, turn, n)[:-1]):
                gains[n, i] = 0.0 if token_rewards is None else sum(float(token_rewards[n, t]) for t in places)
        gains, outcomes = _normalised(gains, epsilon), _normalised(outcomes, epsilon)
        for n in own:
            turns = _turns(mask, turn, n)
            for i, places in enumerate(turns):
                total = 0.0
                for k in range(i, len(turns)):
                    total += discount ** (k - i) * (gains[n, k] if k + 1 < len(turns) else outcomes[n])
                result[n, places] = total
    return result
