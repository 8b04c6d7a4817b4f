"""Built-in task: Python functions of one line, told in words, small enough for a tiny model that starts from nothing."""

import functools
import itertools

import numpy as np

from jaxrl_llm.data.arithmetic import drawn_source
from jaxrl_llm.data.sources import Example, Source

PROGRAM_ALPHABET = "\n #(),:*+-0123456789abdefilmnprstu"
_WORDS = {"plus": "+", "minus": "-", "times": "*"}
_DRAWN = ("plus", "minus", "times", "times")
_OPERANDS = "ab23456789"
_TESTS = 4
_ARGUMENTS = list(itertools.product(range(1, 10), repeat=2))
Problem = tuple[str, tuple[tuple[str, str], ...]]  # what one begins with, then (word, operand) of each step


def program_source(
    size: int, *, seed: int = 0, split: str = "train", steps: tuple[int, int] = (1, 3), careless: float = 0.0
) -> Source:
    """Functions such as "def f(a, b):\\n    # a, plus b, times 3\\n    return ", of which the completion is "(a+b)*3".

    The steps are taken in the order in which they are told. Example `index` is a pure function of the arguments and `index`,
    and splits are disjoint whatever the seeds, as in `arithmetic_source`.

    Args:
      size: number of examples; problems may repeat.
      seed: seed of the problems.
      split: "train", or "test" for the tenth of all problems that "train" never shows.
      steps: fewest and most steps.
      careless: share of the examples whose completion forgets the parentheses ("a+b*3").

    Returns: Examples with "prompt", "completion", "answer" (the right expression) and "test_list", asserts for the reward
      `code`, which tell it from the careless one where the two differ.
    """
    fewest, most = steps
    if not 1 <= fewest <= most <= 9:
        raise ValueError(f"steps is {steps}; give the fewest and the most steps, both from 1 to 9")
    if not 0 <= careless <= 1:
        raise ValueError(f"careless is {careless}; give a share from 0 to 1")
    draw = functools.partial(_draw, fewest=fewest, most=most)
    return drawn_source("programs", size, seed, split, draw, functools.partial(_example, careless=careless), _told)


def expression(problem: Problem, *, parentheses: bool = True) -> str:
    """The steps of a problem as Python has them; without parentheses it may mean something else."""
    (found, steps), is_sum = problem, False
    for word, operand in steps:
        found = f"({found})" if parentheses and is_sum and word == "times" else found
        found, is_sum = f"{found}{_WORDS[word]}{operand}", word != "times"
    return found


def _draw(random: np.random.Philox, fewest: int, most: int) -> Problem:
    # Raw words, as in the arithmetic task.
    count, first, *words = random.random_raw(2 + 2 * most).tolist()
    steps = [(_DRAWN[words[2 * i] % len(_DRAWN)], _OPERANDS[words[2 * i + 1] % len(_OPERANDS)]) for i in range(most)]
    return "ab"[first % 2], tuple(steps[: fewest + count % (most - fewest + 1)])


def _told(problem: Problem) -> str:
    return ", ".join([problem[0], *(f"{word} {operand}" for word, operand in problem[1])])


def _example(problem: Problem, random: np.random.Philox, careless: float) -> Example:
    right, wrong = expression(problem), expression(problem, parentheses=False)
    forgotten, *places = random.random_raw(1 + _TESTS).tolist()
    chosen = [_ARGUMENTS[place % len(_ARGUMENTS)] for place in places]
    telling = [given for given in [*chosen, *_ARGUMENTS] if _value(right, given) != _value(wrong, given)]
    chosen = list(dict.fromkeys([*telling[:1], *chosen, *_ARGUMENTS]))[:_TESTS]
    return {
        "prompt": f"def f(a, b):\n    # {_told(problem)}\n    return ",
        "completion": wrong if forgotten < careless * 2**64 else right,
        "answer": right,
        "test_list": [f"assert f({a}, {b}) == {_value(right, (a, b))}" for a, b in chosen],
    }


def _value(text: str, given: tuple[int, int]) -> int:
    return eval(text, {"a": given[0], "b": given[1]})
