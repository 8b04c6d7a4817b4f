"""The forest: every action once, read behind what stands before it, and what is common read once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_llm.data import pack_forest
from jaxrl_llm.data.forest import leaves_of, rows_of, step_up, width_of
from jaxrl_llm.data.packing import place_rows, unpack
from jaxrl_llm.types import Rollouts

modest = settings(max_examples=60, deadline=None, derandomize=True)
# Texts of few different tokens, so that they share beginnings, end in others, and are equal or empty.
texts = st.lists(st.lists(st.integers(0, 2), max_size=9), min_size=1, max_size=12)


def rollouts_of(rows, prompt=2, seed=0) -> Rollouts:
    """Rows of a prompt of so many tokens and an answer; every third answer has a token in it that is no action."""
    random, width = np.random.default_rng(seed), 12
    tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.float32)
    length = np.array([min(len(row), width) for row in rows], np.int32)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
        mask[number, prompt : len(row)] = 1
        if number % 3 == 0 and len(row) > prompt + 1:
            mask[number, prompt] = 0
    return Rollouts(
        tokens=tokens,
        length=length,
        mask=mask,
        rewards=np.zeros((len(rows), 1), np.float32),
        group=random.integers(0, len(rows), len(rows)).astype(np.int32),
        advantage=random.normal(size=mask.shape).astype(np.float32),
        weight=random.random(mask.shape).astype(np.float32) * mask,
        extras={"per_row": random.normal(size=len(rows)).astype(np.float32)},
    )


def path_to(forest, row, column):
    """Columns from the root to a column, by the rule of who sees whom."""
    return [key for key in range(column + 1) if column < forest.reach[row, key]]


@modest
@given(texts, st.integers(0, 2), st.sampled_from([None, 12, 17, 40]))
def test_each_action_stands_once_behind_its_own_past(rows, prompt, width):
    rollouts = rollouts_of(rows, prompt)
    batch = pack_forest(rollouts, width)
    forest, seen = batch.forest, []
    for row, place in zip(*np.nonzero(batch.segment), strict=True):
        member, position = batch.rollout[row, place], batch.positions[row, place]
        seen.append((member, position))
        own = path_to(forest, row, batch.column[row, place])
        assert forest.tokens[row, own].tolist() == rollouts.tokens[member, : position + 1].tolist()
        assert forest.positions[row, own].tolist() == list(range(position + 1))
        assert batch.index[row, place] == (own[-2] if position else -1)
        for name in ("tokens", "mask", "advantage", "weight"):
            assert getattr(batch, name)[row, place] == getattr(rollouts, name)[member, position]
        assert batch.extras["per_row"][row, place] == rollouts.extras["per_row"][member]
    acted = rollouts.mask > 0
    last = (np.arange(12) == rollouts.length[:, None] - 1) & acted.any(axis=1, keepdims=True)
    assert sorted(seen) == sorted(zip(*np.nonzero(acted | last), strict=True))


@modest
@given(texts)
def test_a_row_reads_what_its_rollouts_have_in_common_once(rows):
    rollouts = rollouts_of(rows, prompt=0)
    batch = pack_forest(rollouts, 128)
    read = {tuple(row[: end + 1]) for row in rows for end in range(len(row)) if rollouts.mask[rows.index(row)].any()}
    if len(batch.tokens) == 1:
        assert int((batch.forest.reach > 0).sum()) == len(read)


@modest
@given(texts, st.integers(10, 30))
def test_rows_hold_every_leaf_once_and_never_overflow(rows, width):
    rollouts = rollouts_of(rows, prompt=0)
    leaves = leaves_of(rollouts)
    layout = rows_of(leaves, rollouts.group[leaves.member], width)
    assert sorted(leaf for row in layout for leaf in row) == list(range(len(leaves.member)))
    for row in layout:
        beginnings = {tuple(rows[leaves.member[leaf]][:end]) for leaf in row for end in range(1, leaves.length[leaf] + 1)}
        assert len(beginnings) <= width


def test_groups_stay_together_where_there_is_room():
    """Four prompts of 30 tokens with four answers of 5 each take one row of 50 a prompt."""
    rows = [[prompt] * 30 + [9, answer, 1, 2, 3] for answer in range(4) for prompt in range(4)]
    rollouts = Rollouts(
        tokens=np.array(rows, np.int32), length=np.full(16, 35, np.int32), rewards=np.zeros((16, 1), np.float32),
        mask=np.tile((np.arange(35) >= 31).astype(np.float32), (16, 1)), group=np.arange(16, dtype=np.int32) % 4,
    )  # fmt: skip
    batch = pack_forest(rollouts, 50)
    assert len(batch.tokens) == 4 and ((batch.forest.reach > 0).sum(axis=1) == 30 + 1 + 4 * 4).all()
    leaves = leaves_of(rollouts)
    assert width_of(leaves, rollouts.group[leaves.member]) == 192


def test_few_shapes_serve_steps_of_many_lengths_with_little_filling():
    """Sixteen prompts of 32 tokens, eight answers each of 1 to 512 tokens, 41 in the middle, in ten steps."""
    shapes, filled = set(), []
    for seed in range(10):
        random = np.random.default_rng(seed)
        lengths = np.minimum(random.geometric(1 / 41, 128), 512).astype(np.int32)
        place = np.arange(544)
        rollouts = Rollouts(
            tokens=np.where(place < 32, np.arange(128)[:, None] // 8, random.integers(20, 4096, (128, 544))).astype(np.int32),
            length=32 + lengths, rewards=np.zeros((128, 1), np.float32), group=np.arange(128, dtype=np.int32) // 8,
            mask=((place >= 32) & (place < 32 + lengths[:, None])).astype(np.float32),
        )  # fmt: skip
        batch = pack_forest(rollouts, part_tokens=2048)
        computed = batch.forest.tokens.size * (batch.parts > 0).mean()
        filled.append(int((batch.forest.reach > 0).sum()) / computed)
        shapes.add((batch.tokens.shape, batch.forest.tokens.shape, len(batch.parts)))
    assert len(shapes) <= 4 and np.median(filled) > 0.85


def test_a_rollout_that_is_too_long_is_named():
    with pytest.raises(ValueError, match="rollout 1 has 5 tokens; a packed row has 4: raise the width of rows"):
        pack_forest(rollouts_of([[1, 1, 1], [2, 2, 2, 2, 2]]), 4)


def test_rows_without_actions_and_those_that_are_not_kept_are_not_read():
    rollouts = rollouts_of([[1, 1], [1, 1, 2], [2, 2, 2, 2]])
    batch = pack_forest(rollouts, keep=np.array([True, True, False]))
    assert set(batch.rollout[batch.segment > 0].tolist()) == {1}
    nothing = pack_forest(rollouts_of([[1, 1], []]))
    assert not nothing.segment.any() and not nothing.forest.reach.any() and len(nothing.tokens) == 1


def test_values_come_back_to_their_places():
    rollouts = rollouts_of([[1, 1, 2, 2], [1, 1, 2, 0], [0, 2, 1]])
    found = unpack(pack_forest(rollouts).advantage, pack_forest(rollouts), *rollouts.tokens.shape)
    np.testing.assert_array_equal(found[rollouts.mask > 0], rollouts.advantage[rollouts.mask > 0])


def test_micro_batches_hold_equal_rows_the_full_ones_first():
    placed = place_rows(7, 100, part_tokens=250)
    assert placed.count == 8 and placed.parts.tolist() == [2, 2, 2, 1]
    # Rows m, m + 4 make the m-th micro-batch.
    assert placed.slots.tolist() == [0, 4, 1, 5, 2, 6, 3]
    assert place_rows(9, 100, part_tokens=250).parts.tolist() == [2, 2, 2, 2, 1, 0, 0, 0]
    assert place_rows(2, 100, part_tokens=250).parts.tolist() == [2]
    assert place_rows(5, 100, part_tokens=250, multiple=4).parts.tolist() == [4, 1]
    assert place_rows(5, 100, parts=2).parts.tolist() == [3, 2]


def test_widths_come_in_two_sizes_an_octave():
    assert [step_up(n) for n in (1, 16, 17, 24, 25, 33, 48, 49, 100, 1088)] == [16, 16, 24, 24, 32, 48, 48, 64, 128, 1536]
