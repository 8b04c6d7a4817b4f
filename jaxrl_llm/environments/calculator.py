"""A calculator for models: exact arithmetic, of which nothing can take long."""

import ast
import decimal
import math
import operator
from fractions import Fraction

MOST_CHARACTERS = 400
MOST_BITS = 4096  # of a numerator or a denominator
_MOST_DIGITS = 30  # behind the point
_SHOWN_DIGITS = 12  # of a fraction that has more
_WANTED = "numbers, + - * / // % ** and parentheses"
_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def calculator(expression: str) -> str:
    """Calculates an expression exactly.

    Args:
      expression: Numbers, the operators + - * / // % ** and parentheses, such as (1 + 2) * 3 / 4.
    """
    if len(expression) > MOST_CHARACTERS:
        raise ValueError(f"the expression has {len(expression)} characters; the most are {MOST_CHARACTERS}")
    text = expression.strip().replace("^", "**").replace("×", "*").replace("÷", "/")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{expression!r} is no expression of {_WANTED}") from error
    return _written(_value(tree.body, text))


def _value(node: ast.AST, text: str) -> Fraction:
    match node:
        case ast.Constant(value=float(value)) if math.isfinite(value):
            found = Fraction(ast.get_source_segment(text, node).replace("_", ""))
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            found = Fraction(value)
        case ast.UnaryOp(op, operand) if type(op) in _OPERATORS:
            found = _OPERATORS[type(op)](_value(operand, text))
        case ast.BinOp(left, ast.Pow(), right):
            found = _power(_value(left, text), _value(right, text))
        case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
            found = Fraction(_OPERATORS[type(op)](_value(left, text), _value(right, text)))
        case _:
            raise ValueError(f"{ast.get_source_segment(text, node)!r} is none of {_WANTED}")
    if _bits(found) > MOST_BITS:
        raise ValueError(f"a result has more than {MOST_BITS} bits")
    return found


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ValueError(f"the exponent {exponent} is not whole")
    if (_bits(base) - 1) * abs(exponent) > MOST_BITS:
        raise ValueError(f"a power has more than {MOST_BITS} bits")
    return base**exponent


def _written(value: Fraction) -> str:
    """Its digits where they end, or a fraction with its first digits."""
    digits = next((count for count in range(_MOST_DIGITS) if 10**count % value.denominator == 0), None)
    if digits is None:
        with decimal.localcontext(prec=_SHOWN_DIGITS):
            return f"{value} (about {decimal.Decimal(value.numerator) / decimal.Decimal(value.denominator)})"
    text = str(abs(value.numerator) * 10**digits // value.denominator).zfill(digits + 1)
    return "-" * (value < 0) + (f"{text[:-digits]}.{text[-digits:]}" if digits else text)
