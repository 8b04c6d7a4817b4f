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
        ("#### 0.00001", 1e-05, 1.0),
        ("#### 0.00002", 1e-05, 0.0),
        ("#### 3", 3.0, 1.0),
        ("so 2.5 \\times 10^{-7}", "0.00000025", 1.0),
        ("#### 12 000 pens", 12000, 1.0),
        ("12{,}000", "12000", 1.0),
        ("the pair (3,4)", "4", 1.0),
        ("\\boxed{8}, checked 3 times", "8", 1.0),
        ("\\boxed{\\frac{1}{2}}", "0.5", 1.0),
        ("#### Step 1: add\n5+3=8\n#### Step 2: answer\nIt is 8.", "8", 1.0),
        ("#### 1. Add\n5+3=8\n#### 2. Answer\nIt is 8.", "8", 1.0),
        ("#### 8\n\n#### Note 1\nChecked.", "8", 1.0),
        ("#### The answer is 8", "8", 1.0),
        # Behind a number a sign with a space is an operator: who only repeats the question has not answered it.
        ("What is 0 - 2", "-2", 0.0),
        ("0 - 2 is - 2", "-2", 1.0),
        ("(3) - 4", "4", 1.0),
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


def test_null_is_no_answer():
    for name, right in (("exact_match", "None"), ("arithmetic", "#None"), ("gsm8k", "#### 0")):
        reward = getattr(rewards, name)
        assert reward(["p"] * 3, [right, "7", "#### 8#8"], answer=[None, None, "8"])[:2] == [None, None], name


def test_numbers_and_booleans_of_json():
    cases = [("3", 3.0), ("0.00001", 1e-05), ("10000000000000000", 1e16), ("true", True), ("False", False), ("1e-05", 1e-05)]
    completions, answers = zip(*cases, strict=True)
    assert rewards.exact_match(["p"] * 6, completions, answers) == [1.0] * 6
    assert rewards.exact_match(["p"] * 3, ["1e-05", "1", "4"], ["0.00001", True, 3.0]) == [0.0] * 3
    for wrong in (float("nan"), float("inf"), [1], {}):
        with pytest.raises(ValueError, match="an answer is .*; give a text or a number"):
            rewards.exact_match(["p"], ["1"], [wrong])


def test_equal_answers_are_one_vote():
    for reward, texts, other in (
        (rewards.gsm8k, ("#### 1,200", "so it is 1200.0", "1{,}200"), "1201"),
        (rewards.exact_match, ("1200", " 1,200 "), "x 1200"),
        (rewards.arithmetic, ("x#7", "y#7.0"), "7#8"),
        (rewards.maths, (r"\boxed{\frac12}", "0.5", r"\fbox{0.50} \boxed{}"), r"\boxed{\frac32}"),
        (rewards.maths, (r"\boxed{x + 1}", r"so \boxed{\text{x+1}}"), r"\boxed{x}"),
    ):
        answer = rewards.answer_of(reward)
        assert len({answer(text) for text in texts}) == 1 and answer(other) not in {answer(text) for text in texts}, reward
    assert rewards.answer_of(rewards.exact_match)("  ") is None and rewards.answer_of(rewards.gsm8k)("words") is None


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
