"""How models write the calls of tools, by the family of their chat template: text to calls, none of which raises.

Sources: the chat templates of Qwen 2.5 and 3 (Hermes), of Llama 3.1 and 3.2, of Gemma 3 with
https://ai.google.dev/gemma/docs/capabilities/function-calling, and of gpt-oss with
https://cookbook.openai.com/articles/openai-harmony.
"""

import ast
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

STYLES = ("hermes", "llama", "gemma", "harmony")
# What a template of each style writes, in the order in which it is looked for.
_MARKS = {
    "harmony": "<|channel|>", "hermes": "<tool_call>", "llama": "<|start_header_id|>", "gemma": "<start_of_turn>",
}  # fmt: skip
_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
_FENCED = re.compile(r"```(tool_code|tool_call|json)[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
# Special tokens may be left out of a text that is decoded without them.
_HARMONY = re.compile(
    r"\bto=functions\.([\w.-]+)\s*(?:<\|channel\|>\s*\w+)?\s*(?:<\|constrain\|>)?\s*(?:json)?\s*(?:<\|message\|>|(?={))"
    r"(.*?)(?:<\|(?:call|end|start|return)\|>|\Z)",
    re.DOTALL,
)
_SPECIAL = re.compile(r"<\|?(?:eom_id|eot_id|im_end|end_of_turn|end_of_text|endoftext|eos)\|?>")
_BEGINS_OBJECT = re.compile(r'[\[\s]*\{\s*"(?:name|type|function)"')
_BEGINS_CALL = re.compile(r"\[?\s*[A-Za-z_][\w.]*\s*\(")
# What the first call of a text begins with.
_BEGINS = {
    "hermes": re.compile(r"<tool_call>"), "llama": re.compile(r"<\|python_tag\|>|[\[{]|\b\w+\("),
    "gemma": re.compile(r"```|[\[{]|\b\w+\("), "harmony": re.compile(r"<\|channel\|>commentary|\bto=functions"),
}  # fmt: skip
_FORM = '{"name": "...", "%s": {...}}'


class Call(NamedTuple):
    """A call as it was written: by name or in their order, the arguments; or what is wrong with it."""

    name: str = ""
    arguments: Any = None
    places: tuple[Any, ...] = ()
    fault: str = ""


def style_of(template: str) -> str:
    """The style of the calls that go with a chat template, by the marks that it writes.

    Raises ValueError: it has none of them.
    """
    found = next((style for style, mark in _MARKS.items() if mark in template), None)
    if found is None:
        raise ValueError(
            f"the chat template has none of the marks {list(_MARKS.values())}; name the style of its calls: {STYLES}"
        )
    return found


def calls_in(text: str, style: str) -> list[Call]:
    """The calls in what an assistant said, in their order; none where it calls nothing.

    Args:
      text: of a turn, decoded with the special tokens, by which some styles mark calls.
      style: one of `STYLES`.

    Raises ValueError: an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"style is {style!r}; it must be one of {STYLES}")
    text = _SPECIAL.sub("", text)
    if style == "hermes":
        said = text.rpartition("</think>")[2]
        return [_only(_objects(inner, "arguments"), _FORM % "arguments") for inner in _HERMES.findall(said)]
    if style == "harmony":
        return [_decoded(name, inner.strip() or "{}") for name, inner in _HARMONY.findall(text)]
    if style == "gemma":
        blocks = [(inner, name != "json") for name, inner in _FENCED.findall(text)]
    else:
        _, tag, behind = text.partition("<|python_tag|>")
        blocks = [(behind, True)] if tag else []
    return [call for block, marked in blocks or [(text, False)] for call in _bare(block, marked)]


def answer_in(text: str, style: str) -> str:
    """What a turn without calls says to whom it answers: of a turn of gpt-oss, its channel "final"."""
    return re.split(r"<\|\w+\|>", text.rpartition("final<|message|>")[2])[0] if style == "harmony" else text


def first_call(text: str, style: str) -> int:
    """The character at which calls begin in a text that has some, see `calls_in`."""
    found = _BEGINS[style].search(text)
    return found.start() if found else 0


def _bare(text: str, marked: bool) -> list[Call]:
    """Calls that are a text of their own: objects, one behind the other or in a list, or calls of Python.

    Text that nothing marks as a call is one only where it begins like one.
    """
    text = text.strip()
    if _BEGINS_OBJECT.match(text) or (marked and text.startswith("{")):
        return list(_objects(text.removeprefix("["), "parameters"))
    if not marked and not (_BEGINS_CALL.match(text) and text.endswith((")", "]"))):
        return []
    found = _python_calls(text)
    if marked and not found:
        return [Call(fault="it is no call of Python with values as arguments, such as name(x=1)")]
    return found


def _only(calls: Iterator[Call], form: str) -> Call:
    found = list(calls)
    return found[0] if len(found) == 1 else Call(fault=f"there are {len(found)} calls between the marks; write one, as {form}")


def _objects(text: str, key: str) -> Iterator[Call]:
    """Calls of objects with "name" and "arguments" or "parameters", with nothing but marks between them."""
    decoder, form = json.JSONDecoder(), _FORM % key
    text = text.strip()
    while text:
        try:
            value, end = decoder.raw_decode(text)
        except (ValueError, RecursionError) as error:
            fault = f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
            yield Call(fault=f"it is no valid JSON ({fault}); write {form}")
            return
        yield _of_object(value, form)
        text = text[end:].lstrip(" \t\r\n;,]")


def _of_object(value: Any, form: str) -> Call:
    value = value.get("function", value) if isinstance(value, dict) else value
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return Call(fault=f"it has no name; write {form}")
    arguments = next((value[key] for key in ("arguments", "parameters") if key in value), {})
    return _decoded(value["name"], arguments) if isinstance(arguments, str) else Call(value["name"], arguments)


def _decoded(name: str, text: str) -> Call:
    try:
        return Call(name, json.loads(text))
    except (ValueError, RecursionError) as error:
        fault = f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        return Call(name, fault=f"its arguments are no valid JSON ({fault}); write them as an object, {{...}}")


def _python_calls(text: str) -> list[Call]:
    """Calls that are statements or entries of a list; one that is printed is the call itself. Nothing is evaluated."""
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    values = [getattr(statement, "value", None) for statement in statements]
    values = [each for value in values for each in (value.elts if isinstance(value, ast.List | ast.Tuple) else [value])]
    values = [_printed(value) for value in values]
    return [_of_python(value) for value in values] if values and all(isinstance(value, ast.Call) for value in values) else []


def _printed(node: ast.AST | None) -> ast.AST | None:
    printed = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and len(node.args) == 1
    return node.args[0] if printed and isinstance(node.args[0], ast.Call) else node


def _of_python(node: ast.Call) -> Call:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    try:
        name = name or ast.unparse(node.func)
        named = {each.arg or "**": ast.literal_eval(each.value) for each in node.keywords}
        return Call(name, named, tuple(map(ast.literal_eval, node.args)))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return Call(name, fault="its arguments must be values such as 1, 'text' or [1, 2], not expressions")
