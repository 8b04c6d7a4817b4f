"""The built-in arithmetic task."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_llm import data

OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


def holds(step):
    left, right = step.split("=")
    return eval(left) == int(right)


@given(a=st.integers(0, 10**6), b=st.integers(0, 10**6), operation=st.sampled_from("+-*"))
def test_every_step_of_the_working_holds(a, b, operation):
    if operation == "-":
        a, b = max(a, b), min(a, b)
    working, result = data.worked_solution(a, operation, b).split(data.ANSWER_MARKER)
    assert int(result) == OPERATIONS[operation](a, b)
    steps = working.split(";")
    assert all(holds(step) for step in steps)
    if operation != "*":
        digits = "".join(str(int(step.split("=")[1]) % 10) for step in reversed(steps))
        assert int(digits) == int(result)


def test_known_workings():
    assert data.worked_solution(37, "+", 45) == "7+5=12;3+4+1=8#82"
    assert data.worked_solution(95, "+", 7) == "5+7=12;9+0+1=10;0+0+1=1#102"
    assert data.worked_solution(37, "-", 18) == "17-8=9;3-1-1=1#19"
    assert data.worked_solution(12, "*", 34) == "12*4=48;12*30=360;48+360=408#408"
    assert data.worked_solution(0, "+", 0) == "0+0=0#0"


DIGITS = st.sampled_from([(1, 1), (1, 3), (2, 2)])


@settings(deadline=None)
@given(seed=st.integers(0, 2**63), operations=st.sampled_from(["+", "-", "*", "+-*"]), digits=DIGITS)
def test_examples_are_consistent(seed, operations, digits):
    tokenizer = data.character_tokenizer(data.ARITHMETIC_ALPHABET)
    source = data.arithmetic_source(5, seed=seed, digits=digits, operations=operations)
    for example in source:
        assert holds(example["prompt"] + example["answer"])
        assert example["completion"].endswith(data.ANSWER_MARKER + example["answer"])
        operands = example["prompt"].rstrip("=").replace("*", "+").replace("-", "+").split("+")
        assert all(digits[0] <= len(operand) <= digits[1] for operand in operands)
        assert tokenizer.decode(tokenizer.encode(example["prompt"])) == example["prompt"]
    assert list(source) == list(data.arithmetic_source(9, seed=seed, digits=digits, operations=operations))[:5]


@pytest.mark.parametrize("operation", "+-*")
@pytest.mark.parametrize("digits", [(1, 1), (1, 2)])
def test_splits_are_disjoint_whatever_the_seeds(operation, digits):
    def problems(split, seed):
        source = data.arithmetic_source(300, seed=seed, split=split, digits=digits, operations=operation)
        return {tuple(sorted(example["prompt"].rstrip("=").split(operation))) for example in source}

    train, test = (problems(split, 0) | problems(split, 1) for split in ("train", "test"))
    assert train and test and not train & test


def test_seeds_and_indices_give_other_problems():
    first, second = (list(data.arithmetic_source(40, seed=seed, digits=(3, 3))) for seed in (0, 1))
    assert len({example["prompt"] for example in first + second}) > 75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"digits": (0, 2)}, r"digits is \(0, 2\)"),
        ({"digits": (3, 2)}, "fewest and the most"),
        ({"operations": "/"}, "operations is '/'"),
        ({"operations": ""}, "operations is ''"),
        ({"split": "dev"}, "split is 'dev'"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        data.arithmetic_source(3, **options)
