"""Losses on samples of another policy: weights by sign, centred scores and balanced flows, by plain loops."""

import numpy as np

from oracles.policy_terms import each


@each
def tapered(x, fixed, logp, a, place, case, *, positive=(1.0, 1.0), negative=(0.0, 1.0)):
    """https://arxiv.org/abs/2503.14286: R log pi where R >= 0, [pi / mu]_0^1 R log pi where R < 0, with other bounds too."""
    low, high = positive if a >= 0 else negative
    return -min(max(np.exp(fixed), np.longdouble(low)), np.longdouble(high)) * a * logp
