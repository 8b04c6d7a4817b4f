"""Rewards that compare the final answer of a completion with the gold one: 1.0 where they agree, else 0.0."""

from __future__ import annotations

import decimal
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

GSM8K_MARKER = "####"
# A sign counts where no digit, letter or bracket comes before it, so that the last number of "10-5" is 5.
_NUMBER = re.compile(r"(?<![\w.)])[-+]\s?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)|(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def exact_match(prompts: Sequence[Any], completions: Sequence[str], answer: Sequence[Any], **columns) -> list[float]:
    """Whether the whole completion is `answer`, white space at both ends aside."""
    return [float(completion.strip() == str(gold).strip()) for completion, gold in zip(completions, answer, strict=True)]


def marked_answer(marker: str) -> Callable[..., list[float]]:
    """Reward: whether what follows the last `marker` of the completion is `answer`; 0.0 without a marker.

    The arithmetic task marks its answers with "#".
    """
    if not marker:
        raise ValueError("marker is empty; give the text that precedes the answer, such as '#'")
    return functools.partial(_marked_answer, marker)


def arithmetic(prompts: Sequence[Any], completions: Sequence[str], answer: Sequence[Any], **columns) -> list[float]:
    """Whether what follows the last "#" of the completion is `answer`, as in the built-in arithmetic task."""
    return _marked_answer("#", prompts, completions, answer=answer)


def gsm8k(prompts: Sequence[Any], completions: Sequence[str], answer: Sequence[Any], **columns) -> list[float]:
    """Whether the final number of the completion equals that of `answer`.

    The final number is the first one after the last "####"; where there is no "####", the last number at all. Numbers
    are compared as exact decimals, after commas and "$" are dropped: "1,200.0" equals "1200".

    Args:
      prompts: not looked at.
      completions: texts.
      answer: numbers, or worked solutions of the data set (arXiv:2110.14168) that end in "#### number".

    Raises:
      ValueError: an `answer` without a number.
    """
    golds = [final_number(str(gold)) for gold in answer]
    if None in golds:
        row = golds.index(None)
        raise ValueError(f"answer of row {row} is {answer[row]!r}, which has no final number; correct the column 'answer'")
    return [float(final_number(completion) == gold) for completion, gold in zip(completions, golds, strict=True)]


def final_number(text: str) -> decimal.Decimal | None:
    """The final number of `text` as `gsm8k` understands it, or None."""
    _, marker, tail = text.rpartition(GSM8K_MARKER)
    numbers = _NUMBER.findall(tail.replace("\u2212", "-"))
    if not numbers:
        return None
    digits = re.sub(r"[,$\s]", "", numbers[0] if marker else numbers[-1])
    return decimal.Decimal(digits)


def _marked_answer(marker, /, prompts, completions, *, answer, **columns) -> list[float]:
    found = [completion.rpartition(marker) for completion in completions]
    pairs = zip(found, answer, strict=True)
    return [float(bool(mark) and tail.strip() == str(gold).strip()) for (_, mark, tail), gold in pairs]
