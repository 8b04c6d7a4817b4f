"""The order of a data set and its cursor."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_llm import data
from jaxrl_llm.data import Cursor, weighted_indices

SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 2**32)


@given(size=SIZES, seed=SEEDS, epoch=st.integers(0, 1000))
def test_every_epoch_is_a_permutation(size, seed, epoch):
    assert sorted(data.epoch_order(size, seed, epoch)) == list(range(size))


@given(size=SIZES, seed=SEEDS, counts=st.lists(st.integers(0, 100), max_size=6))
def test_any_split_of_the_calls_gives_the_same_stream(size, seed, counts):
    cursor, parts = data.Cursor(), []
    for count in counts:
        indices, cursor = data.next_indices(size, cursor, count, seed)
        assert len(indices) == count and indices.dtype == np.int64
        parts += indices.tolist()
    whole, last = data.next_indices(size, data.Cursor(), sum(counts), seed)
    assert parts == whole.tolist()
    assert cursor == last == divmod(sum(counts), size)


@given(size=SIZES, seed=SEEDS, epochs=st.integers(1, 4))
def test_no_remainder_of_an_epoch_is_dropped(size, seed, epochs):
    indices, cursor = data.next_indices(size, data.Cursor(), size * epochs, seed)
    assert np.array_equal(indices, np.concatenate([data.epoch_order(size, seed, epoch) for epoch in range(epochs)]))
    assert cursor == (epochs, 0)


def test_epochs_and_seeds_differ():
    orders = [tuple(data.epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_the_order_is_pinned_and_the_same_in_another_process():
    code = "from jaxrl_llm.data.order import epoch_order; print(epoch_order(8, 3, 1).tolist())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == data.epoch_order(8, 3, 1).tolist() == [7, 3, 5, 6, 4, 0, 2, 1]


def test_the_order_cannot_be_edited():
    with pytest.raises(ValueError, match="read-only"):
        data.epoch_order(4, 0, 0)[0] = 1


def test_errors():
    with pytest.raises(ValueError, match="position 7 lies outside the 5 examples"):
        data.next_indices(5, (0, 7), 1, 0)
    with pytest.raises(ValueError, match="at least one example"):
        data.epoch_order(0, 0, 0)


def test_weighted_draws_are_different_examples_in_proportion_to_their_weights():
    weights = np.array([0.0, 1.0, 2.0, 4.0, 0.0, 1.0])
    first, cursor = np.zeros(6), Cursor()
    for _ in range(4000):
        chosen, cursor = weighted_indices(weights, cursor, 2, seed=5)
        assert chosen[0] != chosen[1] and weights[chosen].all()
        first[chosen[0]] += 1
    np.testing.assert_allclose(first / 4000, weights / 8, atol=0.03)
    assert cursor == Cursor(*divmod(8000, 6))


def test_a_weighted_draw_is_a_function_of_seed_and_cursor():
    weights = np.arange(1.0, 9.0)
    chosen, after = weighted_indices(weights, Cursor(1, 3), 8, seed=2)
    assert sorted(chosen) == list(range(8)) and after == Cursor(2, 3)
    again, _ = weighted_indices(weights, Cursor(1, 3), 8, seed=2)
    np.testing.assert_array_equal(chosen, again)
    assert any((weighted_indices(weights, Cursor(1, 4), 8, seed=seed)[0] != chosen).any() for seed in (2, 3))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -1.0, 1.0], "the weight of example 1 is -1.0"),
        ([1.0, 1.0, np.nan], "the weight of example 2 is nan"),
        ([1.0, 0.0, 0.0], "1 examples have a weight above 0, and 2 are to be drawn"),
    ],
)
def test_impossible_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        weighted_indices(np.array(weights), Cursor(), 2, seed=0)
