"""Tools: functions that a model calls in the text of its turn, and what they answer as messages for its chat template."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxrl_llm import reading
from jaxrl_llm.environments.calculator import calculator
from jaxrl_llm.environments.schemas import Schema, fault_of, schema_of, usage
from jaxrl_llm.environments.syntaxes import Call, calls_in
from jaxrl_llm.rewards import sandbox

MOST_RESULT = 4096  # characters of a result that the model is shown
_MOST_NAME = 80  # of what it takes for the name of a tool


class Counts(NamedTuple):
    """Calls of a turn: all, those that could not be understood or had wrong arguments, and those whose function failed."""

    calls: int
    malformed: int
    failed: int


@dataclasses.dataclass(frozen=True)
class Tool:
    """A function, and its schema as chat templates take it: an entry of the column "tools" of an example."""

    function: Callable
    schema: Schema

    @property
    def name(self) -> str:
        return self.schema["function"]["name"]


def tool(function: Callable) -> Tool:
    """A function as a tool; its signature and docstring say all that the model is told, see `schemas.schema_of`.

    Raises ValueError: they say too little.
    """
    return Tool(function, schema_of(function))


def python(code: str) -> str:
    """Runs a program in Python with its standard library. What it prints is the result.

    Args:
      code: The program.
    """
    output, fault = sandbox.run([code], errors=True)
    return "\n".join(filter(None, [output.rstrip("\n"), fault and f"({fault})"])) or "(it printed nothing)"


NAMED = {function.__name__: function for function in (calculator, python)}


def load_tools(names: Sequence[str]) -> list[Tool]:
    """The tools of these names: "calculator", "python", or functions as "package.module:function".

    Raises ValueError: a name is unknown or twice there, a function cannot be imported or described, or there is no sandbox for
      `python`.
    """
    found = [tool(NAMED[name] if name in NAMED else _imported(name)) for name in names]
    called = [each.name for each in found]
    twice = next((name for name in called if called.count(name) > 1), None)
    if twice:
        raise ValueError(f"two tools are called {twice!r}, so that no call could tell which; give each a name of its own")
    if any(each.function is python for each in found):
        sandbox.check()
    return found


def _imported(name: str) -> Callable:
    if ":" not in name:
        raise ValueError(f"tool {name!r} is unknown; give 'package.module:function' or one of {sorted(NAMED)}")
    return reading.imported(name, "tool")


def call(tools: Sequence[Tool], text: str, style: str) -> tuple[list[dict[str, Any]], Counts]:
    """Runs the calls that an assistant wrote, one after the other, and answers each, whatever it is.

    A call that cannot be understood, of a tool that there is not or with arguments that do not fit is answered with what is
    wrong and what is wanted; where a function raises, the answer is its error. Functions run in this process and for as
    long as they like.

    Args:
      tools: that there are.
      text: of the assistant's turn, as in `calls_in`.
      style: of its calls, see `style_of`.

    Returns: Messages to go on with, none where nothing was called: of the role "tool" in the order of the calls, or for Gemma,
      whose template has no such role, one of the user.
    """
    calls = calls_in(text, style)
    answers = [_answer({each.name: each for each in tools}, each, number) for number, each in enumerate(calls, 1)]
    kinds = [kind for _, _, kind in answers]
    counts = Counts(len(calls), kinds.count("malformed"), kinds.count("failed"))
    if style == "gemma" and answers:
        blocks = [f"```tool_output\n{content}\n```" for _, content, _ in answers]
        return [{"role": "user", "content": "\n".join(blocks)}], counts
    return [{"role": "tool", "name": name, "content": content} for name, content, _ in answers], counts


def _answer(tools: dict[str, Tool], given: Call, number: int) -> tuple[str, str, str]:
    """(name, content, "" or "malformed" or "failed") of one call."""
    found, name = tools.get(given.name), given.name[:_MOST_NAME]
    error = f"Error in call {number} ({name}): " if name else f"Error in call {number}: "
    if given.fault or found is None:
        listed = "; ".join(usage(each.schema["function"]) for each in tools.values()) or "none"
        fault = given.fault or f"there is no tool {name!r}"
        return name or "unknown", f"{error}{fault}. The tools are: {listed}", "malformed"
    function = found.schema["function"]
    arguments, fault = _by_name(given, function["parameters"])
    fault = fault or fault_of(arguments, function["parameters"])
    if fault:
        return name, f"{error}{fault}. Usage: {usage(function)}", "malformed"
    try:
        return name, _told(found.function(**arguments)), ""
    except Exception as raised:  # a function may raise anything; it is the model's to read
        return name, _told(f"{error}{type(raised).__name__}: {raised}"), "failed"


def _by_name(given: Call, parameters: Schema) -> tuple[Any, str]:
    """Arguments that were given in their order, by name too; and what is wrong with that."""
    names = list(parameters["properties"])
    if not given.places:
        return given.arguments, ""
    if len(given.places) > len(names):
        return {}, f"there are {len(given.places)} arguments and {len(names)} parameters"
    placed = dict(zip(names, given.places, strict=False))
    twice = [name for name in placed if name in given.arguments]
    fault = f"the argument {twice[0]!r} is given twice" if twice else ""
    return placed | given.arguments, fault


def _told(result: Any) -> str:
    """A result as a text: as it is, or as JSON; cut where it is long."""
    try:
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(result)
    return text if len(text) <= MOST_RESULT else f"{text[:MOST_RESULT]}... ({len(text) - MOST_RESULT} characters more)"
