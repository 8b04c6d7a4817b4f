"""The built-in task of functions in words."""

import pytest

from jaxrl_llm import data
from jaxrl_llm.data.programs import expression


def meaning(told, a, b):
    """The steps as they are told, one after the other."""
    first, *steps = told.split(", ")
    value = {"a": a, "b": b}[first]
    for step in steps:
        word, operand = step.split(" ")
        number = {"a": a, "b": b}.get(operand) or int(operand)
        value = {"plus": value + number, "minus": value - number, "times": value * number}[word]
    return value


def test_examples_mean_what_is_told_and_repeat():
    tokenizer = data.character_tokenizer(data.PROGRAM_ALPHABET)
    source = data.program_source(50, seed=2, steps=(1, 4))
    for example in source:
        program, names = example["prompt"] + example["completion"], {}
        exec(program, names)
        told = example["prompt"].split("# ")[1].split("\n")[0]
        assert all(names["f"](a, b) == meaning(told, a, b) for a in range(1, 6) for b in range(1, 6))
        assert len(example["test_list"]) == 4
        for test in example["test_list"]:
            exec(test, names)
        assert tokenizer.decode(tokenizer.encode(program)) == program
    assert list(source)[:9] == list(data.program_source(9, seed=2, steps=(1, 4)))


def test_tests_tell_careless_programs_from_others():
    wrong = 0
    for example in data.program_source(100, steps=(2, 3), careless=1.0):
        names = {}
        exec(example["prompt"] + example["completion"], names)
        held = [eval(test.removeprefix("assert "), names) for test in example["test_list"]]
        assert all(held) or example["completion"] != example["answer"]
        wrong += not all(held)
    assert 20 < wrong < 60
    assert expression(("a", (("plus", "b"), ("times", "3"), ("minus", "a"), ("times", "b")))) == "((a+b)*3-a)*b"
    assert expression(("a", (("times", "b"), ("times", "3")))) == "a*b*3"


def test_splits_are_disjoint_whatever_the_seeds():
    train, test = (
        {example["prompt"] for example in data.program_source(200, seed=s, split=n)}
        for s, n in enumerate(data.arithmetic.SPLITS)
    )
    assert not train & test


@pytest.mark.parametrize("options", [{"steps": (0, 1)}, {"steps": (2, 1)}, {"careless": 2.0}, {"split": "all"}])
def test_impossible_options_are_told(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
        data.program_source(1, **options)
