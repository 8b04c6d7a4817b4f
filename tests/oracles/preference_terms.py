"""Losses on pairs by plain loops: every reward from its tokens, every pair from the numbers of its rollouts."""

import numpy as np

from oracles.harness import groups_of, log_ratio, rollouts_of


def sigmoid(z):
    return 1 / (1 + np.exp(-z)) if z > 0 else np.exp(z) / (1 + np.exp(z))


def log_sigmoid(z):
    return -np.log1p(np.exp(-z)) if z > 0 else z - np.log1p(np.exp(z))


def sigmoid_link(c, r, *, beta=0.1, smoothing=0.0, margin=0.0):
    z = beta * (c - r) - margin
    return -(1 - smoothing) * log_sigmoid(z) - smoothing * log_sigmoid(-z)


def robust_link(c, r, *, beta=0.1, flip_rate=0.1):
    z = beta * (c - r)
    return (-(1 - flip_rate) * log_sigmoid(z) + flip_rate * log_sigmoid(-z)) / (1 - 2 * flip_rate)


def biased_link(c, r, *, beta=0.1, bias=1.0):
    return -log_sigmoid(beta * (c - bias * r))


def hinge_link(c, r, *, beta=0.1, margin=1.0):
    return max(margin - beta * (c - r), np.longdouble(0))


def ipo_link(c, r, *, beta=0.1):
    return (c - r - 1 / (2 * beta)) ** 2


def exo_link(c, r, *, beta=0.1, smoothing=1e-3):
    win, lose = log_sigmoid(beta * (c - r)), log_sigmoid(-beta * (c - r))
    return np.exp(win) * (win - np.log(1 - smoothing)) + np.exp(lose) * (lose - np.log(smoothing))


def nca_link(c, r, *, beta=0.1):
    return -log_sigmoid(beta * c) - log_sigmoid(-beta * c) / 2 - log_sigmoid(-beta * r) / 2


def bco_link(c, r, *, beta=0.1):
    return -log_sigmoid(beta * c) - log_sigmoid(-beta * r)


def sppo_link(c, r, *, beta=0.1):
    return (c - 1 / (2 * beta)) ** 2 + (r + 1 / (2 * beta)) ** 2


def apo_zero_link(c, r, *, beta=0.1):
    return 1 - sigmoid(beta * c) + sigmoid(beta * r)


def apo_down_link(c, r, *, beta=0.1):
    return sigmoid(beta * c) + 1 - sigmoid(beta * (c - r))


def discopop_link(c, r, *, beta=0.05, temperature=0.05):
    z = beta * (c - r)
    gate = sigmoid(z / temperature)
    return -(1 - gate) * log_sigmoid(z) + gate * np.exp(-z)


def positive_link(c, r, *, beta=0.1, penalty=50.0):
    return -log_sigmoid(beta * (c - r - penalty * max(-c, np.longdouble(0))))


def alpha_transform(x, *, alpha):
    """Exponents are cut at 20."""
    return x if alpha == 0 else (1 - np.exp(min(-alpha * x, np.longdouble(20)))) / alpha


def jensen_shannon_transform(x):
    return np.log(np.longdouble(2)) + log_sigmoid(x)


def log_odds(x):
    x = min(x, np.longdouble("-1e-6"))
    return x - np.log(1 - np.exp(x))


def to_reference(live, case, place):
    return log_ratio(live.logp[place], case.reference_logp[place])


def to_sampler(live, case, place):
    return log_ratio(live.logp[place], case.behavior_logp[place])


def likelihood(live, case, place):
    return max(live.logp[place], np.longdouble(-20))


def anchored_ratio(live, case, place, *, share):
    return share * to_reference(live, case, place) + (1 - share) * log_ratio(live.logp[place], case.proximal_logp[place])


def length_bonus(live, case, place, *, bonus=0.1):
    return to_reference(live, case, place) + bonus


def token_guidance(case, place, *, alpha=0.5, beta=0.1):
    reward = beta * log_ratio(case.teacher_logp[place], case.reference_logp[place])
    return 1 + np.sign(case.preference[place]) * alpha * reward


def beyond_shared_length(case, place, *, alpha=0.5):
    """The place of an action among those of its rollout, against the length of the shorter member."""
    found = rollouts_of(case)
    own = int(case.rollout[place])
    lengths = [min(len(found[c]), len(found[r])) for c, r in pairs_of(case) if own in (c, r)]
    return 1 if not lengths or found[own].index(place) < lengths[0] else alpha


def collision_ratio(case, place):
    return log_ratio(case.logp[place], case.log_collision[place])


def pairs_of(case):
    """(preferred, other) numbers of the rollouts of each group that has one of each."""
    found, pairs = rollouts_of(case), []
    for numbers in groups_of(case).values():
        sides = [[n for n in numbers if sign * case.preference[found[n][0]] > 0] for sign in (1, -1)]
        if len(sides[0]) == len(sides[1]) == 1:
            pairs.append((sides[0][0], sides[1][0]))
    return pairs


def share(case, number):
    return sum((case.weight[place] for place in rollouts_of(case)[number]), np.longdouble(0))


def reward_of(live, case, number, evidence=to_reference, factor=None, average=False, transform=None):
    total = np.longdouble(0)
    places = rollouts_of(case)[number]
    for place in places:
        total += evidence(live, case, place) * (1 if factor is None else factor(case, place))
    total = total / len(places) if average is True else total
    value = total if transform is None else transform(total)
    return value / len(places) if average == "transformed" else value


def preference(live, case, *, link=sigmoid_link, importance=None, **options):
    loss = np.longdouble(0)
    for c, r in pairs_of(case):
        value = link(reward_of(live, case, c, **options), reward_of(live, case, r, **options))
        if importance is not None:
            for number in (c, r):
                places = rollouts_of(case)[number]
                value *= np.exp(sum(importance(case, place) for place in places) / len(places))
        loss += (share(case, c) + share(case, r)) * value
    return loss


def chosen_likelihood(live, case, *, coefficient=1.0, average=True):
    loss = np.longdouble(0)
    for c, r in pairs_of(case):
        places = rollouts_of(case)[c]
        value = sum((live.logp[place] for place in places if np.isfinite(live.logp[place])), np.longdouble(0))
        loss -= (share(case, c) + share(case, r)) * coefficient * (value / len(places) if average else value)
    return loss


def chosen_token_likelihood(live, case, *, coefficient=1.0):
    """CPO's imitation: the mean over all tokens of preferred answers of -log pi, times the weights of the pairs."""
    total, tokens, weight = np.longdouble(0), 0, np.longdouble(0)
    for c, r in pairs_of(case):
        weight += share(case, c) + share(case, r)
        if share(case, c) + share(case, r) > 0:
            places = rollouts_of(case)[c]
            tokens += len(places)
            total += sum((live.logp[place] for place in places if np.isfinite(live.logp[place])), np.longdouble(0))
    return -coefficient * weight * total / max(tokens, 1)


def quantile_preference(live, case, *, link=sigmoid_link, paired=True):
    """https://arxiv.org/abs/2406.05882: sorted against sorted."""
    pairs = pairs_of(case)

    def total(logp, number):
        return sum((max(logp[place], np.longdouble(-20)) for place in rollouts_of(case)[number]), np.longdouble(0))

    left, right = [], []
    for c, r in pairs:
        policy, reference = ([total(logp, n) for n in (c, r)] for logp in (live.logp, case.reference_logp))
        left.append(policy[0] - policy[1] if paired else policy[0] - reference[0])
        right.append(reference[0] - reference[1] if paired else policy[1] - reference[1])
    if not pairs:
        return np.longdouble(0)
    mean = sum(link(x, y) for x, y in zip(sorted(left), sorted(right), strict=True)) / len(pairs)
    return mean * sum(share(case, n) for pair in pairs for n in pair)


def self_improving(live, case, *, alpha=0.5, beta=0.1):
    """https://arxiv.org/abs/2406.01660; `case.revises` beside the other fields."""
    found, loss = rollouts_of(case), np.longdouble(0)
    for numbers in groups_of(case).values():
        role = {}
        for n in numbers:
            place = found[n][0]
            role.setdefault((np.sign(case.preference[place]), np.sign(case.revises[place])), []).append(n)
        wanted = [(a, b) for a in (1, -1) for b in (0, 1, -1)]
        if any(len(role.get(key, [])) != 1 for key in wanted):
            continue
        g = {a: reward_of(live, case, role[a, 0][0]) for a in (1, -1)}
        d = {(a, b): reward_of(live, case, role[a, b][0]) for a in (1, -1) for b in (1, -1)}
        generator = (1 - beta * (d[1, -1] - d[-1, 1] + g[1] - g[-1])) ** 2
        reviser = (0.5 - beta * (d[1, -1] - d[-1, -1])) ** 2 + (0.5 + beta * (d[-1, 1] - d[1, 1])) ** 2
        loss += sum(share(case, n) for n in numbers) * ((1 - alpha) * generator + alpha * reviser)
    return loss
