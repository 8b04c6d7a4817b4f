"""Compares a term of an objective with its oracle by value and gradient.

An oracle is a plain function `oracle(live, case, **options) -> loss`: `live` holds the scores (`live.logp`,
`live.entropy`...) that a gradient flows through, `case` the whole `BatchCase`, scores among it as constants. What a method
detaches is therefore read from `case` and visible in the oracle. Gradients are central differences of `live`, in extended
precision, so that sums with terms near exp(20) leave enough digits: oracles take their functions from `numpy`, as those of
`math` would round to float64.
"""

import functools
import types

import jax
import numpy as np

from jaxrl_llm import objectives
from jaxrl_llm.types import Batch, Scores

SCORES = (
    "logp",
    "entropy",
    "value",
    "mean_logp",
    "top_entropy",
    "log_collision",
    "candidate_logp",
    "value_outputs",
    "max_logp",
)
FIELDS = (
    "tokens", "mask", "segment", "advantage", "weight", "behavior_logp", "reference_logp", "returns", "rollout", "group",
)  # fmt: skip
EXTRAS = (
    "behavior_value", "source", "turn", "score", "correct", "accuracy", "preference", "proximal_logp", "teacher_logp",
    "proximal_entropy", "proximal_mean_logp", "candidates", "proximal_candidate_logp", "reference_candidate_logp",
    "teacher_candidate_logp", "return_samples",
)  # fmt: skip
STEP = np.longdouble(1e-5)
COEFFICIENTS = {"beta": np.float32(0.3)}


def build(case) -> tuple[Scores, Batch]:
    """The records of a case."""
    fields = (
        "tokens",
        "mask",
        "segment",
        "advantage",
        "weight",
        "behavior_logp",
        "reference_logp",
        "returns",
        "rollout",
        "group",
    )
    batch = Batch(
        **{name: getattr(case, name) for name in fields},
        extras={name: getattr(case, name) for name in EXTRAS},
        step=np.int32(7),
        coefficients=COEFFICIENTS,
    )
    return Scores(**{name: getattr(case, name) for name in SCORES}), batch


@functools.cache
def program(objective):
    """Loss, gradient by the scores, and metrics."""

    def run(scores, batch):
        (loss, metrics), gradient = jax.value_and_grad(lambda scores: objective(scores, batch), has_aux=True)(scores)
        return loss, gradient, metrics

    # Quick compilation is worth more than quick programs.
    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


def check(term, case, oracle, *, by=("logp",), rtol=2e-4):
    """Loss, its gradient by the scores named in `by`, and that every other gradient is 0; all finite. Returns metrics."""
    whole = types.SimpleNamespace(**{name: np.asarray(value) for name, value in vars(case).items()})
    for name, value in vars(whole).items():
        if np.issubdtype(value.dtype, np.floating):
            setattr(whole, name, value.astype(np.longdouble))
    live = types.SimpleNamespace(**{name: getattr(whole, name).copy() for name in SCORES})
    expected_loss = float(oracle(live, whole))
    expected = {name: differences(lambda: oracle(live, whole), getattr(live, name), whole.mask) for name in by}
    loss, gradient, metrics = program(objectives.objective(term))(*build(case))
    size = abs(expected_loss) + sum(np.abs(value).sum() for value in expected.values())
    np.testing.assert_allclose(loss, expected_loss, rtol=rtol, atol=2e-5 * (1 + size))
    for name in SCORES:
        found = np.asarray(getattr(gradient, name))
        if name in by:
            largest = np.abs(expected[name]).max(initial=0.0)
            np.testing.assert_allclose(found, expected[name], rtol=rtol, atol=2e-5 * (1e-2 + largest), err_msg=name)
        else:
            assert not found.any(), name
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    return metrics


def differences(function, array, mask):
    """Central differences of `function()` by the finite entries of `array` at actions; the array is left as it was."""
    result = np.zeros(array.shape)
    for place in np.ndindex(*array.shape):
        if mask[place[:2]] > 0 and np.isfinite(array[place]):
            kept = array[place]
            array[place] = kept + STEP
            above = function()
            array[place] = kept - STEP
            below = function()
            array[place] = kept
            result[place] = (above - below) / (2 * STEP)
    return result


def actions(case):
    """Places (b, t) of the actions."""
    return [(b, t) for b, t in np.ndindex(*case.mask.shape) if case.mask[b, t] > 0]


def rollouts_of(case):
    """Places of the actions of each rollout that has any, by its number."""
    found = {}
    for b, t in actions(case):
        found.setdefault(int(case.rollout[b, t]), []).append((b, t))
    return found


def groups_of(case):
    """Numbers of the rollouts of each group, by its number."""
    found = {}
    for number, places in rollouts_of(case).items():
        found.setdefault(int(case.group[places[0]]), []).append(number)
    return found


def log_ratio(logp, other, bound=20):
    """log p - log q within +-20 nats; constant, and so without slope, beyond and at infinities; equal infinities give 0."""
    limit = np.longdouble(20 if bound is None else bound)
    if np.isinf(logp) or np.isinf(other):
        return np.longdouble(0.0) if logp == other else (limit if logp > other else -limit)
    return logp - other if bound is None else min(max(logp - other, -limit), limit)
