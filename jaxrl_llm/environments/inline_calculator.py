"""A calculator between marks of plain text, for policies without a chat template."""

import functools
from typing import NamedTuple

from jaxrl_llm.environments.base import Environment, Example, Transition
from jaxrl_llm.environments.calculator import calculator


class Talk(NamedTuple):
    """What was asked so far."""

    answer: str
    calls: int = 0


def inline_calculator(
    opening: str = "[", closing: str = "]", marker: str = "#", cost: float = 0.0, error: str = "error"
) -> Environment:
    """The policy writes "[37+45]" and reads "82" behind it; a turn without a call is the last one.

    The answer is what stands behind the last marker of the last turn, worth 1 where it is the example's "answer".

    Args:
      opening: text that begins a call.
      closing: text that ends it, and with it the turn.
      marker: text in front of the answer.
      cost: taken off the reward for each call.
      error: what is replied to what is no expression, in letters that the tokenizer knows.

    Raises ValueError: an empty text.
    """
    if not (opening and closing and marker):
        raise ValueError(f"opening is {opening!r}, closing {closing!r}, marker {marker!r}; give a text each")
    return Environment(_begin, functools.partial(_step, opening, closing, marker, cost, error), stop=(closing,))


def calculated(expression: str, error: str = "error") -> str:
    """The value of an expression as the calculator writes it, or `error`."""
    try:
        return calculator(expression)
    except (ValueError, ZeroDivisionError):
        return error


def _begin(example: Example, seed: int) -> tuple[Talk, None]:
    if example.get("answer") is None:
        raise ValueError(f"the example has no 'answer', only {sorted(example)}; the calculator asks for one")
    return Talk(str(example["answer"])), None


def _step(opening: str, closing: str, marker: str, cost: float, error: str, talk: Talk, text: str) -> Transition:
    before, found, asked = text.removesuffix(closing).rpartition(opening)
    if text.endswith(closing) and found:
        facts = {"calls": 1, "first_call": len(before)}
        return Transition(talk._replace(calls=talk.calls + 1), calculated(asked, error), reward=-cost, facts=facts)
    _, found, answer = text.rpartition(marker)
    right = bool(found) and answer.strip() == talk.answer
    return Transition(talk, reward=float(right), done=True, facts={"calls": 0})
