"""The hand-written gradients of the oracles against central differences of their own values, detached parts held fixed."""

import functools

import numpy as np
import pytest
from oracles import losses as oracle

STEP = 1e-6
SHAPE = (2, 5)


def arrays(*names):
    random = np.random.default_rng(7)
    return {name: random.normal(size=SHAPE) for name in names}


def numerical(loss, x):
    gradient = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[place] += STEP
        down[place] -= STEP
        gradient[place] = (loss(up) - loss(down)) / (2 * STEP)
    return gradient


def check(function, x):
    np.testing.assert_allclose(function(x)[1], numerical(lambda point: function(point)[0], x), rtol=1e-6, atol=1e-7)


MASK = np.array([[1, 1, 1, 0, 1], [0, 1, 1, 1, 1]])
SEGMENT = np.array([[1, 1, 2, 2, 2], [1, 1, 1, 1, 1]])
WEIGHT = np.linspace(0.1, 1.0, 10).reshape(SHAPE)


@pytest.mark.parametrize("ratio", [oracle.token_ratio, oracle.sequence_ratio])
@pytest.mark.parametrize("trust", [
    oracle.clip, functools.partial(oracle.clip, low=0.1, high=0.3, dual=1.4), oracle.unclipped, oracle.score_function,
])  # fmt: skip
def test_policy(ratio, trust):
    given = arrays("logp", "behavior", "advantage")
    check(
        lambda x: oracle.policy(x, given["behavior"], given["advantage"], WEIGHT, MASK, SEGMENT, ratio=ratio, trust=trust),
        given["logp"],
    )


def test_cispo_with_its_weight_held_fixed():
    given = arrays("logp", "behavior", "advantage")
    frozen, _ = oracle.token_ratio(given["logp"], given["behavior"], MASK, SEGMENT)
    trust = functools.partial(oracle.cispo, high=0.3, low=0.1)

    def value(point):
        places = [(b, t) for b, t in np.argwhere(MASK > 0)]
        return sum(WEIGHT[p] * trust(frozen[p], point[p], given["advantage"][p])[0] for p in places)

    _, gradient = oracle.policy(
        given["logp"], given["behavior"], given["advantage"], WEIGHT, MASK, SEGMENT, ratio=oracle.token_ratio, trust=trust
    )
    np.testing.assert_allclose(gradient, numerical(value, given["logp"]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl(kind):
    given = arrays("logp", "reference")
    check(lambda x: oracle.kl(x, given["reference"], WEIGHT, MASK, coefficient=0.3, kind=kind), given["logp"])


@pytest.mark.parametrize("options", [{}, {"clip": None}, {"clip": 0.1, "huber": 0.4}])
def test_value_loss(options):
    given = arrays("value", "old", "returns")
    check(lambda x: oracle.value_loss(x, given["old"], given["returns"], WEIGHT, MASK, **options), given["value"])


def test_entropy_and_likelihood():
    given = arrays("x")
    check(lambda x: oracle.entropy_bonus(x, WEIGHT, MASK, coefficient=0.2), given["x"])
    check(lambda x: oracle.negative_log_likelihood(x, WEIGHT, MASK), given["x"])
