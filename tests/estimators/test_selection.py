"""Entropy-shaped advantages, conflicts, weights of rows, and which rows and tokens are kept."""

import jax
import numpy as np
import pytest
from hypothesis import given
from oracles import advantages, filters
from oracles.cases import brief
from running import Rollouts, assert_close, check_outside, rich_cases, run, step
from test_shaping_estimators import COMPONENT, THRESHOLD, check_component, component, few, once

from jaxrl_llm import estimators


def scores_of(case):
    return advantages.row_scores(case.rewards, case.valid, case.mask, case.token_rewards)


@pytest.mark.parametrize("options", [{}, {"base": 0.5, "bonus": 0.5}])
@brief
@given(case=rich_cases())
def test_entropy_shaped_advantage(options, case):
    options = options | {"threshold": THRESHOLD}
    found = run(estimators.entropy_shaped_advantage(component=COMPONENT, **options), case)
    arrays = (case.extras["proximal_entropy"], case.mask, case.group)
    expected = filters.entropy_shaped_advantage(*component(case), *arrays, **options)
    # Rewards that differ by rounding only are standardised to anything of size 1.
    clear = np.abs(found.advantage - expected) < 1e-2 * (1 + np.abs(expected))
    assert_close(np.where(clear, found.advantage, 0), np.where(clear, expected, 0), rtol=2e-2, atol=2e-2)
    assert clear.mean() > 0.5
    check_outside(found, case)


@brief
@given(case=rich_cases())
def test_sequence_entropy_reward(case):
    found = run(estimators.sequence_entropy_reward(component=COMPONENT, threshold=THRESHOLD, bonus=0.5), case)
    value, present = component(case)
    arrays = (case.extras["proximal_entropy"], case.mask, case.group)
    expected = filters.sequence_entropy_reward(value, present, *arrays, bonus=0.5, threshold=THRESHOLD)
    expected = np.where(np.asarray(present) > 0, expected, found.rewards[:, COMPONENT])
    check_component(found, expected, case, rtol=1e-4)


@brief
@given(case=rich_cases())
def test_entropy_penalty(case):
    found = run(estimators.entropy_penalty(ceiling=1.0), case)
    assert_close(
        found.advantage, filters.entropy_penalty(case.advantage, case.extras["proximal_entropy"], case.mask, ceiling=1.0)
    )
    check_outside(found, case)


@brief
@given(case=rich_cases(), other=rich_cases())
def test_classes_are_evened_out_over_steps(case, other):
    estimator, state, factors = estimators.balanced_classes(momentum=0.5), None, [None, None]
    for own in (case, other):
        found, state = step(estimator, own, state)
        arrays = (own.extras["right"], own.valid, own.mask)
        expected, factors = filters.balanced_classes(own.advantage, *arrays, factors, momentum=0.5)
        valid = (own.valid > 0)[:, None]
        assert_close(np.where(valid, found.advantage, 0), np.where(valid, expected, 0))
        check_outside(found, own)


@brief
@given(case=rich_cases())
def test_a_share_fades(case):
    state = dict.fromkeys((False, True))
    for number in range(3):
        for rest in state:
            found, state[rest] = step(estimators.fading(start=0.75, rate=0.5, rest=rest), case, state[rest])
            expected = filters.fading(case.advantage, case.mask, number, start=0.75, rate=0.5, rest=rest)
            assert_close(found.advantage, expected)


@pytest.mark.parametrize("options", [{}, {"bad": 0.5, "good": 3.0}])
@brief
@given(case=rich_cases())
def test_conflict_weighting(options, case):
    found = run(estimators.conflict_weighting(**options), case)
    arrays = (case.fields["tokens"], case.valid, case.mask, case.group)
    assert_close(found.advantage, filters.conflict_weighting(case.advantage, *arrays, **options))
    check_outside(found, case)


@brief
@given(case=rich_cases())
def test_conflict_mean(case):
    found = run(estimators.chain(estimators.conflict_weighting(), estimators.conflict_mean()), case)
    arrays = (case.fields["tokens"], case.valid, case.mask, case.group)
    assert_close(found.weight, filters.conflict_mean(*arrays, case.advantage))


def test_conflicts_by_hand():
    """Tokens 1 1 are shared from the start, 9 at the end of both; the good answer is one token longer."""
    rollouts = Rollouts(
        tokens=np.array([[1, 1, 2, 3, 9], [1, 1, 4, 9, 0]], np.int32), length=np.array([5, 4]),
        mask=np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], np.float32), rewards=np.zeros((2, 1), np.float32),
        group=np.zeros(2, np.int32), advantage=np.array([[1, 1, 1, 1, 1], [-1, -1, -1, -1, 0]], np.float32),
    )  # fmt: skip
    found = once(estimators.conflict_weighting(), rollouts).advantage
    np.testing.assert_array_equal(found, [[2, 2, 1, 1, 2], [0, 0, -1, 0, 0]])
    both = once(estimators.chain(estimators.conflict_weighting(), estimators.conflict_mean()), rollouts)
    np.testing.assert_array_equal(both.extras["conflicts"], [[1, 1, 0, 0, 1], [1, 1, 0, 1, 0]])
    np.testing.assert_allclose(both.weight.sum(axis=1), [1 / 6, 1 / 6], rtol=1e-6)


@pytest.mark.parametrize("sharpness", [0.0, 2.0])
@brief
@given(case=rich_cases())
def test_max_entropy_weight(sharpness, case):
    found = run(estimators.max_entropy_weight(sharpness=sharpness, threshold=THRESHOLD, component=COMPONENT), case)
    arrays = (*component(case), case.mask, case.group)
    expected = filters.max_entropy_weight(case.advantage, *arrays, sharpness=sharpness, threshold=THRESHOLD)
    assert_close(found.advantage, expected)
    check_outside(found, case)


@pytest.mark.parametrize("options", [{}, {"entropy_weight": 0.1, "temperature": 0.3}])
@brief
@given(case=rich_cases())
def test_entropy_guided_weight(options, case):
    case.advantage = np.clip(case.advantage, -3, 3)
    found = run(estimators.entropy_guided_weight(**options), case)
    arrays = (case.extras["proximal_entropy"], case.valid, case.mask, case.group)
    assert_close(found.advantage, filters.entropy_guided_weight(case.advantage, *arrays, **options), rtol=1e-4, atol=1e-5)
    check_outside(found, case)


@pytest.mark.parametrize("strength", [0.0417, 1.0])
@brief
@given(case=rich_cases())
def test_semantic_entropy_weight(strength, case):
    found = run(estimators.semantic_entropy_weight(strength=strength), case)
    arrays = (case.extras["answer"], case.behavior_logp, case.valid, case.mask, case.group)
    expected = filters.semantic_entropy_weight(case.advantage, *arrays, strength=strength)
    keep = case.valid[:, None] > 0
    assert_close(np.where(keep, found.advantage, 0), np.where(keep, expected, 0), rtol=1e-4)
    check_outside(found, case)


@brief
@given(case=rich_cases())
def test_exponential_weight(case):
    case.advantage = np.clip(case.advantage, -3, 3)
    found = run(estimators.exponential_weight(temperature=0.7), case)
    assert_close(found.advantage, filters.exponential_weight(case.advantage, case.mask, temperature=0.7), rtol=1e-4)
    check_outside(found, case)


@pytest.mark.parametrize("strength", [0.0, 1.5])
@brief
@given(case=rich_cases())
def test_group_gap_weight(strength, case):
    case.extras["easy"] = (np.abs(case.extras["greedy_reward"]) / 0.75).astype(np.float32)
    found = run(estimators.group_gap_weight(strength=strength), case)
    score, present = scores_of(case)
    expected = filters.group_gap_weight(case.advantage, score, present, case.extras["easy"], case.mask, strength=strength)
    keep = present[:, None] > 0
    assert_close(np.where(keep, found.advantage, 0), np.where(keep, expected, 0), rtol=1e-3, atol=1e-3)
    check_outside(found, case)


@brief
@given(case=rich_cases())
def test_down_sample(case):
    options = {"rows": (0.5, 1.0), "tokens": (0.25, 0.5), "steps_total": 2}
    estimator, state = estimators.down_sample(**options), None
    for number in range(4):
        found, state = step(estimator, case, state)
        entropy = case.extras["proximal_entropy"]
        wanted, best, variance, share = filters.down_sample(number, case.advantage, entropy, case.valid, case.mask, **options)
        kept = np.flatnonzero(found.valid)
        assert len(kept) == wanted
        assert_close(variance(list(kept)), best, rtol=1e-3, atol=1e-4)
        _check_tokens(found, case, kept, share)


def _check_tokens(found, case, kept, share):
    """Of the actions of the kept rows, those with the largest |A| H; more than wanted only where they tie."""
    inside = (case.mask > 0) & np.isin(np.arange(len(case.mask)), kept)[:, None]
    merit = np.abs(case.advantage * case.extras["proximal_entropy"])[inside]
    chosen = found.mask[inside] > 0
    wanted = int(np.ceil(share * inside.sum() - 1e-4))
    assert chosen.sum() >= wanted and not (found.mask * ~inside).any() and not found.advantage[found.mask == 0].any()
    if 0 < wanted < len(merit):
        assert merit[chosen].min() >= merit[~chosen].max(initial=0)
        assert (merit[chosen] > merit[chosen].min()).sum() <= wanted


@pytest.mark.parametrize("keep", ["best_and_random", "best_and_worst", "best"])
@brief
@given(case=rich_cases())
def test_policy_filtration(keep, case):
    estimator = estimators.policy_filtration(keep=keep)
    for seed in range(3):
        found, _ = step(estimator, case, seed=seed)
        expected = filters.policy_filtration(*scores_of(case), case.group, case.behavior_logp, case.mask, keep=keep)
        for number, (must, count) in expected.items():
            kept = set(np.flatnonzero((found.valid > 0) & (case.group == number)))
            assert must <= kept and len(kept) == count
        assert not found.valid[~np.isin(case.group, list(expected))].any()


def test_random_rows_come_from_the_key():
    rollouts = few(np.arange(6.0)[:, None])
    estimator = estimators.policy_filtration()
    drawn = {tuple(np.asarray(estimator.update(rollouts, (), jax.random.key(seed))[0].valid)) for seed in range(30)}
    assert len(drawn) == 5


@pytest.mark.parametrize("emphasis", ["power", "largest", "largest_and_random"])
@brief
@given(case=rich_cases())
def test_resample_by_score(emphasis, case):
    case.fields["weight"] = np.ones(case.mask.shape, np.float32)
    found, _ = step(estimators.resample_by_score(emphasis=emphasis), case)
    score, present = scores_of(case)
    chance = filters.resample_by_score(score, present, emphasis=emphasis)
    counts = found.weight[:, 0]
    assert counts.sum() == (present.sum() if sum(chance) else 0)
    assert not counts[np.asarray(chance) < 1e-6].any() or max(chance) < 1e-6


def test_resampling_draws_as_often_as_it_should():
    rollouts = few(np.array([[1.0], [2.0], [0.0], [3.0]]))
    score = [1.0, 2.0, 0.0, 3.0]
    chance = np.asarray(filters.resample_by_score(score, [1.0] * 4, emphasis="power"))
    rollouts = rollouts.replace(weight=np.ones((4, 4), np.float32))
    draw = jax.jit(jax.vmap(lambda key: estimators.resample_by_score().update(rollouts, (), key)[0].weight[:, 0]))
    counts = draw(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_allclose(np.mean(counts, axis=0) / 4, chance, atol=0.02)


@brief
@given(case=rich_cases())
def test_drop_surplus_negatives(case):
    found = run(estimators.drop_surplus_negatives(), case)
    mean = np.array([row[m > 0].mean() if m.any() else 0 for row, m in zip(case.advantage, case.mask, strict=True)])
    for number, kept in filters.drop_surplus_negatives(case.advantage, case.valid, case.mask, case.group).items():
        own = (case.group == number) & (case.valid > 0)
        assert (found.valid[own & (mean < 0)] > 0).sum() == kept
        assert (found.valid[own & (mean >= 0)] > 0).all()


@pytest.mark.parametrize(("estimator", "message"), [
    (lambda: estimators.entropy_guided_weight(temperature=0.0), "temperature is 0.0"),
    (lambda: estimators.exponential_weight(temperature=-1.0), "temperature is -1.0"),
    (lambda: estimators.policy_filtration(keep="all"), "keep is 'all'"),
    (lambda: estimators.resample_by_score(emphasis="all"), "emphasis is 'all'"),
    (lambda: estimators.resample_by_score(emphasis="largest", power=3.0), "power is 3.0, which the emphasis 'largest'"),
    (lambda: estimators.down_sample(rows=(0.0, 1.0), steps_total=1), "rows is"),
    (lambda: estimators.down_sample(steps_total=0), "steps_total is 0"),
])  # fmt: skip
def test_refusals_of_selections(estimator, message):
    with pytest.raises(ValueError, match=message):
        once(estimator(), few(np.zeros((2, 1)), proximal_entropy=np.zeros((2, 4))))


@pytest.mark.parametrize("estimator", [
    estimators.semantic_entropy_weight(), estimators.unlikeliness_reward(), estimators.best_and_worst(),
    estimators.optimal_token_baseline(), estimators.down_sample(steps_total=3), estimators.policy_filtration(),
])  # fmt: skip
@brief
@given(case=rich_cases())
def test_impossible_tokens_leave_everything_finite(estimator, case):
    """Log-probabilities of -inf, of the sampler and of the policy before the step."""
    for name in ("behavior_logp", "reference_logp"):
        values = getattr(case, name)
        values[:, ::2] = np.where(case.mask[:, ::2] > 0, -np.inf, np.nan)
    case.advantage = np.nan_to_num(case.advantage)
    case.extras["proximal_logp"] = case.reference_logp
    case.extras["proximal_log_collision"][:, 1::2] = -np.inf
    found = run(estimator, case)
    check_outside(found, case)
    assert np.isfinite(found.valid).all() and not np.isinf(found.rewards).any()
    assert np.isfinite(found.extras.get("preference", 0.0)).all()
