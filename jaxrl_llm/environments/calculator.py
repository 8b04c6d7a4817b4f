"""A calculator between marks of plain text, for policies without a chat template."""

import ast
import fractions
import functools
import operator
from typing import NamedTuple

from jaxrl_llm.environments.base import Environment, Example, Transition

_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_MOST_CHARACTERS = 200
_LARGEST = 10**40


class Talk(NamedTuple):
    """What was asked so far."""

    answer: str
    calls: int = 0


def calculator(opening: str = "[", closing: str = "]", marker: str = "#", cost: float = 0.0) -> Environment:
    """The policy writes "[37+45]" and reads "82" behind it; a turn without a call is the last one.

    The answer is what stands behind the last marker of the last turn, worth 1 where it is the example's "answer".

    Args:
      opening: text that begins a call.
      closing: text that ends it, and with it the turn.
      marker: text in front of the answer.
      cost: taken off the reward for each call.

    Raises ValueError: an empty text.
    """
    if not (opening and closing and marker):
        raise ValueError(f"opening is {opening!r}, closing {closing!r}, marker {marker!r}; give a text each")
    return Environment(_begin, functools.partial(_step, opening, closing, marker, cost), stop=(closing,))


def calculated(expression: str) -> str:
    """The value of a term of numbers with + - * / and brackets, exactly where it is whole or a short decimal; else "error"."""
    try:
        if len(expression) > _MOST_CHARACTERS:
            return "error"
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, KeyError, RecursionError, MemoryError):
        return "error"
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


def _value(node: ast.AST) -> fractions.Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            value = fractions.Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = -_value(operand)
        case ast.BinOp(left=left, op=operation, right=right):
            value = _OPERATIONS[type(operation)](_value(left), _value(right))
        case _:
            raise ValueError("no term of numbers")
    if abs(value.numerator) > _LARGEST or value.denominator > _LARGEST:
        raise ValueError("too large")
    return value


def _begin(example: Example, seed: int) -> tuple[Talk, None]:
    if example.get("answer") is None:
        raise ValueError(f"the example has no 'answer', only {sorted(example)}; the calculator needs one")
    return Talk(str(example["answer"])), None


def _step(opening: str, closing: str, marker: str, cost: float, talk: Talk, text: str) -> Transition:
    before, found, asked = text.removesuffix(closing).rpartition(opening)
    if text.endswith(closing) and found:
        facts = {"calls": 1, "first_call": len(before)}
        return Transition(talk._replace(calls=talk.calls + 1), calculated(asked), reward=-cost, facts=facts)
    _, found, answer = text.rpartition(marker)
    right = bool(found) and answer.strip() == talk.answer
    return Transition(talk, reward=float(right), done=True, facts={"calls": 0})
