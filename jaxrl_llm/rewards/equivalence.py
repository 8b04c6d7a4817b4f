"""Mathematical equivalence by math-verify, without any guard; `maths` calls it in a worker process.

Importing this module imports SymPy.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import math_verify

# math-verify warns that its own time limit is off. It is, since it relies on a signal; the pool has a limit that holds.
logging.getLogger("math_verify").setLevel(logging.ERROR)
_DELIMITERS = ("\\boxed", "\\(", "\\[")


def equivalent(prompts: Sequence[Any], completions: Sequence[str], answer: Sequence[Any], **columns) -> list[float]:
    """1.0 where the final expression of the completion equals `answer`, else 0.0. May hang.

    Raises:
      ValueError: an `answer` that is no mathematical expression.
    """
    return [float(_agrees(str(gold), completion)) for gold, completion in zip(answer, completions, strict=True)]


equivalent.rowwise = True


def _agrees(gold: str, completion: str) -> bool:
    delimited = gold.count("$") > 1 or any(delimiter in gold for delimiter in _DELIMITERS)
    target = _parse(gold if delimited else f"\\boxed{{{gold.strip().removeprefix('$')}}}")
    if not target:
        raise ValueError(f"answer {gold!r} is no expression that math-verify can read; correct the column 'answer'")
    # Several boxes would be read as a set; the last one is the answer.
    last = max(completion.rfind("\\boxed"), 0)
    return math_verify.verify(target, _parse(completion[last:]), timeout_seconds=None)


def _parse(text: str) -> list[Any]:
    return math_verify.parse(text, parsing_timeout=None)
