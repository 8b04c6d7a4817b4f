"""Ratios, trust regions, regressions and factors of policy terms, by plain loops in extended precision.

A ratio is `ratio(live, case, **options) -> x`, an array of log-ratios at the actions. A trust region is
`trust(x, fixed, live, case, **options) -> {place: loss}`, where `fixed` is the value of `x` without a gradient. A factor is
`factor(case, **options) -> {place: factor}`.
"""

import numpy as np

from oracles.harness import actions, groups_of, log_ratio, rollouts_of

BOUND = np.longdouble(20.0)


def surrogate(live, case, *, ratio, trust, factors=()):
    """sum_t w_t f_t trust(x_t)."""
    x, fixed = (zeros(case), zeros(case)) if ratio is None else (ratio(live, case), ratio(case, case))
    losses, scales = trust(x, fixed, live, case), [factor(case) for factor in factors]
    total = np.longdouble(0.0)
    for place in actions(case):
        if case.weight[place] == 0:
            continue
        value = losses[place]
        for scale in scales:
            value = value * scale[place]
        total += case.weight[place] * value
    return total


def zeros(case):
    return np.zeros(case.mask.shape, np.longdouble)


def finite(logp):
    """A token of probability 0 carries nothing."""
    return np.longdouble(0.0) if np.isinf(logp) else logp


def against_logp(case, against):
    return getattr(case, f"{against}_logp")


def kept_within(value, bound=BOUND):
    return min(max(value, -bound), bound)


def counting(case):
    """Actions with a share in the loss."""
    return [place for place in actions(case) if case.weight[place] != 0]


def pieces(case, key):
    """Places of the actions that share their rollout and `key(place)`."""
    found = {}
    for number, places in rollouts_of(case).items():
        for place in places:
            found.setdefault((number, key(place)), []).append(place)
    return found.values()


# Ratios.


def tokens(live, case, against="behavior"):
    x, other = zeros(case), against_logp(case, against)
    for place in actions(case):
        x[place] = log_ratio(live.logp[place], other[place])
    return x


def averaged(x, case, groups):
    result = zeros(case)
    for places in groups:
        for place in places:
            result[place] = sum(x[p] for p in places) / len(places)
    return result


def capped(x, case, highest):
    for place in actions(case) if highest is not None else []:
        x[place] = min(x[place], np.longdouble(highest))
    return x


def sequence_mean_ratio(live, case, *, against="behavior", highest=None):
    """log s = 1 / |y| sum_t x_t."""
    return capped(averaged(tokens(live, case, against), case, rollouts_of(case).values()), case, highest)


def sequence_total_ratio(live, case, *, against="behavior"):
    """log pi(y) - log mu(y), within +-20."""
    x, result = tokens(live, case, against), zeros(case)
    for places in rollouts_of(case).values():
        for place in places:
            result[place] = kept_within(sum(x[p] for p in places))
    return result


def arithmetic_sequence_ratio(live, case, *, against="behavior"):
    """GRPO-S, https://arxiv.org/abs/2508.04349: log of 1 / |y| sum_t pi / mu."""
    x, result = tokens(live, case, against), zeros(case)
    for places in rollouts_of(case).values():
        for place in places:
            result[place] = np.log(sum(np.exp(x[p]) for p in places) / len(places))
    return result


def corrected_total_ratio(live, case, **weight):
    """sum_t (log pi - log proximal) + sum_t log w_t, w_t from 1e-8, without gradient; within +-20."""
    x, w, result = tokens(live, case, "proximal"), importance_weight(case, **weight), zeros(case)
    for places in rollouts_of(case).values():
        total = sum(x[p] + np.log(max(w[p], np.longdouble(1e-8))) for p in places)
        for place in places:
            result[place] = kept_within(total)
    return result


def policy_gap(case, *, against):
    """Perplexities, chi-squared divergences and the effective sample size, of rollouts and actions that count."""
    x, other, places = tokens(case, case, against), against_logp(case, against), counting(case)
    rollouts = [[p for p in own if p in places] for own in rollouts_of(case).values()]
    rollouts = [own for own in rollouts if own]
    if not places:
        return dict.fromkeys(("perplexity", "chi_squared", "chi_squared_sequence", "effective_sample_size"), 0.0)

    def mean(values):
        return sum(values) / len(values)

    ours = [mean([finite(case.logp[p]) for p in own]) for own in rollouts]
    theirs = [mean([finite(other[p]) for p in own]) for own in rollouts]
    square = mean([np.exp(2 * x[p]) for p in places])
    return {
        "perplexity": mean([np.exp(min(-value, BOUND)) for value in ours]),
        "perplexity_ratio": mean([np.exp(kept_within(b - a)) for a, b in zip(ours, theirs, strict=True)]),
        "chi_squared": square - 1,
        "chi_squared_sequence": mean([np.exp(2 * kept_within(sum(x[p] for p in own))) for own in rollouts]) - 1,
        "effective_sample_size": mean([np.exp(x[p]) for p in places]) ** 2 / square,
    }


def sequence_token_ratio(live, case, *, against="behavior", highest=None):
    """sg(log s) + log pi_t - sg(log pi_t), GSPO-token, https://arxiv.org/abs/2507.18071, equation 14."""
    s = sequence_mean_ratio(case, case, against=against)
    return capped(s + tokens(live, case, against) - tokens(case, case, against), case, highest)


def geometric_ratio(live, case, *, low=0.4, high=0.4, against="behavior"):
    """GMPO: log-ratios are clipped on the side that the advantage points to, then averaged."""
    x = tokens(live, case, against)
    for place in actions(case):
        x[place] = min(x[place], np.longdouble(high)) if case.advantage[place] > 0 else max(x[place], np.longdouble(-low))
    return averaged(x, case, rollouts_of(case).values())


def prefix_ratio(live, case, *, against="behavior"):
    """MinPRO: log rho_t + min_{i<t} log rho_i."""
    x, result = tokens(live, case, against), zeros(case)
    for places in rollouts_of(case).values():
        for number, place in enumerate(places):
            before = [x[p] for p in places[:number]]
            result[place] = kept_within(x[place] + min(before)) if before else x[place]
    return result


def turn_ratio(live, case, *, against="behavior", total=False):
    """Mean log-ratio of each turn, or its sum, within +-20."""
    x, turns, result = tokens(live, case, against), pieces(case, lambda place: int(case.turn[place])), zeros(case)
    if not total:
        return averaged(x, case, turns)
    for places in turns:
        for place in places:
            result[place] = kept_within(sum(x[p] for p in places))
    return result


def own_ratio(live, case):
    """log pi - sg(log pi): 0, with the slope of log pi."""
    x = zeros(case)
    for place in actions(case):
        x[place] = finite(live.logp[place]) - finite(case.logp[place])
    return x


def likelihood(live, case):
    """log pi(token)."""
    x = zeros(case)
    for place in actions(case):
        x[place] = max(live.logp[place], -BOUND)
    return x


def mixture_ratio(live, case, *, against="proximal", other=None, share=0.25):
    """log pi - log((1 - a) q + a m)."""
    x = zeros(case)
    for place in actions(case):
        q = np.exp(against_logp(case, against)[place])
        m = np.exp(against_logp(case, other)[place]) if other else np.longdouble(1.0)
        with np.errstate(divide="ignore"):
            x[place] = log_ratio(live.logp[place], np.log((1 - np.longdouble(share)) * q + np.longdouble(share) * m))
    return x


# Trust regions.


def clipped(r, a, lower, upper, dual=None):
    value = min(r * a, min(max(r, lower), upper) * a)
    if dual is not None and a < 0:
        value = max(value, dual * a)
    return -value


def each(function):
    """A trust region that looks at one token at a time: `function(x, fixed, logp, a, place, case, **options)`."""

    def trust(x, fixed, live, case, **options):
        return {p: function(x[p], fixed[p], finite(live.logp[p]), case.advantage[p], p, case, **options) for p in actions(case)}

    return trust


@each
def plain_clip(x, fixed, logp, a, place, case, *, low=0.2, high=0.2, dual=None):
    return clipped(np.exp(x), a, 1 - low, 1 + high, dual)


@each
def two_sided_clip(x, fixed, logp, a, place, case, *, low=0.2, high=0.2, delta):
    """-min(min(r, delta) A, clip(r) A), INTELLECT-2, https://arxiv.org/abs/2505.07291; TRL's `delta`."""
    r = np.exp(x)
    return -min(min(r, np.longdouble(delta)) * a, min(max(r, 1 - low), 1 + high) * a)


@each
def plain_ratio(x, fixed, logp, a, place, case):
    return -np.exp(x) * a


@each
def plain_score(x, fixed, logp, a, place, case):
    return -a * logp


@each
def bounded_weight(x, fixed, logp, a, place, case, *, low=None, high):
    weight = min(np.exp(fixed), np.longdouble(1 + high))
    return -(weight if low is None else max(weight, np.longdouble(1 - low))) * a * logp


@each
def flipped(x, fixed, logp, a, place, case, *, low=0.2, high=0.2, cap=3.0):
    """ASPO, https://arxiv.org/abs/2510.06062."""
    r, held = np.exp(x), np.exp(fixed)
    if a > 0:
        c, c_held = min(r, np.longdouble(1 + high)), min(held, np.longdouble(1 + high))
        return -a * cap * logp if 1 / c_held > cap else -a * (c / c_held) / c_held
    return -a * cap * logp if held > cap else -a * max(r, np.longdouble(1 - low))


@each
def sapo(x, fixed, logp, a, place, case, *, positive=1.0, negative=1.05):
    tau = np.longdouble(positive if a > 0 else negative)
    return -a * 4 / tau / (1 + np.exp(-tau * (np.exp(x) - 1)))


@each
def vespo(x, fixed, logp, a, place, case, *, positive=(2.0, 3.0), negative=(3.0, 2.0)):
    k, rate = positive if a >= 0 else negative
    return -np.exp(rate + k * fixed - rate * np.exp(fixed)) * a * logp


@each
def gradient_preserving_clip(
    x, fixed, logp, a, place, case, *, low=0.2, high=0.2, low_gradient=1.0, high_gradient=1.0, dual=None
):
    """CE-GPPO, https://arxiv.org/abs/2509.20712."""
    r, held = np.exp(x), np.exp(fixed)
    if held < 1 - low and a < 0:
        loss = -low_gradient * (1 - low) / held * r * a
    elif held > 1 + high and a > 0:
        loss = -high_gradient * (1 + high) / held * r * a
    else:
        loss = -r * a
    return min(loss, -dual * a) if dual is not None and a < 0 else loss


@each
def shaped(x, fixed, logp, a, place, case, *, gamma=0.1):
    return -a * np.exp(x) / (np.exp(x) + gamma)


@each
def probability_clip(x, fixed, logp, a, place, case, *, low=0.16, high=0.2, dual=10.0, against="behavior"):
    """DCPO: the bounds are the roots of |(r - 1) r| q = eps."""
    q = np.exp(max(against_logp(case, against)[place], np.longdouble(-60.0)))
    lower = (1 + np.sqrt(max(1 - 4 * low / q, np.longdouble(0)))) / 2
    upper = min((1 + np.sqrt(1 + 4 * high / q)) / 2, np.longdouble(max(dual, 10.0)))
    return clipped(np.exp(x), a, lower, upper, dual)


@each
def proximal_clip(x, fixed, logp, a, place, case, *, low=0.2, high=0.2):
    centre = np.exp(log_ratio(case.proximal_logp[place], case.behavior_logp[place]))
    return clipped(np.exp(x), a, centre - low, centre + high)


def balanced_clip(x, fixed, live, case, *, lower=(0.6, 0.9), upper=(1.2, 3.0), step=0.05, positive_share=0.5, dual=3.0):
    """BAPO: first c_low rises to its end, then c_high, until the positive share is reached."""

    def shares(low, high):
        positive = negative = np.longdouble(0.0)
        for p in counting(case):
            r, a = np.exp(fixed[p]), case.advantage[p]
            if a >= 0:
                positive += case.weight[p] * min(r, np.longdouble(high)) * a
            else:
                negative += case.weight[p] * max(r, np.longdouble(low)) * -a
        return positive, negative

    low, high = lower[0], upper[0]
    while True:
        positive, negative = shares(low, high)
        if positive >= positive_share * (positive + negative):
            break
        if low < lower[1] - 1e-9:
            low = min(low + step, lower[1])
        elif high < upper[1] - 1e-9:
            high = min(high + step, upper[1])
        else:
            break
    return {p: clipped(np.exp(x[p]), case.advantage[p], low, high, dual) for p in actions(case)}


def quantile(values, level):
    """Linear between neighbours."""
    ordered = sorted(values)
    if not ordered:
        return np.longdouble(0.0)
    place = level * (len(ordered) - 1)
    below = int(np.floor(place))
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def relative_entropies(case, level):
    logs = {p: np.log(max(case.proximal_entropy[p], np.longdouble(2e-9))) for p in counting(case)}
    middle = quantile(logs.values(), level)
    distance = {p: value - middle for p, value in logs.items()}
    top, bottom = max(distance.values(), default=0.0), min(distance.values(), default=0.0)
    scaled = {p: d / top if d > 0 else (d / -bottom if bottom < 0 else 0.0) for p, d in distance.items()}
    return {p: scaled.get(p, np.longdouble(0.0)) for p in actions(case)}


def entropy_clip(x, fixed, live, case, *, low=0.2, high=0.2, widening=1.0, level=0.8, dual=10.0):
    """HAPO: eps_low (1 - alpha h) where h <= 0, eps_high (1 + alpha h) where h > 0."""
    losses = {}
    for p, h in relative_entropies(case, level).items():
        below = low * (1 - widening * h) if h <= 0 else low
        above = high * (1 + widening * h) if h > 0 else high
        losses[p] = clipped(np.exp(x[p]), case.advantage[p], 1 - below, 1 + above, dual)
    return losses


# Regressions.


@each
def dro(x, fixed, logp, a, place, case, *, beta):
    return -(a * logp - beta / 2 * x * x)


@each
def nft(x, fixed, logp, a, place, case, *, negative=1.0, weighting="std", floor=1.0, accuracy_bounds=(0.02, 0.98)):
    q = min(max(case.accuracy[place], np.longdouble(accuracy_bounds[0])), np.longdouble(accuracy_bounds[1]))
    weight = {"std": np.sqrt((1 - q) / q), "failure": 1 - q, "none": 1}[weighting]
    capped, held = min(x, np.longdouble(10)), min(fixed, np.longdouble(10))
    if case.correct[place] > 0:
        return -weight * capped
    implicit, constant = ((1 - q * np.exp(value)) / (1 - q) for value in (capped, held))
    return -weight * negative * np.log(implicit + max(constant, np.longdouble(floor)) - constant)


@each
def rover(x, fixed, logp, a, place, case, *, rho=1.0):
    b, t = place
    target = a
    if t + 1 < case.mask.shape[1] and case.mask[b, t + 1] > 0 and case.segment[b, t + 1] == case.segment[b, t]:
        target = target + rho * (case.mean_logp[b, t + 1] - case.proximal_mean_logp[b, t + 1])
    return (rho * x - target) ** 2


@each
def rpg(
    x, fixed, logp, a, place, case, *, beta=1e-4, direction="reverse", normalised=False, style="reinforce",
    low=0.2, high=0.28, dual=10.0,
):  # fmt: skip
    """Tables 1 and 2 of https://arxiv.org/abs/2505.17508: losses and weights c of -sg(c) log pi, c = w A_hat."""
    w, held = np.exp(x), np.exp(fixed)
    if style == "differentiable":
        divergence = {
            ("reverse", True): w * x,
            ("reverse", False): w * x - w,
            ("forward", True): -logp,
            ("forward", False): w - x - 1,
        }[direction, normalised]
        return clipped(w, a, 1 - low, 1 + high, dual) + beta * divergence
    c = {
        ("reverse", True): held * a - beta * held * (fixed + 1),
        ("reverse", False): held * (a - beta * fixed),
        ("forward", True): held * a + beta,
        ("forward", False): held * a - beta * (held - 1),
    }[direction, normalised]
    return clipped(w, c / held, 1 - low, 1 + high, dual)


# Factors.


def entropy_scale(case, *, low=0.2, high=0.2, widening=1.0, strength=1.0, level=0.8):
    """HAPO: within half of the adapted bounds of `entropy_clip`."""
    x, result = tokens(case, case), {}
    for p, h in relative_entropies(case, level).items():
        below = low * (1 - widening * h) if h <= 0 else low
        above = high * (1 + widening * h) if h > 0 else high
        inside = 1 - below / 2 < np.exp(x[p]) < 1 + above / 2
        result[p] = 1 + strength * h if (h > 0 and not inside) or (h <= 0 and inside) else np.longdouble(1.0)
    return result


def top_entropy_mask(case, *, share=0.2, of="policy"):
    entropy = case.entropy if of == "policy" else case.proximal_entropy
    threshold = quantile([entropy[p] for p in counting(case)], 1 - share)
    return {p: float(entropy[p] >= threshold) for p in actions(case)}


def covariances(case):
    """(log pi - mean) (A - mean) over the actions that count."""
    places = counting(case)
    logp = {p: finite(case.logp[p]) for p in places}
    mean = sum(logp.values()) / max(len(places), 1)
    mean_advantage = sum(case.advantage[p] for p in places) / max(len(places), 1)
    return {p: (logp[p] - mean) * (case.advantage[p] - mean_advantage) for p in places}


def covariance_clip_mask(case, *, draws, share=2e-4, lowest=1.0, highest=5.0, low=1.0, high=1.0):
    covariance, x = covariances(case), tokens(case, case)
    candidates = []
    for p, value in covariance.items():
        clipped_away = np.exp(x[p]) > 1 + high if case.advantage[p] > 0 else np.exp(x[p]) < 1 - low and case.advantage[p] < 0
        if lowest < value < highest and not clipped_away:
            candidates.append(p)
    count = max(1, int(share * len(covariance)))
    chosen = sorted(candidates, key=lambda p: draws[p])[:count]
    return {p: float(p not in chosen) for p in actions(case)}


def top_covariance_mask(case, *, share=2e-3):
    covariance = covariances(case)
    count = max(1, int(share * len(covariance)))
    ordered = sorted(covariance.values(), reverse=True)
    # Sums in another order differ in the last digits: equal here is equal up to rounding.
    tie = ordered[min(count, len(ordered)) - 1] if ordered else np.longdouble(0)
    return {p: float(p in covariance and covariance[p] >= tie) for p in actions(case)}


def second_moment_mask(case, *, budget=0.04, harmful_only=False):
    """Drops the largest squares, equal ones together, until the mean of the rest is below the budget."""
    x = tokens(case, case)
    places = counting(case)
    if harmful_only:
        places = [p for p in places if case.advantage[p] * x[p] > 0]
    kept = list(places)
    while kept and sum(x[p] ** 2 for p in kept) / len(kept) >= budget:
        largest = max(x[p] ** 2 for p in kept)
        kept = [p for p in kept if x[p] ** 2 < largest]
    return {p: float(p not in places or p in kept) for p in actions(case)}


def divergence_mask(case, *, kind="tv", low=0.15, high=0.15, symmetric=False, against="behavior"):
    result = {}
    for place in actions(case):
        logp, old = case.logp[place], against_logp(case, against)[place]
        p, q = (min(np.exp(value), np.longdouble(1)) for value in (logp, old))
        rest = np.log((1 - q + np.longdouble(1e-8)) / (1 - p + np.longdouble(1e-8)))
        logp, old = (min(value, np.longdouble(0)) for value in (logp, old))
        distance = abs(p - q) if kind == "tv" else q * log_ratio(old, logp) + (1 - q) * rest
        positive = case.advantage[place] > 0
        away = symmetric or (p > q if positive else p < q)
        result[place] = float(not (away and distance > (high if positive else low)))
    return result


def ring_mask(case, *, low=0.2, high=0.2, far_low=None, far_high=None, two_sided=False):
    x, result = tokens(case, case), {}
    for place in actions(case):
        r, a = np.exp(x[place]), case.advantage[place]
        if not two_sided:
            keep = (a >= 0 and r <= 1 + high) or (a <= 0 and r >= 1 - low)
        else:
            keep = 1 - low <= r <= 1 + high
            keep = keep or (far_low is not None and a >= 0 and r <= 1 - far_low)
            keep = keep or (far_high is not None and a <= 0 and r >= 1 + far_high)
        result[place] = float(keep)
    return result


def focal(case, *, power=0.5):
    return {p: (1 - np.exp(min(case.logp[p], np.longdouble(0)))) ** np.longdouble(power) for p in actions(case)}


def positive_advantage(case):
    return {p: float(case.advantage[p] > 0) for p in actions(case)}


class Swapped:
    """A case whose policy is another one of it."""

    def __init__(self, case, of):
        vars(self).update(vars(case))
        if of != "policy":
            self.logp = against_logp(case, of)


def importance_weight(case, *, ratio=tokens, low=None, high=None, outside="truncate", of="proximal"):
    x, result = ratio(Swapped(case, of), case), {}
    for place in actions(case):
        weight = np.exp(x[place])
        beyond = (low is not None and weight < low) or (high is not None and weight > high)
        if beyond:
            weight = np.longdouble(0.0 if outside == "mask" else (low if low is not None and weight < low else high))
        result[place] = weight
    return result


def renormalised(case, *, factor, over):
    """The mask times (sum of all shares) / (sum of those kept), of the batch or of each rollout and then over rollouts."""
    kept, result = factor(case), {place: np.longdouble(0.0) for place in actions(case)}
    total = sum((case.weight[p] for p in actions(case)), np.longdouble(0.0))
    rows = [list(actions(case))] if over == "batch" else list(rollouts_of(case).values())
    left = [sum((case.weight[p] * kept[p] for p in places), np.longdouble(0.0)) for places in rows]
    share = [sum((case.weight[p] for p in places), np.longdouble(0.0)) for places in rows]
    among = sum((w for w, still in zip(share, left, strict=True) if still != 0), np.longdouble(0.0))
    for places, w, still in zip(rows, share, left, strict=True):
        for place in places if still != 0 and among != 0 else []:
            result[place] = kept[place] * w / still * total / among
    return result


def batch_normalised(case, *, factor, sequences=False):
    """verl: over the mean of a token's weights, or, of weights of sequences, of one weight for each sequence that counts."""
    value, places = factor(case), counting(case)
    if sequences:
        one_each = [[value[p] for p in own if p in places] for own in rollouts_of(case).values()]
        values = [own[0] for own in one_each if own]
    else:
        values = [value[p] for p in places]
    mean = sum(values) / max(len(values), 1)
    return {p: value[p] / mean if mean and p in places else np.longdouble(0.0) for p in actions(case)}


def rejection(case, *, kind="k1", over="mean", low=None, high=None, among="all", of="proximal"):
    x, result = tokens(Swapped(case, of), case), {}
    estimate = {
        "k1": lambda d: -d,
        "k2": lambda d: d * d / 2,
        "k3": lambda d: np.exp(d) - 1 - d,
        "tv": lambda d: abs(np.exp(d) - 1),
    }[kind]
    reduce = {"token": None, "sum": sum, "max": max, "mean": lambda values: sum(values) / len(values)}[over]
    for places in rollouts_of(case).values():
        whole = None if reduce is None else reduce([estimate(x[p]) for p in places])
        for p in places:
            value = estimate(x[p]) if whole is None else whole
            keep = (low is None or value >= low) and (high is None or value <= high)
            spared = {"all": False, "negative": case.advantage[p] >= 0, "leaving": case.advantage[p] * x[p] <= 0}[among]
            result[p] = float(keep or spared)
    return result


# Divergences.


def kl_terms(live, case, *, coefficient, kind, against="reference", bound=None, ratio_bound=20, ratio=None, factors=()):
    """sum_t w_t f_t c D_t, with D_t = k1, k2, k3, |x| and, with "+", their value and the slope of k2."""
    scales = [factor(case) for factor in factors]
    weights = None if ratio is None else ratio(live, case)

    def value(x, name):
        return {"k1": -x, "k2": x * x / 2, "k3": np.exp(x) - 1 - x, "abs": abs(x)}[name]

    total = np.longdouble(0.0)
    for place in actions(case):
        other = against_logp(case, against)[place]
        x, fixed = (log_ratio(other, logp[place], ratio_bound) for logp in (live.logp, case.logp))
        d = value(x, kind.removesuffix("+"))
        if kind.endswith("+"):
            d = value(x, "k2") - value(fixed, "k2") + value(fixed, kind.removesuffix("+"))
        d = d if bound is None else kept_within(d, np.longdouble(bound))
        if ratio is not None:
            d = d * np.exp(weights[place])
        for scale in scales:
            d = d * scale[place]
        total += case.weight[place] * coefficient * d
    return total


def advantage_regression(live, case, *, epsilon=1e-4):
    """Reg-GRPO, https://arxiv.org/abs/2506.07464, equations 7 and 8; rollouts without a weight have no part."""
    x, rollouts, total = tokens(live, case), rollouts_of(case), np.longdouble(0.0)
    for numbers in groups_of(case).values():
        members = [rollouts[n] for n in numbers if any(case.weight[p] != 0 for p in rollouts[n])]
        sums = [sum(x[p] for p in places) for places in members]
        mean = sum(sums) / max(len(sums), 1)
        deviation = np.sqrt(sum((value - mean) ** 2 for value in sums) / max(len(sums), 1))
        for places, value in zip(members, sums, strict=True):
            advantage = sum(case.advantage[p] for p in places) / len(places)
            total += sum(case.weight[p] for p in places) * (advantage - (value - mean) / (deviation + epsilon)) ** 2
    return total


def mixed(number):
    """The finaliser of MurmurHash3, https://github.com/aappleby/smhasher, in integers modulo 2^32."""
    number = ((number ^ (number >> 16)) * 0x85EBCA6B) % 2**32
    number = ((number ^ (number >> 13)) * 0xC2B2AE35) % 2**32
    return number ^ (number >> 16)


def token_uniform(draw, batch, seed):
    """`draw(seed, step, hash of the sequence, position)`, token by token; the hash is the sum of those of its actions."""
    hashes, result = {}, np.zeros(batch.tokens.shape, np.float32)
    for row, column in np.ndindex(*batch.tokens.shape):
        token, position = int(batch.tokens[row, column]), int(batch.positions[row, column])
        own = mixed((token * 0x9E3779B1 + mixed(position)) % 2**32) if batch.mask[row, column] > 0 else 0
        name = row, int(batch.segment[row, column])
        hashes[name] = (hashes.get(name, 0) + own) % 2**32
    for row, column in np.ndindex(*batch.tokens.shape):
        sequence = np.uint32(hashes[row, int(batch.segment[row, column])])
        result[row, column] = draw(seed, int(batch.step), sequence, int(batch.positions[row, column]))
    return result
