"""Final answers: exact, marked, and the last number of a grade-school solution."""

import decimal
import functools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_llm import rewards

# Written for this test in the format of GSM8K.
SOLUTION = "Three boxes hold 12*3 = <<12*3=36>>36 pens.\nTwo are lost, so 36-2 = $<<36-2=34>>34 remain.\n#### 34"


def gsm8k(completion, answer):
    return rewards.gsm8k(["p"], [completion], answer=[answer])[0]


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        (SOLUTION, "34", 1.0),
        (SOLUTION, SOLUTION, 1.0),
        (SOLUTION, 34, 1.0),
        ("34", SOLUTION, 1.0),
        ("so we get 34 pens.", "34", 1.0),
        ("#### 34.00", "34", 1.0),
        ("#### $1,234,500", "1234500", 1.0),
        ("It costs $1,234.50", "1234.5", 1.0),
        ("#### 34 pens in 3 boxes", "34", 1.0),
        ("#### 3\nno, wait\n#### 34", "34", 1.0),
        ("34 it is #### nothing", "34", 0.0),
        ("#### -5", "-5", 1.0),
        ("#### -$5", "-5", 1.0),
        ("#### \u22125", "-5", 1.0),
        ("#### 5", "-5", 0.0),
        ("10-5", "5", 1.0),
        ("0.5", ".5", 1.0),
        ("34 is wrong, it is 35", "34", 0.0),
        ("", "34", 0.0),
        ("#### 12345678901234567890123", "12345678901234567890124", 0.0),
    ],
)
def test_gsm8k(completion, answer, expected):
    assert gsm8k(completion, answer) == expected


@given(number=st.integers(-(10**9), 10**9), words=st.text("ab .\n$", max_size=5))
def test_any_way_to_write_a_number_is_that_number(number, words):
    for text in (f"{words} {number} {words}", f"7 {words}#### {number:,}", f"#### {number}.0", f"1 #### {number}{words}"):
        assert rewards.final_number(text) == decimal.Decimal(number)


def test_answers_without_a_number_are_an_error():
    with pytest.raises(ValueError, match="answer of row 1 is 'none'.*correct the column"):
        rewards.gsm8k(["p"] * 2, ["1", "2"], answer=["1", "none"])


def test_exact_match():
    completions, answers = [" 42\n", "42.", "", "7"], ["42", "42", "", 7]
    assert rewards.exact_match(["p"] * 4, completions, answer=answers, extra=[0] * 4) == [1.0, 0.0, 1.0, 1.0]


def test_marked_answer():
    reward = rewards.marked_answer("#")
    completions = ["7+5=12;3+4+1=8#82", "#81#82", "82", "#82;", "# 82 "]
    assert reward(["p"] * 5, completions, answer=["82"] * 5, marker=["!"] * 5) == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert pickle.loads(pickle.dumps(reward))(["p"], ["#1"], answer=["1"]) == [1.0]
    with pytest.raises(ValueError, match="marker is empty"):
        rewards.marked_answer("")


def test_columns_of_other_lengths_are_an_error():
    for reward in (rewards.exact_match, rewards.gsm8k, rewards.marked_answer("#")):
        with pytest.raises(ValueError, match="zip"):
            reward(["p"] * 2, ["1", "2"], answer=["1"])


def test_the_pool_runs_them():
    named = {"exact": rewards.exact_match, "gsm8k": rewards.gsm8k, "marked": functools.partial(rewards.marked_answer("#"))}
    with rewards.RewardPool(1) as pool:
        values, failures = pool.score(named, ["p"] * 3, ["4#2", "2", "x"], {"answer": ["2", "2", "none"]})
    assert values[:2].tolist() == [[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]]
    assert [(failure.name, failure.row) for failure in failures] == [("gsm8k", 2)]
