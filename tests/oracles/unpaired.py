"""Losses on single labelled rollouts by plain loops."""

import numpy as np

from oracles.harness import rollouts_of
from oracles.preference_terms import reward_of, share, sigmoid, to_reference


def saturating_link(z):
    return 1 - sigmoid(z)


def logistic_link(z):
    return -np.log(sigmoid(z)) if z > -100 else -z


def labelled(case):
    """Numbers and signs of the rollouts with a label and a weight."""
    found = rollouts_of(case)
    signs = {n: np.sign(case.preference[places[0]]) for n, places in found.items()}
    return {n: signs[n] for n, places in found.items() if signs[n] != 0 and any(case.weight[p] != 0 for p in places)}


def mean_reference_point(case, *, evidence=to_reference):
    """From the case and so without gradient."""
    rewards = [reward_of(case, case, n, evidence) for n in labelled(case)]
    return max(sum(rewards) / len(rewards), np.longdouble(0)) if rewards else 0


def given_reference_point(case, *, annotation):
    found, means = rollouts_of(case), []
    for n in labelled(case):
        values = [getattr(case, annotation)[place] for place in found[n]]
        means.append(sum(values) / len(values))
    return max(sum(means) / len(means), np.longdouble(0)) if means else 0


def controlled_reference_point(case, *, value):
    return value


def running_reference_point(case, *, total, count):
    rewards = [reward_of(case, case, n, to_reference) for n in labelled(case)]
    number = count + len(rewards)
    return (total + sum(rewards)) / number if number else 0


def unpaired(live, case, *, link, beta=0.1, point=lambda case: 0, desirable=1.0, undesirable=1.0):
    loss, z = np.longdouble(0), point(case)
    for n, sign in labelled(case).items():
        factor = desirable if sign > 0 else undesirable
        loss += share(case, n) * factor * link(sign * beta * (reward_of(live, case, n) - z))
    return loss
