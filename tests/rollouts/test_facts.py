"""Facts as arrays: kinds, missing ones, and characters as tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollouts.texts import collection_of
from training.tiny_facts import digit_rewards, rank

from jaxrl_llm.data import load_tokenizer
from jaxrl_llm.rewards import RewardPool
from jaxrl_llm.rewards.worker import Call, Fact, evaluate
from jaxrl_llm.rollouts.facts import token_span, with_facts

BYTES = load_tokenizer("bytes")
NAN = float("nan")


def test_whole_numbers_fractions_and_vectors_become_arrays():
    found = with_facts(
        collection_of("a", "b"), {"n": [1, 2], "x": [1, 0.5], "v": [[1, 2, 3], [4.0, 5, 6]]}, BYTES
    ).rollouts.extras
    assert found["n"].dtype == np.int32 and found["n"].tolist() == [1, 2]
    assert found["x"].dtype == np.float32 and found["x"].tolist() == [1, 0.5]
    np.testing.assert_array_equal(found["v"], [[1, 2, 3], [4, 5, 6]])


def test_spans_stand_at_the_tokens_of_their_characters_and_add_up():
    rollouts = with_facts(collection_of("aé日", "xy"), {"token_rewards": [[[1, 2, 0.5], [0, 3, 1.0]], []]}, BYTES).rollouts
    assert "token_rewards" not in rollouts.extras
    # "?" is the prompt; then a is one byte, é two and 日 three.
    np.testing.assert_array_equal(rollouts.token_rewards, [[0, 1, 1.5, 1.5, 1, 1, 1], [0] * 7])


def test_a_row_whose_fact_is_missing_takes_no_part():
    facts = {"n": [NAN, 2], "v": [[1.0], NAN], "s": [NAN, [[0, 1, 1.0]]]}
    rollouts = with_facts(collection_of("a", "b"), facts, BYTES).rollouts
    assert rollouts.valid.tolist() == [0, 0]
    assert rollouts.extras["n"].tolist() == [0, 2] and rollouts.extras["v"].tolist() == [[1], [0]]
    assert rollouts.extras["s"].tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, [1.0]], "number and vector"),
        ([[1.0], [1.0, 2.0]], r"vectors of \[1, 2\]"),
        ([[1.0], [[0, 1, 1]]], "spans and vector"),
        ([1, 2**31], "the fact 'n' is 2147483648 of a row; whole numbers must fit into 32 bits"),
        ([NAN, -(2**31) - 1], "the fact 'n' is -2147483649 of a row"),
    ],
)
def test_values_of_several_kinds_or_beyond_32_bits_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        with_facts(collection_of("a", "b"), {"n": values}, BYTES)


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=12), st.integers(0, 14), st.integers(0, 14))
def test_token_spans_are_those_of_the_bytes(text, first, last):
    first, last = sorted((first, last))
    ids = BYTES.encode(text)
    width = [len(character.encode()) for character in text]
    begin, end = sum(width[:first]), sum(width[:last])
    assert token_span(BYTES, ids, first, last) == (
        (begin, end) if end > begin else (token_span(BYTES, ids, first, last)[0],) * 2
    )


def test_functions_of_whole_groups_see_them_and_no_part_of_one():
    call = Call(["p"] * 5, ["aaa", "b", "cc", "d", ""], {}, [(0, 3), (1, 2), (0, 3), (1, 2), (0, 3)])
    assert [result.value for result in evaluate(Fact(rank), call)] == [2, 0, 1, 1, 0]
    alone = evaluate(Fact(rank), call.at([0]))
    assert np.isnan(alone[0].value) and "whole groups" in alone[0].reason
    assert "here are none" in evaluate(rank, Call(["p"], ["a"], {}))[0].reason


def test_facts_pass_through_worker_processes():
    call = (["p", "p"], ["a1", "22"], {})
    with RewardPool(1) as pool:
        values, failures = pool.score({"d": Fact(digit_rewards), "r": Fact(rank)}, *call, groups=[(0, 2), (0, 2)])
        assert values.tolist() == [[[[1, 2, 0.1]], 0], [[[0, 1, 0.1], [1, 2, 0.1]], 1]] and not failures
        plain, _ = pool.score({"r": rank}, *call, groups=[(0, 2), (0, 2)])
    assert plain.dtype == np.float64 and plain.tolist() == [[0], [1]]
