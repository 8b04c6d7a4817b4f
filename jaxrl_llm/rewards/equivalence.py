"""Mathematical equivalence by math-verify, without any guard; `maths` calls it in a worker process.

Importing this module imports SymPy.
"""

import decimal
import fractions
import logging
import re
from collections.abc import Sequence
from typing import Any

import math_verify

from jaxrl_llm.rewards import notation
from jaxrl_llm.rewards.answers import text_of, written

# math-verify warns that its own time limit is off. It is, since it relies on a signal; the pool has a limit that holds.
logging.getLogger("math_verify").setLevel(logging.ERROR)
_DELIMITERS = ("\\(", "\\[")
_OPERATION = re.compile(r"(?<=[\w)}])[-+*/^!]|\\[a-z]+")  # a sign behind an operand, or a command of LaTeX
# Of a number that is no decimal, such as 1/3, this much may be cut off: 0.333333 is equal to it, absolutely and relatively.
ABSOLUTE, RELATIVE = fractions.Fraction(1, 10**6), fractions.Fraction(1, 10**5)


def equivalent(prompts: Sequence[Any], completions: Sequence[str], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """1.0 where the final expression of the completion equals `answer`, else 0.0; None where that is None. May hang.

    What the prompt asks to compute does not answer it, unless the gold answer is written like that.

    Raises ValueError: an `answer` that is no mathematical expression.
    """
    rows = zip(prompts, completions, answer, strict=True)
    return [None if gold is None else float(_agrees(written(gold), said, text_of(asked or ""))) for asked, said, gold in rows]


equivalent.rowwise = True


def _agrees(gold: str, completion: str, asked: str) -> bool:
    target, found = notation.last_box(gold) or gold, notation.last_box(completion)
    if found is not None and (equal := _equal_numbers(notation.number(target), notation.number(found))) is not None:
        return equal
    expressions = _parse(_delimited(target))
    if not expressions:
        raise ValueError(f"answer {gold!r} is no expression that math-verify can read; correct the column 'answer'")
    if found is not None and _repeated(found, asked, target):
        return False
    answer = _own(completion, asked, target) if found is None else _parse(_boxed(found))
    return math_verify.verify(expressions, answer, timeout_seconds=None)


def _parse(text: str) -> list[Any]:
    return math_verify.parse(text, parsing_timeout=None)


def _own(text: str, asked: str, gold: str) -> list[Any]:
    """What math-verify takes for the answer in a text, once what is repeated from the question is out of it."""
    found = _parse(text)
    while found and _repeated(str(found[-1]), asked, gold):
        shorter = text.replace(found[-1], " ")
        found, text = _parse(shorter) if shorter != text else [], shorter
    return found


def _repeated(expression: str, asked: str, gold: str) -> bool:
    """Whether an expression is what is to be computed, in the words of the question."""
    words, asked, gold = ("".join(text.split()).strip("$") for text in (expression, asked, gold))
    return words in asked and words != gold and notation.number(expression) is None and bool(_OPERATION.search(words))


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
