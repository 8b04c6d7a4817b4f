"""Imitation by plain loops."""

import numpy as np

from oracles.harness import actions, rollouts_of


def negative_log_likelihood(live, case, *, coefficient=1.0, factor=lambda case, place: 1):
    total = np.longdouble(0)
    for place in actions(case):
        if np.isfinite(live.logp[place]):
            total -= case.weight[place] * factor(case, place) * coefficient * live.logp[place]
    return total


def probability(case, place):
    return np.exp(case.logp[place])


def uncertainty(case, place):
    return np.exp(case.logp[place]) * (1 - np.exp(case.logp[place]))


def label_smoothing(live, case, *, smoothing=0.1):
    total = np.longdouble(0)
    for p in actions(case):
        token = live.logp[p] if np.isfinite(live.logp[p]) else 0
        total -= case.weight[p] * ((1 - smoothing) * token + smoothing * live.mean_logp[p])
    return total


def blended(live, case, *, first, second, share):
    return (1 - share) * first(live, case) + share * second(live, case)


def own_mean(live, case, *, term, source=None):
    """The term over its weights, those of one source where one is given."""
    kept = np.where(case.mask > 0, case.weight, 0) * (1 if source is None else case.source == source)
    total = kept.sum()
    only = type(case)(**{**vars(case), "weight": kept})
    return term(live, only) / total if total else np.longdouble(0)


def sequence_likelihood(live, case, *, coefficient=1.0):
    total = np.longdouble(0)
    for places in rollouts_of(case).values():
        logp = sum((live.logp[place] for place in places if np.isfinite(live.logp[place])), np.longdouble(0))
        total -= sum(case.weight[place] for place in places) * coefficient * logp
    return total
