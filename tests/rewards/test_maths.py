"""Mathematical equivalence, and its time limit."""

import math

import pytest

from jaxrl_llm import rewards
from jaxrl_llm.rewards import equivalence

CASES = [
    ("the half, \\boxed{0.5}", "1/2", 1.0),
    ("the half, \\boxed{0.5}", "\\frac{1}{2}", 1.0),
    ("It is $\\frac{2}{4}$.", "0.5", 1.0),
    ("0.3333", "1/3", 0.0),
    ("\\boxed{\\frac{\\sqrt{8}}{2}}", "\\sqrt{2}", 1.0),
    ("so $x \\in (1, 2]$", "(1,2]", 1.0),
    ("so $x \\in [1, 2]$", "(1,2]", 0.0),
    ("$\\{3, 1, 2\\}$", "\\{1,2,3\\}", 1.0),
    ("$\\{3, 1\\}$", "\\{1,2,3\\}", 0.0),
    ("\\boxed{(x+1)^2}", "x^2+2x+1", 1.0),
    ("\\boxed{3} no, \\boxed{4}", "4", 1.0),
    ("\\boxed{4} no, \\boxed{3}", "4", 0.0),
    ("\\boxed{1,234}", "$1234$", 1.0),
    ("\\boxed{12}", "\\boxed{12}", 1.0),
    ("", "4", 0.0),
    ("I do not know", "4", 0.0),
    ("so \\fbox{9}", "9", 1.0),
    ("\\boxed{9}. Fill in: \\boxed{}", "9", 1.0),
    ("\\boxed{\\text{The answer is } 8}", "8", 1.0),
    ("\\boxed{\\textbf{8}}", "8", 1.0),
    ("\\boxed{\\text{Answer: }\\sqrt{8}}", "2\\sqrt{2}", 1.0),
    ("\\boxed{12{,}000}", "12000", 1.0),
    ("\\boxed{12\u202f000}", "12\\,000", 1.0),
    ("\\boxed{0.0000001}", "0.0000002", 0.0),
    ("\\boxed{2.5 \\times 10^{-7}}", 2.5e-7, 1.0),
    ("\\boxed{0.00001}", "1e-05", 1.0),
    ("\\boxed{0.333333}", "1/3", 1.0),
    ("\\boxed{0.0003}", "\\frac{1}{3000}", 0.0),
]


def test_equivalences():
    completions, answers, expected = (list(column) for column in zip(*CASES, strict=True))
    with rewards.RewardPool(1) as pool:
        given = {"answer": [None], "level": [1]}
        assert math.isnan(pool.score({"maths": rewards.maths}, ["p"], ["\\boxed{None}"], given)[0][0, 0])
    found = rewards.maths(["p"] * len(CASES), completions, answer=answers, level=[1] * len(CASES))
    assert dict(zip(CASES, found, strict=True)) == dict(zip(CASES, expected, strict=True))


REPEATED = [
    ("What is 8 - 2?", "To find the final answer, 8 - 2 equals 5.", "6", 0.0),
    ("What is 8 - 2?", "To find the final answer, 8 - 2 equals 6.", "6", 1.0),
    ("What is 8 - 2?", "8-2", "6", 0.0),
    ("What is 8 - 2?", "\\boxed{8 - 2}", "6", 0.0),
    ("What is 8 - 2?", "\\boxed{6}", "6", 1.0),
    ("What is 12 - 8 - 2?", "\\boxed{8 - 6}", "2", 1.0),
    ([{"role": "user", "content": "What is $\\int_0^1 x dx$?"}], "It is $\\int_0^1 x dx$.", "1/2", 0.0),
    ("Which is larger, 3/4 or 2/3?", "\\boxed{3/4}", "0.75", 1.0),
    ("Which of $x^2 + 1$ and $x^3$ is even?", "It is $x^2+1$.", "x^2 + 1", 1.0),
    ("Simplify $\\frac{x^2}{x}$.", "\\boxed{x}", "x", 1.0),
    ("How far is -5 from 0?", "The answer is -5", "-5", 1.0),
    (None, "8 - 2", "6", 1.0),
]


def test_what_is_repeated_from_the_question_does_not_answer_it():
    prompts, completions, answers, expected = (list(column) for column in zip(*REPEATED, strict=True))
    assert equivalence.equivalent(prompts, completions, answers) == expected


def test_an_answer_that_is_no_expression_is_missing():
    assert rewards.maths(["p"] * 2, ["1", "1"], answer=["", "1"]) == [None, 1.0]


@pytest.fixture
def hanging_verifier(tmp_path, monkeypatch):
    """A math-verify for the workers that never ends on one expression; ours was imported before and stays as it is."""
    assert equivalence.math_verify.__file__ != str(tmp_path / "math_verify.py")
    (tmp_path / "math_verify.py").write_text(
        "def parse(text, parsing_timeout):\n"
        "    while '9^9^9^9' in text:\n        pass\n"
        "    return [text]\n"
        "def verify(gold, found, timeout_seconds):\n    return found[0] in gold[0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_hanging_verification_costs_only_its_row(hanging_verifier):
    completions = ["2", "\\boxed{9^9^9^9}", "3", "4"]
    with rewards.RewardPool(2, row_seconds=1.5) as pool:
        values, failures = pool.score({"maths": rewards.maths}, ["p"] * 4, completions, {"answer": ["2", "3", "3", "5"]})
    assert values[:, 0].tolist() == [1.0, 0.0, 1.0, 0.0] and failures[0].timed_out
    assert [(failure.name, failure.row, failure.reason) for failure in failures] == [("maths", 1, "no result within 1.5 s")]
