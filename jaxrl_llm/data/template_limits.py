"""A sandbox for foreign templates in which work, memory and the size of what they write have limits.

Everything that a template can do is either short or counted. Bodies of loops and macros, calls, filters, operators and
comparisons take *steps*; what they make takes bytes, and each value has a largest size, counted as if it were written out,
so that no comparison and no conversion to text can be long. What could make much at once (`"a" * 10**10`, `center`, `join`,
formats with a width...) is foreseen and refused before it is made. Nothing is measured by the clock: the same template with
the same messages is refused everywhere or nowhere.
"""

import contextvars
import functools
import inspect
import math
import re
import sys
import types
from collections.abc import Callable, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

MOST_SOURCE = 100_000  # characters of a template; the longest in use have some 30,000
MOST_BITS = 4_000  # of an integer
# What a template may use. For long dialogues there is more: steps for each value of messages and variables, bytes and size
# for each character.
STEPS, BYTES, SIZE = 500_000, 100_000_000, 1_000_000
STEPS_EACH, BYTES_EACH, SIZE_EACH = 3_000, 200, 16
_STEPS_A_CALL = 10
_NODES_A_STEP = 2
_CHARACTERS_A_STEP = 256
# Neither do templates of chats need them nor are they easily bounded: patterns that take long, chance, layouts of HTML.
_REMOVED_FILTERS = ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
_REMOVED_METHODS = ("encode", "translate", "maketrans", "to_bytes", "from_bytes")
_COMPARING_TESTS = (
    "eq", "equalto", "==", "ne", "!=", "gt", "greaterthan", ">", "ge", ">=", "lt", "lessthan", "<", "le", "<=", "in",
)  # fmt: skip
_TOO_WIDE, _NESTED_FIELD = re.compile(r"\d{4}|\*"), re.compile(r"\{[^{}]+\{")
_CONTAINERS = (list, tuple, set, frozenset, KeysView, ValuesView)


class Budget:
    """What is left to a template while it is rendered."""

    def __init__(self, context: Mapping[str, Any]):
        self.largest = math.inf
        values, characters = self.measure(dict(context))
        self.steps, self.bytes = STEPS + STEPS_EACH * values, BYTES + BYTES_EACH * characters
        self.largest = SIZE + SIZE_EACH * (values + characters)

    def spend(self, steps: int) -> None:
        """Counts steps."""
        self.steps -= steps
        if self.steps < 0:
            raise jinja2.TemplateRuntimeError("it takes too many steps; shorten its loops")

    def foresee(self, size: float) -> None:
        """Refuses to make a value of this size."""
        if size > self.largest:
            raise jinja2.TemplateRuntimeError(f"it makes a value of size {size:.1g}; the largest is {self.largest}")

    def touch(self, value: Any) -> int:
        """Counts what it takes to look at all of a value, and gives its size."""
        if isinstance(value, str):
            size = len(value)
            self.foresee(size)
            self.spend(1 + size // _CHARACTERS_A_STEP)
            return size
        values, characters = self.measure(value)
        self.spend(values + characters // _CHARACTERS_A_STEP)
        return values + characters

    def measure(self, value: Any) -> tuple[int, int]:
        """Values and characters in a value, each as often as it stands there."""
        size, nodes, left = 0, 0, [value]
        while left:
            item = left.pop()
            nodes += 1
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, dict):
                left += item.keys()
                left += item.values()
            elif isinstance(item, _CONTAINERS):
                left += item
            elif isinstance(item, range):
                nodes += len(item)
            elif isinstance(item, int) and item.bit_length() > MOST_BITS:
                raise jinja2.TemplateRuntimeError(f"it makes an integer of more than {MOST_BITS} bits")
            if size + nodes > self.largest:
                self.foresee(size + nodes)
        return nodes, size

    def made(self, value: Any) -> Any:
        """Counts the bytes of a value that was made, and gives the value."""
        self.touch(value)
        self.bytes -= sys.getsizeof(value, 64)
        if self.bytes < 0:
            raise jinja2.TemplateRuntimeError("it makes too many texts; shorten them, or its loops")
        return value

    def each(self, values: Iterator[Any]) -> Iterator[Any]:
        """The values of an iterator, counted as they come."""
        for value in values:
            self.touch(value)
            yield value


_BUDGET: contextvars.ContextVar[Budget] = contextvars.ContextVar("budget")


def render(template: jinja2.Template, context: Mapping[str, Any]) -> str:
    """Text of a template of a `LimitedEnvironment`.

    Raises:
      jinja2.TemplateError: it goes beyond a limit. Templates, being foreign code, may raise everything else, too.
    """
    budget = Budget(context)
    token = _BUDGET.set(budget)
    try:
        text = "".join(template.root_render_func(template.new_context(dict(context))))
    finally:
        _BUDGET.reset(token)
    budget.foresee(len(text))
    return text


class _Counting(jinja2.compiler.CodeGenerator):
    """Writes code that counts: every body takes steps, and what expressions make or compare is measured."""

    def blockvisit(self, body, frame):
        count = sum(1 for node in body for _ in node.find_all(jinja2.nodes.Node))
        self.writeline(f"environment.spend({1 + count // _NODES_A_STEP})")
        super().blockvisit(body, frame)

    def visit_For(self, node, frame):
        if node.test:  # Items that it leaves out never come to the body.
            node.test = jinja2.nodes.Or(jinja2.nodes.EnvironmentAttribute("spend(1)"), node.test, lineno=node.lineno)
        super().visit_For(node, frame)

    def visit_Output(self, node, frame):
        # As an expression a piece of text passes through `finalize` too.
        node.nodes = [
            jinja2.nodes.MarkSafe(jinja2.nodes.Const(child.data)) if isinstance(child, jinja2.nodes.TemplateData) else child
            for child in node.nodes
        ]
        super().visit_Output(node, frame)

    def visit_Compare(self, node, frame):
        self.write("(")
        self._compared(node.expr, frame)
        for operand in node.ops:
            self.visit(operand, frame)
        self.write(")")

    def visit_Operand(self, node, frame):
        self.write(f" {jinja2.compiler.operators[node.op]} ")
        self._compared(node.expr, frame)

    def _compared(self, node, frame):
        self.write("environment.touched(")
        self.visit(node, frame)
        self.write(")")


def _made(name: str) -> Callable:
    plain = getattr(jinja2.compiler.CodeGenerator, name)

    def visit(self, node, frame, **options):
        slices = not isinstance(node, jinja2.nodes.Getitem) or isinstance(node.arg, jinja2.nodes.Slice)
        counted = slices and getattr(node, "ctx", "load") == "load"
        self.write("environment.made(" if counted else "")
        plain(self, node, frame, **options)
        self.write(")" if counted else "")

    return visit


for _name in ("visit_List", "visit_Tuple", "visit_Dict", "visit_Concat", "visit_Call", "visit_Getitem"):
    setattr(_Counting, _name, _made(_name))


class _Namespace(jinja2.utils.Namespace):
    """Says nothing of what it holds, which is not measured with it."""

    __repr__ = object.__repr__


class LimitedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Compiles templates for `render`."""

    code_generator_class = _Counting
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, *, filters: Mapping[str, tuple[Callable, Callable]], **options: Any):
        # Constants are computed while rendering, where limits hold, not while compiling.
        super().__init__(optimized=False, finalize=_written, **options)
        del self.globals["lipsum"]
        self.globals["namespace"] = _Namespace
        self.filters = {
            name: _counted(function, _FILTER_SIZES.get(name))
            for name, function in self.filters.items()
            if name not in _REMOVED_FILTERS
        }
        self.filters |= {name: _counted(function, size) for name, (function, size) in filters.items()}
        self.tests = {
            name: _counted(function, None) if name in _COMPARING_TESTS else _stepping(function)
            for name, function in self.tests.items()
        }

    def spend(self, steps: int) -> None:
        _BUDGET.get().spend(steps)

    def made(self, value: Any) -> Any:
        return _BUDGET.get().made(value)

    def touched(self, value: Any) -> Any:
        _BUDGET.get().touch(value)
        return value

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _REMOVED_METHODS and super().is_safe_attribute(obj, attr, value)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            self.touched(argument)  # Its hash is computed anew each time.
        return super().getitem(obj, argument)

    def call(self, context, obj, /, *args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        method = inspect.unwrap(obj) if isinstance(obj, types.FunctionType) else obj
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            if method.__name__ == "join":
                args = ([*args[0]], *args[1:])
            size = _METHOD_SIZES.get(method.__name__, lambda *_: 0)
            budget.foresee(size(owner, *args, *kwargs.values()))
        budget.spend(_STEPS_A_CALL)
        for value in (owner, *args, *kwargs.values()):
            budget.touch(value)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context, operator: str, left: Any, right: Any) -> Any:
        budget = _BUDGET.get()
        sizes = budget.touch(left), budget.touch(right)
        budget.foresee(_OPERATOR_SIZES.get(operator, lambda *_: 0)(left, right, *sizes))
        return budget.made(super().call_binop(context, operator, left, right))


@jinja2.pass_context
def _written(context, value: Any) -> Any:
    return _BUDGET.get().made(value)


def _counted(function: Callable, size: Callable[[dict[str, Any]], float] | None) -> Callable:
    """A filter or test that counts what it is given and what it makes; `size` foresees that from its arguments."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0
    parameters = inspect.signature(function).parameters.values()
    signature = inspect.Signature([each for each in parameters if each.name not in ("environment", "eval_ctx", "context")])

    @functools.wraps(function)
    def counted(*args, **kwargs):
        budget = _BUDGET.get()
        budget.spend(_STEPS_A_CALL)
        args = [[*budget.each(value)] if size and isinstance(value, types.GeneratorType) else value for value in args]
        for value in (*args[first:], *kwargs.values()):
            budget.touch(value)
        if size:
            budget.foresee(size(signature.bind(*args[first:], **kwargs).arguments))
        result = function(*args, **kwargs)
        return budget.each(result) if isinstance(result, types.GeneratorType) else budget.made(result)

    return counted


def _stepping(function: Callable) -> Callable:
    @functools.wraps(function)
    def stepping(*args, **kwargs):
        budget = _BUDGET.get()
        budget.spend(1)
        for value in args:
            if isinstance(value, str):
                budget.touch(value)
        return function(*args, **kwargs)

    return stepping


def _size(value: Any) -> int:
    """Of an argument that is a number, such as a width, or a text."""
    return abs(value) if isinstance(value, int) else len(value)


def _size_of_format(text: str, *values: Any) -> float:
    """Size of a text made by % or `format`; endless where the text, or a value, asks for a wide field."""
    if _TOO_WIDE.search(text) or _NESTED_FIELD.search(text):
        return math.inf
    budget = _BUDGET.get()
    return (text.count("%") + text.count("{")) * (1000 + sum(map(budget.touch, values)))


def _size_of_replaced(text: str, old: str, new: str, *_: Any) -> int:
    return len(text) + str(text).count(str(old)) * len(str(new))


def _size_of_product(left: Any, right: Any, left_size: int, right_size: int) -> float:
    if isinstance(left, int) and isinstance(right, int):
        return math.inf if left.bit_length() + right.bit_length() > MOST_BITS else 1
    times, size = (left, right_size) if isinstance(left, int) else (right, left_size)
    return size * times if isinstance(times, int) else 1


def _size_of_power(left: Any, right: Any, *_: int) -> float:
    whole = isinstance(left, int) and isinstance(right, int)
    return math.inf if whole and left.bit_length() * right > MOST_BITS else 1


_OPERATOR_SIZES = {
    "*": _size_of_product,
    "**": _size_of_power,
    "%": lambda left, right, *_: _size_of_format(left, right) if isinstance(left, str) else 1,
}
_METHOD_SIZES = dict.fromkeys(("center", "ljust", "rjust", "zfill"), lambda text, width=0, *_: _size(width)) | {
    "join": lambda text, values: len(text) * len(values), "replace": _size_of_replaced, "expandtabs": lambda text,
    width=8: text.count("\t") * _size(width), "format": _size_of_format, "format_map": _size_of_format,
}  # fmt: skip
# Filters that may make much more than they are given, from their arguments by name.
_FILTER_SIZES = {
    "batch": lambda given: _size(given["linecount"]),
    "slice": lambda given: _size(given["slices"]),
    "center": lambda given: _size(given.get("width", 0)),
    "indent": lambda given: (str(given["s"]).count("\n") + 1) * _size(given.get("width", 4)),
    "join": lambda given: len(list(given["value"])) * len(str(given.get("d", ""))),
    "replace": lambda given: _size_of_replaced(str(given["s"]), given["old"], given["new"]),
    "round": lambda given: math.inf if abs(given.get("precision", 0)) > 100 else 1,
    "sum": lambda given: 1 if isinstance(given.get("start", 0), (int, float)) else math.inf,
    "format": lambda given: _size_of_format(str(given["value"]), given.get("args", ()), given.get("kwargs", {})),
}
