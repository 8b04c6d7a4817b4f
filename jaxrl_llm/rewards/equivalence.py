"""Mathematical equivalence by math-verify, without any guard; `maths` calls it in a worker process.

Importing this module imports SymPy.
"""

import decimal
import fractions
import logging
from collections.abc import Sequence
from typing import Any

import math_verify

from jaxrl_llm.rewards import notation
from jaxrl_llm.rewards.answers import written

# math-verify warns that its own time limit is off. It is, since it relies on a signal; the pool has a limit that holds.
logging.getLogger("math_verify").setLevel(logging.ERROR)
_DELIMITERS = ("\\(", "\\[")
# Of a number that is no decimal, such as 1/3, this much may be cut off: 0.333333 is equal to it, absolutely and relatively.
ABSOLUTE, RELATIVE = fractions.Fraction(1, 10**6), fractions.Fraction(1, 10**5)


def equivalent(prompts: Sequence[Any], completions: Sequence[str], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """1.0 where the final expression of the completion equals `answer`, else 0.0; None where that is None. May hang.

    Raises ValueError: an `answer` that is no mathematical expression.
    """
    pairs = zip(completions, answer, strict=True)
    return [None if gold is None else float(_agrees(written(gold), completion)) for completion, gold in pairs]


equivalent.rowwise = True


def _agrees(gold: str, completion: str) -> bool:
    target, found = notation.last_box(gold) or gold, notation.last_box(completion)
    if found is not None and (equal := _equal_numbers(notation.number(target), notation.number(found))) is not None:
        return equal
    expressions = math_verify.parse(_delimited(target), parsing_timeout=None)
    if not expressions:
        raise ValueError(f"answer {gold!r} is no expression that math-verify can read; correct the column 'answer'")
    answer = math_verify.parse(completion if found is None else _boxed(found), parsing_timeout=None)
    return math_verify.verify(expressions, answer, timeout_seconds=None)


def _equal_numbers(gold: notation.Number | None, found: notation.Number | None) -> bool | None:
    """Whether two numbers are one; None where one of them is none."""
    if gold is None or found is None:
        return None
    if gold == found or not (isinstance(gold, fractions.Fraction) or isinstance(found, fractions.Fraction)):
        return gold == found
    gold, found = fractions.Fraction(gold), fractions.Fraction(found)
    return abs(gold - found) <= min(ABSOLUTE, RELATIVE * max(abs(gold), abs(found)))


def _delimited(gold: str) -> str:
    delimited = gold.count("$") > 1 or any(delimiter in gold for delimiter in _DELIMITERS)
    return gold if delimited else _boxed(gold.strip().removeprefix("$"))


def _boxed(text: str) -> str:
    value = notation.number(text)
    # A number as math-verify reads it, whatever its digits were grouped by.
    plain = f"{value:f}" if isinstance(value, decimal.Decimal) else text
    return f"\\boxed{{{plain}}}"
