"""Ratios, bounds and masks in small cases that can be computed by hand."""

import numpy as np
import pytest

from jaxrl_llm import objectives
from jaxrl_llm.objectives import policy, score_function
from jaxrl_llm.types import Batch, Scores

HALF, DOUBLE = np.log(0.5), np.log(2.0)


def build(log_ratio, advantage=1.0, *, behavior=-1.0, **fields):
    """One row, all of it actions, whose log-ratios are given."""
    log_ratio = np.asarray(log_ratio, np.float32)[None]
    shape = log_ratio.shape
    extras = {name: np.broadcast_to(value, shape) for name, value in fields.pop("extras", {}).items()}
    batch = Batch(
        tokens=np.zeros(shape, np.int32),
        mask=np.ones(shape, np.float32),
        advantage=np.broadcast_to(np.float32(advantage), shape),
        behavior_logp=np.full(shape, behavior, np.float32),
        extras=extras,
        **fields,
    )
    return Scores(logp=batch.behavior_logp + log_ratio), batch


def test_ratios_of_a_sequence():
    scores, batch = build([DOUBLE, DOUBLE, HALF], segment=np.array([[1, 1, 1]]))
    expected = {"sequence_ratio": DOUBLE / 3, "sequence_total_ratio": DOUBLE, "sequence_token_ratio": DOUBLE / 3}
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(objectives, name)()(scores, batch), [[value] * 3], rtol=1e-6)


def test_prefix_ratio_takes_the_smallest_before():
    """Ratios 2, 1/2, 4, and a second sequence 4, 2: products with the smallest earlier one."""
    scores, batch = build([DOUBLE, HALF, 2 * DOUBLE, 2 * DOUBLE, DOUBLE], segment=np.array([[1, 1, 1, 2, 2]]))
    found = np.exp(objectives.prefix_ratio()(scores, batch))
    np.testing.assert_allclose(found, [[2.0, 1.0, 2.0, 4.0, 8.0]], rtol=1e-5)


def test_turn_ratio_is_of_a_turn():
    scores, batch = build([DOUBLE, HALF, DOUBLE, DOUBLE], extras={"turn": np.array([0, 0, 1, 1])})
    np.testing.assert_allclose(objectives.turn_ratio()(scores, batch), [[0.0, 0.0, DOUBLE, DOUBLE]], atol=1e-6)


@pytest.mark.parametrize(("advantage", "expected"), [(1.0, 0.3), (-1.0, DOUBLE)])
def test_geometric_ratio_clips_where_the_advantage_points(advantage, expected):
    found = objectives.geometric_ratio(high=0.3)(*build([DOUBLE], advantage))
    np.testing.assert_allclose(found, [[expected]], rtol=1e-6)


def test_probability_clip_at_one_half():
    """q = 1/2, low = 0.105, high = 0.12: r^2 - r = 0.24 at 1.2, and = -0.21 at 0.7."""
    trust = objectives.probability_clip(low=0.105, high=0.12)
    scores, batch = build(np.log([0.6, 0.75, 1.1, 1.5]), np.array([-1.0, -1.0, 1.0, 1.0]), behavior=np.log(0.5))
    loss = trust(objectives.token_ratio()(scores, batch), scores, batch)
    np.testing.assert_allclose(loss, [[0.7, 0.75, -1.1, -1.2]], rtol=1e-5)


def test_balanced_clip_raises_the_lower_bound_first():
    """N = 2.2 c_low is above P = c_high = 1.2 at 0.6, and ends at 1.76 with c_low = 0.8, which P passes at c_high = 1.8."""
    weight = np.full((1, 3), 1 / 3, np.float32)
    scores, batch = build(np.log([4.0, 0.5, 0.5]), np.array([1.0, -1.1, -1.1]), weight=weight)
    trust = objectives.balanced_clip(lower=(0.6, 0.8), upper=(1.2, 3.0), step=0.2, dual=None)
    loss = trust(objectives.token_ratio()(scores, batch), scores, batch)
    np.testing.assert_allclose(loss, [[-1.8, 0.88, 0.88]], rtol=1e-5)


def test_second_moment_mask_drops_the_largest():
    """Squares 0.01, 0.04, 0.25: the mean 0.1 is above 0.05, that of the first two, 0.025, below."""
    found = objectives.second_moment_mask(budget=0.05)(*build([0.1, -0.2, 0.5]))
    np.testing.assert_array_equal(found, [[1.0, 1.0, 0.0]])


def test_divergence_mask_lets_rare_tokens_move():
    """A rare token may double, a likely one may not; what leads back is never masked."""
    scores, batch = build(np.log([2.0, 1.3, 1.3]), np.array([1.0, 1.0, -1.0]))
    batch = batch.replace(behavior_logp=np.log(np.array([[0.01, 0.6, 0.6]], np.float32)))
    scores = scores.replace(logp=batch.behavior_logp + np.log(np.array([[2.0, 1.3, 1.3]], np.float32)))
    np.testing.assert_array_equal(objectives.divergence_mask()(scores, batch), [[1.0, 0.0, 1.0]])
    np.testing.assert_array_equal(objectives.divergence_mask(symmetric=True)(scores, batch), [[1.0, 0.0, 0.0]])


def test_top_entropy_mask_interpolates_the_quantile():
    """Of 0, 1, 2, 3 the quantile 1/2 is 1.5."""
    scores, batch = build(np.zeros(4))
    scores = scores.replace(entropy=np.array([[3.0, 0.0, 2.0, 1.0]], np.float32))
    np.testing.assert_array_equal(objectives.top_entropy_mask(share=0.5)(scores, batch), [[1.0, 0.0, 1.0, 0.0]])


@pytest.mark.parametrize(("kept", "options"), [
    ([1, 1, 0], {"kind": "k1", "over": "token", "high": 1.0}),
    ([0, 0, 0], {"kind": "k1", "over": "max", "high": -np.log(1e-4)}),
    ([1, 1, 1], {"kind": "k1", "over": "max", "high": -np.log(1e-6)}),
    ([0, 0, 0], {"kind": "k1", "over": "mean", "high": 3.0}),
    ([1, 1, 1], {"kind": "k1", "over": "mean", "high": 4.0}),
])  # fmt: skip
def test_rejection_and_veto(kept, options):
    """Ratios 1, 1 and 1e-5: the last token is far off, and a veto takes its whole sequence along."""
    scores, batch = build([0.0, 0.0, np.log(1e-5)], segment=np.array([[1, 1, 1]]))
    np.testing.assert_array_equal(objectives.rejection(of="policy", **options)(scores, batch), [kept])


def test_weights_outside_of_the_bounds():
    scores, batch = build(np.log([0.1, 1.0, 4.0]))
    for outside, expected in (("truncate", [0.5, 1.0, 2.0]), ("mask", [0.0, 1.0, 0.0])):
        factor = objectives.importance_weight(low=0.5, high=2.0, outside=outside, of="policy")
        np.testing.assert_allclose(factor(scores, batch), [expected], rtol=1e-6)


def test_nft_of_wrong_answers_is_bounded_in_value():
    """q = 1/2, r = 3/2: the implicit ratio (1 - 3/4) / (1/2) = 1/2 is below the floor, and the loss is log 1 = 0."""
    scores, batch = build([np.log(1.5)], extras={"correct": np.array([0.0]), "accuracy": np.array([0.5])})
    loss = objectives.nft()(objectives.token_ratio()(scores, batch), scores, batch)
    np.testing.assert_allclose(loss, [[0.0]], atol=1e-7)
    lower = objectives.nft(floor=0.1)(objectives.token_ratio()(scores, batch), scores, batch)
    np.testing.assert_allclose(lower, [[np.log(2.0)]], rtol=1e-6)


def test_factors_leave_the_denominator():
    """A masked token takes its loss away; the weights of the others stay."""
    scores, batch = build([0.0, 0.0], np.array([1.0, -1.0]))
    term = policy(trust=score_function(), factors=(objectives.positive_advantage(),))
    loss, _ = objectives.objective(term)(scores, batch)
    np.testing.assert_allclose(loss, 0.5, rtol=1e-6)


@pytest.mark.parametrize("count", [3, 11, 41])
@pytest.mark.parametrize("value", [0.3, 1.7, 2.1])
def test_equal_entropies_are_all_among_the_highest(count, value):
    """A line between two equal numbers may miss them by a bit, and the mask was 0 everywhere."""
    scores, batch = build(np.zeros(count))
    scores = scores.replace(entropy=np.full((1, count), value, np.float32))
    np.testing.assert_array_equal(objectives.top_entropy_mask(share=0.23)(scores, batch), 1.0)


def test_the_entry_at_the_quantile_is_among_the_highest():
    scores, batch = build(np.zeros(11))
    scores = scores.replace(entropy=np.arange(11, dtype=np.float32)[None])
    np.testing.assert_array_equal(objectives.top_entropy_mask(share=0.2)(scores, batch)[0], np.arange(11) >= 8)
