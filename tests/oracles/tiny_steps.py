"""One step of a method on tiny rollouts that carry whatever a method may need: pairs, triples and sixes of answers."""

import functools

import jax
import numpy as np

from jaxrl_llm.data.packing import pack
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.training import make_gradient
from oracles import tiny_policy
from oracles.tiny_policy import estimated_in_groups as estimated
from oracles.tiny_policy import jit

# Per token, of policies near to the one that learns; and per row.
NEAR = ("reference_logp", "proximal_logp", "teacher_logp")


def rollouts(params, *, members: int = 2, rows: int = 12, seed: int = 1, roles=((1, 0), (-1, 0)), sources=(0,)):
    """Rows in groups of `members` that need not stand together.

    Args:
      params: of the tiny policy.
      members: rows of each group.
      rows: of the step.
      seed: of all that is random.
      roles: pairs (preference, revises) that the members of a group have in turn.
      sources: likewise.
    """
    plain = tiny_policy.random_rollouts(params, rows=rows, seed=seed)
    random = np.random.default_rng(seed)
    near = {name: _near(plain.behavior_logp, plain.mask, random) for name in NEAR}
    place = random.permutation(rows)
    role = np.array([roles[p % members % len(roles)] for p in place], np.float32)
    source = np.array([sources[p % members % len(sources)] for p in place], np.int32)
    extras = near | {
        "preference": role[:, 0],
        "revises": role[:, 1],
        "mismatched_ratio": random.normal(size=rows).astype(np.float32),
        "anchor_rewards": (1 + random.normal(size=(rows, 4))).astype(np.float32),
    }
    return plain.replace(group=(place // members).astype(np.int32), source=source, extras=extras)


def _near(logp, mask, random):
    return np.where(mask > 0, np.minimum(logp + 0.3 * random.normal(size=logp.shape), 0), 0).astype(np.float32)


def batch_of(method, step, *, width: int = 12, number: int = 0):
    scalars = {name: np.float32(one.value(one.init(), number)) for name, one in method.controllers}
    return pack(estimated(method, step), width, coefficients=scalars)


def gradient_of(method, step, params, *, number: int = 0):
    """Gradient of one step by the parameters."""
    return _gradient(method.objective)(params, batch_of(method, step, number=number))[1]


def value_of(method, step, params):
    """The step's batch, its log-probabilities under the policy, the loss and the metrics."""
    batch = batch_of(method, step)
    scores, (loss, metrics) = _value(method.objective)(params, batch)
    return batch, np.asarray(scores.logp, float), loss, metrics


@functools.cache
def _value(objective):
    scorer = make_scorer(tiny_policy.policy, objective.needs)

    def value(params, batch):
        scores = scorer(params, batch)
        return scores, objective(scores, batch)

    return jit(value)


@functools.cache
def _gradient(objective):
    return jit(make_gradient(make_scorer(tiny_policy.policy, objective.needs), objective))


def assert_close(actual, expected, factor: float = 1.0, rtol: float = 2e-5):
    """`actual` is `factor` times `expected`, and not all 0."""
    largest = factor * max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert largest > 1e-5, "nothing to compare"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, factor * b, rtol=rtol, atol=1e-5 * largest), actual, expected)
