"""Statistics of rows for objectives, whitening by rows, running scales and blends."""

import jax
import numpy as np
import pytest
from hypothesis import given
from oracles import advantages, rows
from oracles.cases import brief
from running import Rollouts, assert_close, check_outside, compiled, rich_cases, run, step

from jaxrl_llm import estimators
from jaxrl_llm.estimators import blend, chain, group_advantage, whiten


def scores_of(case, reward_weights=None):
    return advantages.row_scores(case.rewards, case.valid, case.mask, case.token_rewards, reward_weights)


@pytest.mark.parametrize("options", [{}, {"threshold": -0.1}, {"reward_weights": (0.5, -2.0)}])
@brief
@given(case=rich_cases())
def test_row_statistics(options, case):
    found = run(estimators.row_statistics(**options), case)
    score, present = scores_of(case, options.get("reward_weights"))
    expected = rows.row_statistics(score, present, case.group, threshold=options.get("threshold", 0.5))
    for name, values in zip(("score", "correct", "accuracy"), expected, strict=True):
        assert_close(found.extras[name], values)


@brief
@given(case=rich_cases())
def test_best_and_worst(case):
    found = run(estimators.best_and_worst(), case)
    score, present = scores_of(case)
    expected = rows.best_and_worst(score, present, case.group, case.behavior_logp, case.mask)
    np.testing.assert_array_equal(found.extras["preference"], expected)


def test_best_and_worst_do_not_depend_on_the_order_of_rows():
    random = np.random.default_rng(0)
    rewards, logp = random.integers(0, 2, (8, 1)).astype(np.float32), random.normal(size=(8, 2)).astype(np.float32)
    group = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.int32)

    def preference(order):
        rollouts = Rollouts(
            tokens=np.zeros((8, 2), np.int32), length=np.full(8, 2), mask=np.ones((8, 2), np.float32), rewards=rewards[order],
            group=group[order], behavior_logp=logp[order],
        )  # fmt: skip
        return np.asarray(run_plain(estimators.best_and_worst(), rollouts).extras["preference"])

    order = random.permutation(8)
    np.testing.assert_array_equal(preference(np.arange(8))[order], preference(order))
    assert preference(order).any()


def run_plain(estimator, rollouts):
    return compiled(estimator.update)(rollouts, estimator.init(), jax.random.key(0))[0]


@pytest.mark.parametrize("options", [
    {}, {"epsilon": 1e-4, "placement": "outside"}, {"over": "tokens", "placement": "floor", "epsilon": 0.5},
    {"degrees_of_freedom": 0, "shift_mean": False},
])  # fmt: skip
@brief
@given(case=rich_cases())
def test_whiten(options, case):
    options = {"over": "rows"} | options
    found = run(chain(group_advantage(baseline=None, scale=None), whiten(**options)), case)
    score, present = scores_of(case)
    given = np.where(case.mask > 0, score[:, None], 0)
    expected = advantages.whiten(given, case.valid * present, case.mask, **options)
    assert_close(found.advantage, expected, rtol=5e-5, atol=1e-5)
    check_outside(found, case)


def test_unknown_units_are_refused():
    with pytest.raises(ValueError, match="over is 'words'"):
        whiten(over="words").parts[0](None)


@pytest.mark.parametrize("decay", [0.5, 1.0])
@brief
@given(first=rich_cases(), second=rich_cases())
def test_running_scale(decay, first, second):
    estimator = estimators.running_scale(decay=decay, epsilon=0.01)
    state, known = None, []
    for case in (first, second):
        found, state = step(estimator, case, state)
        score, present = scores_of(case)
        expected, known = rows.running_scale(known, score, present, case.advantage, case.mask, decay=decay, epsilon=0.01)
        assert_close(found.advantage, expected, rtol=1e-4, atol=1e-4)


def test_running_scale_refuses_decays():
    with pytest.raises(ValueError, match="decay is 0"):
        estimators.running_scale(decay=0).update(None, (), None)


@brief
@given(case=rich_cases())
def test_blend(case):
    first, second = group_advantage(scale=None), group_advantage(baseline=None, scale=None)
    found = run(blend((0.25, first), (-2.0, second)), case)
    assert_close(found.advantage, rows.blend((0.25, run(first, case).advantage), (-2.0, run(second, case).advantage)))


def test_blends_print_hash_and_declare():
    first, second = estimators.state_advantage(), group_advantage(scale=None)
    both = blend((1.0, first), (0.5, second))
    assert repr(both) == "blend((1.0, state_advantage()), (0.5, group_advantage(scale=None)))"
    assert both == blend((1.0, first), (0.5, second)) and hash(both) == hash(blend((1.0, first), (0.5, second)))
    assert both.annotations == {"state"} and chain(both, whiten()).annotations == {"state"}
