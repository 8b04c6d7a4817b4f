"""Values and gradients of every loss against its oracle, on random, ragged and degenerate batches."""

import functools

import jax
import numpy as np
import oracles
import pytest
from hypothesis import given
from oracles import losses as oracle
from oracles.cases import batch_cases, modest

from jaxrl_llm import objectives
from jaxrl_llm.types import Batch, Scores

RATIOS = {
    "token": (objectives.token_ratio(), oracle.token_ratio),
    "sequence": (objectives.sequence_ratio(), oracle.sequence_ratio),
}
TRUSTS = [
    ("clip", {}),
    ("clip", {"low": 0.1, "high": 0.4}),
    ("clip", {"low": 0.3, "high": 0.1, "dual": 1.5}),
    ("unclipped", {}),
    ("cispo", {"high": 0.3}),
    ("cispo", {"high": 0.2, "low": 0.1}),
    ("score_function", {}),
]


def build(case) -> tuple[Scores, Batch]:
    batch = Batch(
        tokens=case.tokens,
        mask=case.mask,
        segment=case.segment,
        advantage=case.advantage,
        weight=case.weight,
        behavior_logp=case.behavior_logp,
        reference_logp=case.reference_logp,
        returns=case.returns,
        extras={"behavior_value": case.behavior_value},
        coefficients={"beta": np.float32(0.3)},
    )
    outputs = np.stack([case.value, 2 * case.entropy, -case.value, case.returns], axis=-1)
    return Scores(logp=case.logp, entropy=case.entropy, value=case.value, value_outputs=outputs), batch


@functools.cache
def program(objective):
    """Loss, gradient by the scores, and metrics."""

    def run(scores, batch):
        (loss, metrics), gradient = jax.value_and_grad(lambda scores: objective(scores, batch), has_aux=True)(scores)
        return loss, gradient, metrics

    return jax.jit(run)


def compare(term, case, expected_loss, **expected_gradients):
    """Loss, the given gradients, and that every other gradient is exactly 0; all of them finite."""
    loss, gradient, metrics = program(objectives.objective(term))(*build(case))
    size = abs(expected_loss) + sum(np.abs(value).sum() for value in expected_gradients.values())
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4, atol=1e-5 * (1 + size))
    for name in ("logp", "entropy", "value", "value_outputs"):
        found = np.asarray(getattr(gradient, name))
        if name in expected_gradients:
            expected = expected_gradients[name]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * (1 + np.abs(expected).max()))
        else:
            assert not found.any()
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    return metrics


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("name", "options"), TRUSTS)
@modest
@given(case=batch_cases())
def test_policy(ratio, name, options, case):
    ours, theirs = RATIOS[ratio]
    loss, gradient = oracle.policy(
        case.logp, case.behavior_logp, case.advantage, case.weight, case.mask, case.segment,
        ratio=theirs, trust=functools.partial(getattr(oracle, name), **options),
    )  # fmt: skip
    compare(objectives.policy(ratio=ours, trust=getattr(objectives, name)(**options)), case, loss, logp=gradient)


@modest
@given(case=batch_cases())
def test_policy_without_a_ratio(case):
    loss, gradient = oracle.policy(
        case.logp, None, case.advantage, case.weight, case.mask, case.segment, ratio=None, trust=oracle.score_function
    )
    compare(objectives.policy(ratio=None, trust=objectives.score_function()), case, loss, logp=gradient)


@pytest.mark.parametrize("ratio", RATIOS)
@modest
@given(case=batch_cases())
def test_log_ratios(ratio, case):
    ours, theirs = RATIOS[ratio]
    expected, _ = theirs(case.logp, case.behavior_logp, case.mask, case.segment)
    np.testing.assert_allclose(ours(*build(case)), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("coefficient", [0.3, "beta"])
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@modest
@given(case=batch_cases())
def test_kl(coefficient, kind, case):
    loss, gradient = oracle.kl(case.logp, case.reference_logp, case.weight, case.mask, coefficient=0.3, kind=kind)
    metrics = compare(objectives.kl(coefficient=coefficient, kind=kind), case, loss, logp=gradient)
    np.testing.assert_allclose(metrics["reference_kl"], loss / 0.3, rtol=1e-4, atol=1e-5 * (1 + abs(loss)))


@pytest.mark.parametrize("coefficient", [0.3, "beta"])
@modest
@given(case=batch_cases())
def test_entropy_bonus(coefficient, case):
    loss, gradient = oracle.entropy_bonus(case.entropy, case.weight, case.mask, coefficient=0.3)
    compare(objectives.entropy_bonus(coefficient=coefficient), case, loss, entropy=gradient)


@pytest.mark.parametrize(
    "options", [{}, {"clip": None}, {"huber": 0.5, "coefficient": 2.0}, {"clip": None, "huber": 0.3}, {"clip": 0.05}]
)
@modest
@given(case=batch_cases())
def test_value_loss(options, case):
    loss, gradient = oracle.value_loss(case.value, case.behavior_value, case.returns, case.weight, case.mask, **options)
    compare(objectives.value_loss(**options), case, loss, value=gradient)


@pytest.mark.parametrize("options", [{}, {"smoothing": 0.3, "coefficient": 2.0}])
@modest
@given(case=batch_cases())
def test_categorical_value_loss(options, case):
    outputs, options = build(case)[0].value_outputs, {"low": -1.0, "high": 1.5} | options
    loss, gradient = oracle.categorical_value_loss(outputs, case.returns, case.weight, case.mask, **options)
    compare(objectives.categorical_value_loss(**options), case, loss, value_outputs=gradient)


@pytest.mark.parametrize("options", [{}, {"huber": 0.2, "coefficient": 2.0}])
@modest
@given(case=batch_cases())
def test_quantile_value_loss(options, case):
    outputs = build(case)[0].value_outputs
    loss, gradient = oracle.quantile_value_loss(outputs, case.returns, case.weight, case.mask, **options)
    compare(objectives.quantile_value_loss(**options), case, loss, value_outputs=gradient)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (objectives.categorical_value_loss(low=1.0, high=1.0), "low=1.0, high=1.0"),
        (objectives.categorical_value_loss(low=0.0, high=1.0, smoothing=0.0), "smoothing=0.0"),
        (objectives.quantile_value_loss(huber=0.0), "huber is 0.0; it must be above 0"),
    ],
)
def test_impossible_critics_are_refused(term, message):
    batch = Batch(tokens=np.zeros((1, 2), np.int32), mask=np.ones((1, 2)), returns=np.zeros((1, 2)))
    scores = Scores(logp=np.zeros((1, 2)), value_outputs=np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match=message):
        term(scores, batch)


@modest
@given(case=batch_cases())
def test_negative_log_likelihood(case):
    loss, gradient = oracle.negative_log_likelihood(case.logp, case.weight, case.mask, coefficient=2.0)
    compare(objectives.negative_log_likelihood(coefficient=2.0), case, loss, logp=gradient)


@modest
@given(case=batch_cases())
def test_sum_of_terms(case):
    both = objectives.objective(
        objectives.policy(), objectives.kl(coefficient=0.1), objectives.value_loss(), objectives.entropy_bonus()
    )
    loss, gradient, metrics = program(both)(*build(case))
    parts = [program(objectives.objective(term))(*build(case)) for term in both.terms]
    size = sum(abs(float(part[0])) for part in parts)
    np.testing.assert_allclose(loss, sum(float(part[0]) for part in parts), rtol=1e-5, atol=1e-6 * (1 + size))
    total = jax.tree.map(lambda *leaves: sum(leaves), *[part[1] for part in parts])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * (1 + np.abs(b).max())), gradient, total)
    for term, part in zip(both.terms, parts, strict=True):
        np.testing.assert_allclose(metrics[f"loss/{term.function.__name__}"], part[0], rtol=1e-5, atol=1e-6)


@modest
@given(case=batch_cases())
def test_weighted_sum(case):
    _, batch = build(case)
    expected = sum(
        float(case.weight[b, t]) * float(case.logp[b, t])
        for b, t in np.argwhere(case.mask > 0)
        if case.weight[b, t] and np.isfinite(case.logp[b, t])
    )
    finite = np.where(np.isinf(case.logp), 0, case.logp)
    np.testing.assert_allclose(objectives.weighted_sum(finite, batch), expected, rtol=1e-5, atol=1e-5)


@modest
@given(case=batch_cases())
def test_policy_metrics(case):
    """Diagnostics are over actions with a share in the loss, and mean what their documentation says."""
    trust = functools.partial(oracle.clip, low=0.1, high=0.4)
    positive, negative = oracle.policy_diagnostics(
        case.logp,
        case.behavior_logp,
        case.advantage,
        case.weight,
        case.mask,
        case.segment,
        ratio=oracle.token_ratio,
        trust=trust,
    )
    _, _, metrics = program(objectives.objective(objectives.policy(trust=objectives.clip(low=0.1, high=0.4))))(*build(case))
    size = 1e-5 * (1 + abs(positive) + abs(negative))
    np.testing.assert_allclose(metrics["surrogate/positive_advantage"], positive, rtol=1e-4, atol=size)
    np.testing.assert_allclose(metrics["surrogate/negative_advantage"], negative, rtol=1e-4, atol=size)
    x, _ = oracle.token_ratio(case.logp, case.behavior_logp, case.mask, case.segment)
    places = [(b, t) for b, t in np.argwhere(case.mask > 0) if case.weight[b, t] != 0]
    ratios = [np.exp(x[place]) for place in places]
    count = max(len(places), 1)
    expected = {
        "ratio/mean": sum(ratios) / count,
        "ratio/max": max(ratios, default=0.0),
        "behavior_kl": sum(ratio - 1 - np.log(ratio) for ratio in ratios) / count,
        "clip_fraction/low": sum(np.exp(x[p]) < 0.9 and case.advantage[p] < 0 for p in places) / count,
        "clip_fraction/high": sum(np.exp(x[p]) > 1.4 and case.advantage[p] > 0 for p in places) / count,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_every_public_loss_has_an_oracle():
    structure = {"Objective", "objective", "traits", "weighted", "weighted_sum", "by_source", "scaled"}
    # What `tokens_of_group` asks for is made by `group_tokens`, and compared in `estimators.test_hidden_reward`.
    assert set(objectives.__all__) - structure - {"group_tokens"} <= oracles.names()
