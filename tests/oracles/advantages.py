"""From rewards to advantages and weights, by plain loops in float64.

Each function takes and gives NumPy arrays: N rows, T tokens, K reward components. `mask[n, t] > 0` marks an action.
"""

import math

import numpy as np


def row_scores(rewards, valid, mask, token_rewards=None, reward_weights=None):
    """score_n = sum_k w_k r_nk + sum_t m_nt rho_nt; missing (NaN) components count 0, rows without any are absent."""
    rows, components = rewards.shape
    score, present = np.zeros(rows), np.zeros(rows)
    for n in range(rows):
        seen = 0
        for k in range(components):
            if not math.isnan(rewards[n, k]):
                seen += 1
                score[n] += (1.0 if reward_weights is None else reward_weights[k]) * float(rewards[n, k])
        if token_rewards is not None:
            for t in range(mask.shape[1]):
                if mask[n, t] > 0:
                    score[n] += float(token_rewards[n, t])
        present[n] = 1.0 if seen > 0 and valid[n] > 0 else 0.0
    return score, present


def rewards_per_token(rewards, valid, mask, token_rewards=None, reward_weights=None):
    """r_nt = rho_nt at each action, and the weighted sum of components on top at the last action."""
    score, present = row_scores(rewards, valid, mask, None, reward_weights)
    result = np.zeros(mask.shape)
    for n in range(len(mask)):
        actions = [t for t in range(mask.shape[1]) if mask[n, t] > 0]
        for t in actions:
            result[n, t] = 0.0 if token_rewards is None else float(token_rewards[n, t])
        if actions:
            result[n, actions[-1]] += score[n]
    return result, present


def drop_uniform_groups(score, present, valid, group):
    """DAPO (https://arxiv.org/abs/2503.14476), equation 11: only groups whose scores differ stay."""
    result = np.zeros(len(valid))
    for n in range(len(valid)):
        own = [score[m] for m in range(len(score)) if present[m] > 0 and group[m] == group[n]]
        result[n] = valid[n] if present[n] > 0 and min(own) != max(own) else 0.0
    return result


def reward_to_go(token_reward, mask, *, discount=1.0):
    """G_i = sum_{j >= i} discount^(j - i) r_j, where i and j number the actions of a row."""
    result = np.zeros(mask.shape)
    for n in range(len(mask)):
        actions = [t for t in range(mask.shape[1]) if mask[n, t] > 0]
        for i in range(len(actions)):
            for j in range(i, len(actions)):
                result[n, actions[i]] += discount ** (j - i) * token_reward[n, actions[j]]
    return result


def whiten(advantage, valid, mask, *, over="tokens", shift_mean=True, degrees_of_freedom=1, epsilon=1e-8, placement="inside"):
    """(A - mean) / sqrt(variance + epsilon) over all actions of valid rows; the mean comes back unless `shift_mean`.

    Over "rows", the mean is that of the means of rows, and the variance that of the mean squares of rows.
    """
    rows = [[(n, t) for t in range(mask.shape[1]) if mask[n, t] > 0 and valid[n] > 0] for n in range(len(mask))]
    rows = [row for row in rows if row] if over == "rows" else [[place] for row in rows for place in row]
    values = [[float(advantage[place]) for place in row] for row in rows]
    mean = sum(sum(row) / len(row) for row in values) / len(rows) if rows else 0.0
    squares = sum(sum((value - mean) ** 2 for value in row) / len(row) for row in values)
    variance = squares / (len(rows) - degrees_of_freedom) if len(rows) > degrees_of_freedom else 0.0
    differ = len({value for row in values for value in row}) > 1
    variance = variance if differ else 0.0
    divisor = {
        "inside": math.sqrt(variance + epsilon),
        "outside": math.sqrt(variance) + epsilon,
        "floor": max(math.sqrt(variance), epsilon),
    }[placement]
    result = np.zeros(mask.shape)
    for row in rows:
        for place in row:
            difference = float(advantage[place]) - mean if differ else 0.0
            result[place] = difference / divisor + (0.0 if shift_mean else mean)
    return result


def kl_estimate(logp, other, kind):
    """http://joschu.net/blog/kl-approx.html with r = other / policy: k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r."""
    log_r = other - logp
    return {"k1": -log_r, "k2": log_r**2 / 2.0, "k3": math.exp(log_r) - 1.0 - log_r}[kind]


def kl_in_reward(token_rewards, behavior_logp, reference_logp, mask, *, coefficient=0.05, kind="k1", bound=None):
    """r_t - beta KL_t at each action, https://arxiv.org/abs/1909.08593, equation 2 token by token."""
    result = np.zeros(mask.shape)
    for n in range(len(mask)):
        for t in range(mask.shape[1]):
            if mask[n, t] > 0:
                given = 0.0 if token_rewards is None else float(token_rewards[n, t])
                estimate = kl_estimate(float(behavior_logp[n, t]), float(reference_logp[n, t]), kind)
                estimate = estimate if bound is None else min(max(estimate, -bound), bound)
                result[n, t] = given - coefficient * estimate
    return result


def kl_in_advantage(advantage, valid, behavior_logp, reference_logp, mask, **options):
    """A_t - beta sum over s >= t of KL_s: the penalty is a reward behind the baseline."""
    penalty = kl_in_reward(None, behavior_logp, reference_logp, mask, **options)
    result = np.zeros(mask.shape)
    for n in range(len(mask)):
        for t in range(mask.shape[1]):
            if mask[n, t] > 0 and valid[n] > 0:
                later = sum(penalty[n, u] for u in range(t, mask.shape[1]) if mask[n, u] > 0)
                result[n, t] = float(advantage[n, t]) + later
    return result


def overlong_penalty(token_rewards, mask, *, max_length, buffer, penalty=1.0):
    """DAPO (https://arxiv.org/abs/2503.14476), equation 13, at the last action of each row."""
    result = np.zeros(mask.shape)
    for n in range(len(mask)):
        actions = [t for t in range(mask.shape[1]) if mask[n, t] > 0]
        for t in actions:
            result[n, t] = 0.0 if token_rewards is None else float(token_rewards[n, t])
        length = len(actions)
        if length <= max_length - buffer:
            change = 0.0
        elif length <= max_length:
            change = ((max_length - buffer) - length) / buffer
        else:
            change = -1.0
        if actions:
            result[n, actions[-1]] += penalty * change
    return result


def token_mean(valid, mask):
    """1 / sum_n |o_n| for each action: DAPO, equation 8."""
    total = sum(1 for n in range(len(mask)) for t in range(mask.shape[1]) if mask[n, t] > 0 and valid[n] > 0)
    return _shares(valid, mask, lambda actions, rows: 1.0 / total)


def sequence_mean(valid, mask):
    """1 / G 1 / |o_n|: GRPO, equation 3."""
    return _shares(valid, mask, lambda actions, rows: 1.0 / rows / actions)


def sequence_mean_token_sum(valid, mask):
    """1 / G: RLOO, equation 9."""
    return _shares(valid, mask, lambda actions, rows: 1.0 / rows)


def constant(valid, mask, *, length):
    """1 / (G L) with a fixed L: Dr. GRPO, appendix."""
    return _shares(valid, mask, lambda actions, rows: 1.0 / (rows * length))


def _shares(valid, mask, share):
    rows = sum(1 for n in range(len(mask)) if valid[n] > 0)
    weight = np.zeros(mask.shape)
    for n in range(len(mask)):
        actions = [t for t in range(mask.shape[1]) if mask[n, t] > 0]
        for t in actions:
            if valid[n] > 0:
                weight[n, t] = share(len(actions), rows)
    return weight


def token_group_advantage(score, present, mask, group, *, limit=5.0, epsilon=1e-6):
    """HAPO: statistics over the tokens of the group, or those of GRPO with Bessel's deviation where a value is too large."""
    result = [0.0] * len(score)
    for number in set(np.asarray(group).tolist()):
        rows = [n for n in range(len(score)) if group[n] == number and present[n] > 0]
        tokens = [float(score[n]) for n in rows for t in range(mask.shape[1]) if mask[n, t] > 0]
        if not tokens:
            continue
        mean = sum(tokens) / len(tokens)
        spread = (sum((x - mean) ** 2 for x in tokens) / len(tokens)) ** 0.5 + epsilon
        lengths = {n: sum(1 for t in range(mask.shape[1]) if mask[n, t] > 0) for n in rows}
        values = {n: (float(score[n]) - mean) / spread for n in rows}
        if any(abs(values[n]) >= limit for n in rows if lengths[n]):
            mean = sum(float(score[n]) for n in rows) / len(rows)
            squares = sum((float(score[n]) - mean) ** 2 for n in rows)
            spread = (squares / (len(rows) - 1) if len(rows) > 1 else 0.0) ** 0.5 + epsilon
            values = {n: (float(score[n]) - mean) / spread for n in rows}
        for n in rows:
            result[n] = values[n] if len({float(score[m]) for m in rows if lengths[m]}) > 1 else 0.0
    return result


def among(source, number, inside, outside):
    """Rows of one source by the first array, all others by the second."""
    return np.array([inside[n] if source[n] == number else outside[n] for n in range(len(source))])
