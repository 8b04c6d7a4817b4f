"""Packing: every token once, with everything that belongs to it, and back again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_llm.data.packing import first_fit, has_weight, pack, round_up, unpack
from jaxrl_llm.types import Rollouts

modest = settings(max_examples=50, deadline=None, derandomize=True)
lengths_and_width = st.integers(1, 20).flatmap(lambda w: st.tuples(st.lists(st.integers(0, w), max_size=12), st.just(w)))


def rollouts_of(lengths, width=8, seed=0) -> Rollouts:
    random = np.random.default_rng(seed)
    shape = (len(lengths), width)
    inside = np.arange(width) < np.asarray(lengths, np.int32).reshape(-1, 1)
    return Rollouts(
        tokens=np.where(inside, random.integers(1, 99, shape), 77).astype(np.int32),
        length=np.asarray(lengths, np.int32),
        mask=(inside & (random.random(shape) < 0.6)).astype(np.float32),
        rewards=np.zeros((len(lengths), 1), np.float32),
        group=random.integers(0, max(len(lengths), 1), len(lengths)).astype(np.int32),
        behavior_logp=np.where(inside, random.normal(size=shape), np.nan).astype(np.float32),
        advantage=random.normal(size=shape).astype(np.float32),
        weight=random.random(shape).astype(np.float32),
        extras={
            "reference_logp": random.normal(size=shape).astype(np.float32),
            "returns": random.normal(size=shape).astype(np.float32),
            "per_row": random.normal(size=len(lengths)).astype(np.float32),
            "vector": random.normal(size=(*shape, 3)).astype(np.float32),
        },
    )


@modest
@given(lengths_and_width)
def test_first_fit_places_every_sequence_once_and_never_overfills(case):
    lengths, width = case
    rows = first_fit(lengths, width)
    assert sorted(number for row in rows for number in row) == [n for n, length in enumerate(lengths) if length]
    assert all(0 < sum(lengths[number] for number in row) <= width for row in rows)
    assert all(row == sorted(row) for row in rows) and [row[0] for row in rows] == sorted(row[0] for row in rows)


@modest
@given(lengths_and_width)
def test_first_fit_leaves_no_two_rows_half_empty(case):
    """Were two rows at most half full, the later one's sequences would have fitted into the earlier one."""
    lengths, width = case
    filled = [sum(lengths[number] for number in row) for row in first_fit(lengths, width)]
    assert sum(2 * tokens <= width for tokens in filled) <= 1


@modest
@given(lengths_and_width)
def test_first_fit_is_what_a_walk_over_the_rows_finds(case):
    lengths, width = case
    rows, room = [], []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        place = next((row for row, left in enumerate(room) if left >= lengths[number]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(width)
        rows[place].append(number)
        room[place] -= lengths[number]
    assert first_fit(lengths, width) == sorted(
        sorted(n for n in row if lengths[n]) for row in rows if any(lengths[n] for n in row)
    )


def test_first_fit_by_hand():
    assert first_fit([2, 6, 3, 5], 8) == [[0, 1], [2, 3]]
    assert first_fit([0, 0], 8) == [] and first_fit([], 8) == []
    with pytest.raises(ValueError, match="sequence 1 has 9 tokens; a packed row has 8"):
        first_fit([3, 9], 8)


@modest
@given(st.lists(st.integers(0, 8), min_size=1, max_size=8), st.integers(8, 20))
def test_every_token_keeps_what_belongs_to_it(lengths, width):
    rollouts = rollouts_of(lengths)
    batch = pack(rollouts, width)
    placed = 0
    for row, column in np.argwhere(batch.segment > 0):
        number, position = batch.rollout[row, column], batch.positions[row, column]
        placed += 1
        assert position < lengths[number]
        assert batch.group[row, column] == rollouts.group[number]
        for name in ("tokens", "mask", "advantage", "weight", "behavior_logp"):
            assert getattr(batch, name)[row, column] == getattr(rollouts, name)[number, position], name
        assert batch.reference_logp[row, column] == rollouts.extras["reference_logp"][number, position]
        assert batch.returns[row, column] == rollouts.extras["returns"][number, position]
        assert batch.extras["per_row"][row, column] == rollouts.extras["per_row"][number]
        assert (batch.extras["vector"][row, column] == rollouts.extras["vector"][number, position]).all()
    assert placed == sum(lengths)
    assert len({(batch.rollout[p], batch.positions[p]) for p in map(tuple, np.argwhere(batch.segment > 0))}) == placed


@modest
@given(st.lists(st.integers(0, 8), min_size=1, max_size=8), st.integers(8, 20))
def test_padding_is_zero_and_segments_are_contiguous(lengths, width):
    batch = pack(rollouts_of(lengths), width)
    padding = batch.segment == 0
    for values in (batch.tokens, batch.mask, batch.weight, batch.advantage, batch.behavior_logp, batch.positions):
        assert not values[padding].any()
    for row in range(len(batch.tokens)):
        used = batch.segment[row][batch.segment[row] > 0]
        assert (np.diff(used) >= 0).all() and set(used) == set(range(1, used.max(initial=0) + 1))
        assert not batch.segment[row][len(used) :].any()


@modest
@given(st.lists(st.integers(0, 8), min_size=1, max_size=8), st.integers(8, 20))
def test_unpack_undoes_pack(lengths, width):
    rollouts = rollouts_of(lengths)
    batch = pack(rollouts, width)
    inside = np.arange(8) < np.asarray(lengths)[:, None]
    np.testing.assert_array_equal(unpack(batch.advantage, batch, len(lengths), 8), np.where(inside, rollouts.advantage, 0))
    vector = rollouts.extras["vector"]
    np.testing.assert_array_equal(
        unpack(batch.extras["vector"], batch, len(lengths), 8), np.where(inside[..., None], vector, 0)
    )


def test_total_weight_does_not_change():
    rollouts = rollouts_of([3, 8, 1, 0, 5])
    expected = sum(rollouts.weight[n, :length].sum() for n, length in enumerate(rollouts.length))
    for width in (8, 11, 20):
        np.testing.assert_allclose(pack(rollouts, width).weight.sum(), expected, rtol=1e-6)


def test_only_kept_rows_are_laid_down():
    rollouts = rollouts_of([3, 8, 1, 5])
    batch = pack(rollouts, 8, keep=np.array([True, False, True, False]))
    assert set(batch.rollout[batch.segment > 0]) == {0, 2}


def test_rows_without_weight():
    rollouts = rollouts_of([3, 2])
    rollouts = rollouts.replace(weight=np.stack([np.zeros(8), np.r_[0, -0.5, np.zeros(6)]]))
    np.testing.assert_array_equal(has_weight(rollouts), [False, True])


def test_number_of_rows():
    rollouts = rollouts_of([8, 8, 8])
    assert pack(rollouts, 8).tokens.shape == (3, 8)
    assert pack(rollouts, 8, multiple=4).tokens.shape == (4, 8)
    assert pack(rollouts, 8, rows=5, multiple=2).tokens.shape == (6, 8)
    with pytest.raises(ValueError, match="rows is 2; the rollouts need 3"):
        pack(rollouts, 8, rows=2)


def test_nothing_to_pack_gives_one_row_of_padding():
    batch = pack(rollouts_of([0, 0]), 8)
    assert batch.tokens.shape == (1, 8) and not batch.segment.any() and not batch.weight.any()


def test_round_up():
    assert [round_up(n) for n in (0, 1, 7, 8, 9, 10, 11, 13, 17, 33)] == [1, 1, 7, 8, 10, 10, 12, 14, 20, 40]
    for count in range(1, 500):
        assert count <= round_up(count) <= 1.25 * count + 1 and round_up(round_up(count)) == round_up(count)


def test_step_and_coefficients():
    batch = pack(rollouts_of([3]), 8, step=5, coefficients={"beta": np.float32(0.1)})
    assert batch.step == 5 and batch.coefficients == {"beta": np.float32(0.1)}
