"""Form and length."""

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_llm import rewards


def test_format():
    reward = rewards.format_reward()
    good = " <think>a\nb</think>\n<answer>4</answer>\n"
    assert reward(["p"] * 3, [good, "x" + good, "<answer>4</answer>"], answer=["4"] * 3) == [1.0, 0.0, 0.0]
    assert pickle.loads(pickle.dumps(rewards.format_reward("a+")))(["p"], ["aa"]) == [1.0]


def test_soft_penalty():
    reward = rewards.length_soft_penalty(100, 20)
    lengths = [0, 80, 85, 90, 100, 300]
    assert reward(["p"] * 6, ["x"] * 6, completion_length=lengths) == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]


def test_lengths_are_counted_in_tokens_not_characters():
    for reward in (rewards.length_soft_penalty(10, 5), rewards.length_cosine(rewards.exact_match, 10)):
        short, long = (reward(["p"], [text], completion_length=[7], answer=["x"]) for text in ("y", "y" * 1000))
        assert short == long
        with pytest.raises(ValueError, match="'completion_length' is missing, there are \\['answer'\\]"):
            reward(["p"], ["x"], answer=["x"])


def test_cosine_by_hand():
    reward = rewards.length_cosine(rewards.exact_match, 100, correct=(2.0, 1.0), wrong=(-10.0, 0.0), exceeded=-7.0)
    completions = ["4", "4", "5", "5", "4", "5"]
    lengths = [0, 50, 0, 50, 100, 120]
    found = reward(["p"] * 6, completions, answer=["4"] * 6, completion_length=lengths)
    assert found == pytest.approx([2.0, 1.5, -10.0, -5.0, -7.0, -7.0])


@given(length=st.integers(0, 98), right=st.booleans())
def test_cosine_prefers_short_right_and_long_wrong_answers(length, right):
    reward = rewards.length_cosine(rewards.exact_match, 100)
    columns = {"answer": ["4"] * 2, "completion_length": [length, length + 1]}
    shorter, longer = reward(["p"] * 2, ["4" if right else "5"] * 2, **columns)
    assert shorter > longer if right else shorter < longer


def test_cosine_keeps_missing_values_missing():
    def unsure(prompts, completions, **columns):
        return [None, math.nan, 1]

    assert rewards.length_cosine(unsure, 10)(["p"] * 3, ["x"] * 3, completion_length=[1, 1, 0]) == [None, None, 2.0]


def test_impossible_options():
    with pytest.raises(ValueError, match="buffer_tokens is 0"):
        rewards.length_soft_penalty(10, 0)
    with pytest.raises(ValueError, match="max_tokens is 0"):
        rewards.length_cosine(rewards.exact_match, 0)
