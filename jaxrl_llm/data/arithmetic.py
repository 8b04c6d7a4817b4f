"""Built-in task: worked arithmetic, small enough for a tiny model that starts from nothing."""

import functools
import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrl_llm.compose import require
from jaxrl_llm.data.sources import Example, Source

ARITHMETIC_ALPHABET = "0123456789+-*=;#"
ANSWER_MARKER = "#"
SPLITS = ("train", "test")
HELD_OUT_SHARE = 10  # one problem in ten is held out
MOST_KEPT = 2**16  # examples that a source keeps once they are made


def arithmetic_source(
    size: int, *, seed: int = 0, split: str = "train", digits: tuple[int, int] = (1, 2), operations: str = "+",
    careless: float = 0.0, calls: float = 0.0,
) -> Source:  # fmt: skip
    """Problems such as "37+45=", worked column by column: "7+5=12;3+4+1=8#82".

    Example `index` is a pure function of the arguments and `index`. Which split a problem belongs to is a hash of the
    problem itself (of both orders of its operands alike), so that the splits are disjoint whatever the seeds.

    Args:
      size: number of examples; problems may repeat.
      seed: seed of the problems.
      split: "train", or "test" for the tenth of all problems that "train" never shows.
      digits: fewest and most digits of an operand; each operand draws its own number of digits.
      operations: some of "+-*"; a difference is never negative.
      careless: share of the examples whose completion forgets every carry or borrow ("7+5=12;3+4=7#72"), while
        "answer" stays right. A model that imitates such demonstrations has something to learn from a verifier.
      calls: share of the examples whose completion asks `environments.inline_calculator` in place of working: "[37+45]82#82".

    Returns: Examples with "prompt", "completion" (the working, then "#" and the result) and "answer" (the result).
    """
    fewest, most = digits
    if not 1 <= fewest <= most <= 9:
        raise ValueError(f"digits is {digits}; give the fewest and the most digits, both from 1 to 9")
    if not operations or set(operations) - set("+-*"):
        raise ValueError(f"operations is {operations!r}; give some of '+-*'")
    for name, share in (("careless", careless), ("calls", calls)):
        require(0 <= share <= 1, name, share, "a share from 0 to 1")

    def make(problem: tuple[int, str, int], random: np.random.Philox) -> Example:
        example = _example(*problem, careful=random.random_raw() >= careless * 2**64)
        asks = calls and random.random_raw() < calls * 2**64
        return example | {"completion": _asking(example)} if asks else example

    draw = functools.partial(_draw, fewest=fewest, most=most, operations=operations)
    return drawn_source("arithmetic", size, seed, split, draw, make, _without_order)


def drawn_source(
    name: str, size: int, seed: int, split: str, draw: Callable, make: Callable, key: Callable[[Any], str]
) -> Source:
    """Examples of a built-in task, each of which has a stream of random words of its own.

    Args:
      name: of the task.
      size: number of examples.
      seed: of the streams.
      split: "train", or "test" for the tenth of all problems, by a hash of their `key`, that "train" never shows.
      draw: `draw(random) -> problem`.
      make: `make(problem, random) -> Example`.
      key: text of a problem that tells it from others.

    Raises ValueError: `split` is neither.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {SPLITS}")
    # A run looks at all of them before it begins, once for each use that it makes of them. One generator that is set to the
    # stream of an example costs a tenth of a generator of its own.
    random, alone = np.random.Philox(key=np.array([seed % 2**64, 0], np.uint64)), threading.Lock()
    fresh = random.state

    @functools.lru_cache(maxsize=MOST_KEPT)
    def fetch(index: int) -> Example:
        with alone:
            fresh["state"]["key"][1] = index
            random.state = fresh
            while True:
                problem = draw(random)
                if (zlib.crc32(key(problem).encode()) % HELD_OUT_SHARE == 0) == (split == "test"):
                    return make(problem, random)

    return Source(f"{name} {split}", size, fetch)


def worked_solution(left: int, operation: str, right: int, *, carries: bool = True) -> str:
    """The working of `left operation right`, steps separated by ";", then "#" and the result.

    Without `carries` it is that of somebody who forgets them, and its result may be wrong; products have none to forget.
    """
    if operation == "*":
        steps, result = _product_steps(left, right), left * right
    else:
        steps, result = _column_steps(left, right, 1 if operation == "+" else -1, carries)
    return ";".join(steps) + f"{ANSWER_MARKER}{result}"


def _example(left: int, operation: str, right: int, careful: bool) -> Example:
    solution = worked_solution(left, operation, right)
    result = solution.split(ANSWER_MARKER)[-1]
    completion = solution if careful else worked_solution(left, operation, right, carries=False)
    return {"prompt": f"{left}{operation}{right}=", "completion": completion, "answer": result}


def _asking(example: Example) -> str:
    """A completion that asks a calculator, with what it replies."""
    return f"[{example['prompt'].rstrip('=')}]{example['answer']}{ANSWER_MARKER}{example['answer']}"


def _draw(random: np.random.Philox, fewest: int, most: int, operations: str) -> tuple[int, str, int]:
    # Raw words: NumPy keeps them the same in every version, unlike what its distributions make of them.
    words = random.random_raw(5).tolist()
    operation = operations[words[0] % len(operations)]
    left, right = (_number(words[i], words[i + 1], fewest, most) for i in (1, 3))
    if operation == "-":
        left, right = max(left, right), min(left, right)
    return left, operation, right


def _number(length_word: int, value_word: int, fewest: int, most: int) -> int:
    length = fewest + length_word % (most - fewest + 1)
    lowest = 0 if length == 1 else 10 ** (length - 1)
    return lowest + value_word % (10**length - lowest)


def _without_order(problem: tuple[int, str, int]) -> str:
    left, operation, right = problem
    return f"{min(left, right)}{operation}{max(left, right)}"


def _column_steps(left: int, right: int, sign: int, carries: bool) -> tuple[list[str], int]:
    """One step a column from the units on, and the result that they lead to.

    A sum that reaches ten carries into the next step: "7+5=12", "3+4+1=8"; a borrowed ten shows in the digit: "17-8=9".
    """
    steps, carry, result, place = [], 0, 0, 1
    while left or right or carry or not steps:
        top, bottom = left % 10, right % 10
        if sign < 0 and top - bottom - carry < 0:
            top += 10
        total = top + sign * (bottom + carry)
        carried = f"{'+' if sign > 0 else '-'}1" if carry else ""
        steps.append(f"{top}{'+' if sign > 0 else '-'}{bottom}{carried}={total}")
        carry = carries * (int(total >= 10) if sign > 0 else int(top >= 10))
        result, place = result + total % 10 * place, place * 10
        left, right = left // 10, right // 10
    return steps, result


def _product_steps(left: int, right: int) -> list[str]:
    """A product for each digit of `right`, then their running sum."""
    places = [int(digit) * 10**place for place, digit in enumerate(reversed(str(right)))]
    steps, total = [], 0
    for place in places:
        steps.append(f"{left}*{place}={left * place}")
        if len(steps) > 1:
            steps.append(f"{total}+{left * place}={total + left * place}")
        total += left * place
    return steps
