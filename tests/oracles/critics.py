"""Targets, losses and heads of critics, by plain loops in float64."""

import math

import numpy as np

from oracles.harness import groups_of, rollouts_of


def _actions(mask, n):
    return [t for t in range(mask.shape[1]) if mask[n, t] > 0]


def _discounted(rewards, i, discount):
    return sum(discount ** (j - i) * rewards[j] for j in range(i, len(rewards)))


def td_targets(token_reward, value, mask, *, steps, discount=1.0):
    """n rewards and the value of the state behind them; all rewards where the end comes first. Infinite n: the return."""
    found = np.zeros(mask.shape)
    for n in range(len(mask)):
        places = _actions(mask, n)
        rewards = [float(token_reward[n, t]) for t in places]
        for i, t in enumerate(places):
            end = min(i + steps, len(places)) if steps else len(places)
            total = sum(discount ** (j - i) * rewards[j] for j in range(i, end))
            if steps and i + steps < len(places):
                total += discount**steps * float(value[n, places[i + steps]])
            found[n, t] = total
    return found


def monte_carlo_targets(token_reward, mask, *, discount=1.0):
    """The discounted sum of all rewards from the action on."""
    return td_targets(token_reward, None, mask, steps=None, discount=discount)


def distribution_targets(token_reward, outputs, mask, *, discount=1.0):
    """Quantiles of r + gamma Z': one step of each quantile by itself."""
    each = [td_targets(token_reward, outputs[..., j], mask, steps=1, discount=discount) for j in range(outputs.shape[-1])]
    return np.stack(each, axis=-1)


def advantage_weight(advantage, mask, valid, *, temperature, largest):
    """AWR (https://arxiv.org/abs/1910.00177): exp(A / beta), at most `largest`."""
    found = np.zeros(mask.shape)
    for n in range(len(mask)):
        for t in _actions(mask, n):
            power = float(advantage[n, t]) / temperature
            found[n, t] = (largest if power > math.log(largest) else math.exp(power)) if valid[n] > 0 else 0.0
    return found


def blended_targets(token_reward, value, mask, taken, *, share, by, discount=1.0):
    """HUBL (https://arxiv.org/abs/2306.00321): r + gamma ((1 - l) V + l G) of the next state, l by the return of the row."""
    found = np.zeros(mask.shape)
    whole = [sum(float(token_reward[n, t]) for t in range(mask.shape[1])) for n in range(len(mask))]
    counted = [whole[n] for n in range(len(mask)) if taken[n] > 0]
    for n in range(len(mask)):
        places = _actions(mask, n)
        rewards = [float(token_reward[n, t]) for t in places]
        part = 1.0
        if by == "rank":
            part = sum(other <= whole[n] for other in counted) / len(counted) if counted else 0.0
        if by == "sigmoid":
            deviation = math.sqrt(sum((x - sum(counted) / len(counted)) ** 2 for x in counted) / len(counted)) if counted else 0
            part = 1 / (1 + math.exp(-(whole[n] - sum(counted) / len(counted)) / deviation)) if deviation > 0 else 0.5
        for i, t in enumerate(places):
            found[n, t] = rewards[i]
            if i + 1 < len(places):
                later = (1 - share * part) * float(value[n, places[i + 1]]) + share * part * _discounted(
                    rewards, i + 1, discount
                )
                found[n, t] += discount * later
    return found


def v_trace(token_reward, value, log_ratio, mask, *, discount=1.0, trace_decay=1.0, clip_rho=1.0, clip_c=1.0):
    """IMPALA (https://arxiv.org/abs/1802.01561), equation 1: the sum over later places of products of traces times errors."""
    targets, advantage = np.zeros(mask.shape), np.zeros(mask.shape)
    for n in range(len(mask)):
        places = _actions(mask, n)
        weights = [math.exp(min(max(float(log_ratio[n, t]), -20.0), 20.0)) for t in places]
        rewards = [float(token_reward[n, t]) for t in places]
        values = [float(value[n, t]) for t in places] + [0.0]
        errors = [min(clip_rho, weights[i]) * (rewards[i] + discount * values[i + 1] - values[i]) for i in range(len(places))]
        found = []
        for i in range(len(places)):
            total, trace = values[i], 1.0
            for j in range(i, len(places)):
                total += trace * errors[j]
                trace *= discount * trace_decay * min(clip_c, weights[j])
            found.append(total)
        for i, t in enumerate(places):
            following = found[i + 1] if i + 1 < len(places) else 0.0
            targets[n, t] = found[i]
            advantage[n, t] = min(clip_rho, weights[i]) * (rewards[i] + discount * following - values[i])
    return targets, advantage


def stock_advantage(token_reward, outputs, mask, *, share, trace_decay):
    """Traces of the gains of U = mean min(stock + quantile, 0), the stock beginning at minus the `share`-quantile."""
    found = np.zeros(mask.shape)
    for n in range(len(mask)):
        places = _actions(mask, n)
        if not places:
            continue
        stock = -float(np.quantile(outputs[n, places[0]].astype(np.float64), share))
        utilities = []
        for t in places:
            utilities.append(float(np.mean([min(stock + float(q), 0.0) for q in outputs[n, t]])))
            stock += float(token_reward[n, t])
        utilities.append(min(stock, 0.0))
        for i, t in enumerate(places):
            found[n, t] = sum(trace_decay ** (j - i) * (utilities[j + 1] - utilities[j]) for j in range(i, len(places)))
    return found


def greedy_targets(token_reward, value, candidate, best, mask, *, alpha, discount):
    """B-Coder (https://arxiv.org/abs/2310.03173): r + gamma (V + alpha (log pi(b) - max log pi)) of the next state."""
    found = np.zeros(mask.shape)
    for n in range(len(mask)):
        places = _actions(mask, n)
        for i, t in enumerate(places):
            found[n, t] = float(token_reward[n, t])
            if i + 1 < len(places):
                later = places[i + 1]
                lead = float(candidate[n, later]) - float(best[n, later])
                found[n, t] += discount * (float(value[n, later]) + alpha * min(max(lead, -20.0), 20.0))
    return found


def soft_reward(logp, mask, valid, log_alpha, *, target, rate):
    """Bonuses -alpha log pi, and log alpha + rate (target - H)."""
    bonus, surprises = np.zeros(mask.shape), []
    for n in range(len(mask)):
        for t in _actions(mask, n):
            surprise = min(-float(logp[n, t]), 20.0)
            bonus[n, t] = math.exp(log_alpha) * surprise
            surprises += [surprise] if valid[n] > 0 else []
    moved = rate * (target - sum(surprises) / len(surprises)) if surprises and target is not None else 0.0
    return bonus, log_alpha + moved


# ---- losses: functions of `live` and `case`, for `harness.check`


def gaussian_value_loss(live, case, *, coefficient=0.5, least=0.1):
    """-log N(R; q, sigma^2) of each pair, the mean over pairs."""
    total = np.longdouble(0)
    for b, t in _places(case):
        pairs = live.value_outputs[b, t].reshape(-1, 2)
        for mean, raw in pairs:
            sigma = np.log1p(np.exp(raw)) + least
            error = case.returns[b, t] - mean
            total += case.weight[b, t] * (np.log(sigma) + error**2 / (2 * sigma**2) + np.log(2 * np.pi) / 2) / len(pairs)
    return coefficient * total


def bounded_gaussian_gradient(case, outputs, *, bound, scale, drawn, coefficient=0.5, least=0.1):
    """DSAC-T, https://arxiv.org/abs/2310.05858, equations 20 and 21: by the mean from R, by sigma from a bounded draw."""
    found = np.zeros(outputs.shape)
    for b, t in _places(case):
        count = outputs.shape[-1] // 2
        for i in range(count):
            mean, raw = float(outputs[b, t, 2 * i]), float(outputs[b, t, 2 * i + 1])
            sigma = math.log1p(math.exp(raw)) + least
            kept = min(max(float(drawn[b, t]), mean - bound), mean + bound)
            factor = coefficient * float(case.weight[b, t]) * scale / count
            found[b, t, 2 * i] = -factor * (float(case.returns[b, t]) - mean) / sigma**2
            by_sigma = -factor * ((kept - mean) ** 2 - sigma**2) / sigma**3
            found[b, t, 2 * i + 1] = by_sigma / (1 + math.exp(-raw))
    return found


def ensemble_value_loss(live, case, *, coefficient=0.5, huber=None):
    """The mean over members of (V_i - R)^2, or of Huber's loss."""
    total = np.longdouble(0)
    for b, t in _places(case):
        for value in live.value_outputs[b, t]:
            error = abs(value - case.returns[b, t])
            if huber is None:
                size = error**2
            else:
                size = error**2 / 2 if error <= huber else huber * (error - huber / 2)
            total += case.weight[b, t] * size / live.value_outputs.shape[-1]
    return coefficient * total


def expectile_value_loss(live, case, *, coefficient=0.5, level=0.7):
    """IQL, https://arxiv.org/abs/2110.06169, equation 5."""
    total = np.longdouble(0)
    for b, t in _places(case):
        error = case.returns[b, t] - live.value[b, t]
        total += case.weight[b, t] * (level if error >= 0 else 1 - level) * error**2
    return coefficient * total


def dual_value_loss(live, case, *, coefficient=0.5, share=0.7, divergence="chi2", bound=5.0):
    """f-DVL, https://arxiv.org/abs/2302.08560; the gumbel loss goes on along its tangent beyond the bound."""
    total = np.longdouble(0)
    for b, t in _places(case):
        value = live.value[b, t]
        z = case.returns[b, t] - value
        if divergence == "gumbel":
            inner = min(z, np.longdouble(bound))
            total += case.weight[b, t] * (np.exp(inner) + (z - inner) * np.exp(inner) - z - 1)
            continue
        f = max(z, np.longdouble(0))
        if divergence == "chi2":
            f = z**2 / 4 + z if z >= -2 else np.longdouble(-1)
        total += case.weight[b, t] * ((1 - share) * value + share * f)
    return coefficient * total


def dueling_value_loss(live, case, *, alpha=0.1, coefficient=1.0):
    """B-Coder: (V + alpha (log pi - max log pi) - R)^2; a token of probability 0 has a log-probability of 0."""
    total = np.longdouble(0)
    for b, t in _places(case):
        logp = live.logp[b, t] if np.isfinite(live.logp[b, t]) else np.longdouble(0)
        value = live.value[b, t] + alpha * (logp - case.max_logp[b, t])
        total += case.weight[b, t] * (value - case.returns[b, t]) ** 2
    return coefficient * total


def quantile(live, case, samples, *, coefficient=0.5, huber=1.0):
    """QR-DQN, https://arxiv.org/abs/1710.10044, equation 10, over several samples of the return."""
    total, count = np.longdouble(0), live.value_outputs.shape[-1]
    for b, t in _places(case):
        for i in range(count):
            for sample in samples[b, t]:
                error = sample - live.value_outputs[b, t, i]
                size = error**2 / 2 if abs(error) <= huber else huber * (abs(error) - huber / 2)
                tilt = abs((i + 0.5) / count - (1 if error < 0 else 0))
                total += case.weight[b, t] * tilt * size / (huber * count * samples.shape[-1])
    return coefficient * total


def two_hot(live, case, *, low, high, coefficient=0.5):
    """Cross-entropy with the return shared out between its two neighbours, https://arxiv.org/abs/1707.06887, equation 7."""
    total, count = np.longdouble(0), live.value_outputs.shape[-1]
    for b, t in _places(case):
        place = (min(max(case.returns[b, t], low), high) - low) / (high - low) * (count - 1)
        below = min(int(np.floor(place)), count - 2)
        logits = live.value_outputs[b, t]
        log_share = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        total -= case.weight[b, t] * ((below + 1 - place) * log_share[below] + (place - below) * log_share[below + 1])
    return coefficient * total


def inverse_preference(live, case, *, beta, discount, regularisation):
    """https://arxiv.org/abs/2305.15363: rewards of tokens, sums of rollouts, pairs of groups."""
    rollouts, rewards = rollouts_of(case), {}
    for number, places in rollouts.items():
        found = []
        for i, (b, t) in enumerate(places):
            logp = live.logp[b, t] if np.isfinite(live.logp[b, t]) else np.longdouble(0)
            following = live.value[places[i + 1]] if i + 1 < len(places) else np.longdouble(0)
            found.append(beta * logp + live.value[b, t] - discount * following)
        rewards[number] = found
    total = np.longdouble(0)
    for members in groups_of(case).values():
        chosen = [n for n in members if case.preference[rollouts[n][0]] > 0]
        rejected = [n for n in members if case.preference[rollouts[n][0]] < 0]
        if len(chosen) != 1 or len(rejected) != 1:
            continue
        weight = sum(case.weight[place] for n in (chosen[0], rejected[0]) for place in rollouts[n])
        gap = sum(rewards[chosen[0]]) - sum(rewards[rejected[0]])
        sizes = [sum(r**2 for r in rewards[n]) / len(rewards[n]) for n in (chosen[0], rejected[0])]
        total += weight * (np.log1p(np.exp(-gap)) + regularisation * sum(sizes) / 2)
    return total


def _places(case):
    return [(b, t) for b, t in np.ndindex(*case.mask.shape) if case.mask[b, t] > 0]


# ---- heads


def distorted_mean(values, shares, distortion):
    """sum_i z_i (g(F_i) - g(F_{i-1})), https://arxiv.org/abs/1806.06923."""
    total, level, before = 0.0, 0.0, 0.0
    for value, share in sorted(zip(values, shares, strict=True)):
        level += share
        now = distortion(min(level, 1.0)) if level < 1 - 1e-9 else 1.0
        total += value * (now - before)
        before = now
    return total
