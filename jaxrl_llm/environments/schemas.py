"""JSON schemas of functions from their signature and docstring, and values checked against them."""

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

Schema = dict[str, Any]
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean"}
_PYTHON = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
_SECTION = re.compile(r"^(Args|Returns|Raises):\s*$", re.MULTILINE)
_ENTRY = re.compile(r"^(\s*)(\w+)(?:\s*\([^()\n]*\))?:[ \t]*(.*)$")


def schema_of(function: Callable) -> Schema:
    """What a chat template shows of a function: its name, what it does, its parameters and what it returns.

    For what is supported it is that of `transformers.utils.get_json_schema`.

    Args:
      function: each parameter has an annotation (str, int, float, bool, list, dict, Literal, a union of such or with None,
        Any) and a line in the section "Args:" of the docstring; the text in front of the sections says what the function does.

    Raises ValueError: it has not, or has parameters that cannot be given by name.
    """
    name, documentation = getattr(function, "__name__", ""), inspect.getdoc(function) or ""
    if not name.isidentifier():
        raise ValueError(f"{function!r} has no name that a model could call it by; give a function that was made by def")
    first, *parts = _SECTION.split(documentation)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    if not first.strip():
        raise ValueError(f"{name} has no docstring that says what it does; write one")
    told, hints = _entries(sections.get("Args", "")), typing.get_type_hints(function)
    properties, required = {}, []
    for each in inspect.signature(function).parameters.values():
        if each.kind not in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
            raise ValueError(f"{name}: the parameter {each.name!r} cannot be given by name; give it a name of its own")
        if each.name not in hints or each.name not in told:
            missing = "annotation" if each.name not in hints else "line in the section 'Args:' of the docstring"
            raise ValueError(f"{name}: the parameter {each.name!r} has no {missing}, which a model needs; write it")
        described = {"description": told[each.name]}
        properties[each.name] = _of_hint(hints[each.name], f"{name}: the parameter {each.name!r}") | described
        required += [each.name] if each.default is each.empty else []
    parameters = {"type": "object", "properties": properties} | ({"required": required} if required else {})
    described = {"name": name, "description": first.strip(), "parameters": parameters}
    returned = _of_return(hints, name)
    if returned is not None:
        text = sections.get("Returns", "").strip()
        described["return"] = returned | ({"description": text} if text else {})
    return {"type": "function", "function": described}


def _of_return(hints: Mapping[str, Any], name: str) -> Schema | None:
    if hints.get("return") is types.NoneType:
        return {"type": "null"}
    try:
        return _of_hint(hints["return"], name)
    except (KeyError, ValueError):  # the model is never asked for it
        return None


def _entries(section: str) -> dict[str, str]:
    """The text of each parameter; lines that are indented more than a name go on with its text."""
    found: dict[str, list[str]] = {}
    indent = None
    for line in filter(str.strip, section.splitlines()):
        entry = _ENTRY.match(line)
        if entry and (indent is None or len(entry[1]) <= indent):
            indent, name = len(entry[1]), entry[2]
            found[name] = [entry[3].strip()]
        elif found:
            found[name].append(line.strip())
    return {name: " ".join(filter(None, lines)) for name, lines in found.items()}


def _of_hint(hint: Any, place: str) -> Schema:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if hint is Any:
        return {}
    if list in (hint, origin):
        return {"type": "array"} | ({"items": _of_hint(inner[0], place)} if inner else {})
    if dict in (hint, origin) and inner[:1] in ((), (str,)):
        return {"type": "object"} | ({"additionalProperties": _of_hint(inner[1], place)} if inner else {})
    if origin is typing.Literal and all(type(value) in _SCALARS for value in inner):
        kinds = list(dict.fromkeys(_SCALARS[type(value)] for value in inner))
        return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        return _of_union([_of_hint(part, place) for part in inner if part is not types.NoneType], types.NoneType in inner)
    wanted = "str, int, float, bool, list, dict with texts as keys, Literal, unions of such, None beside them, or Any"
    raise ValueError(f"{place} is a {hint}, which a schema cannot describe; annotate it with {wanted}")


def _of_union(parts: list[Schema], nullable: bool) -> Schema:
    names = sorted({part["type"] for part in parts if part.keys() == {"type"} and isinstance(part["type"], str)})
    plain = all(part.keys() == {"type"} and isinstance(part["type"], str) for part in parts)
    if len(parts) == 1:
        found = parts[0]
    else:
        found = {"type": names if len(names) > 1 else names[0]} if plain else {"anyOf": parts}
    return found | ({"nullable": True} if nullable else {})


def fault_of(arguments: Any, parameters: Schema) -> str:
    """What is wrong with the arguments of a call, in words for the model; "" if nothing is."""
    known, required = parameters["properties"], parameters.get("required", [])
    if not isinstance(arguments, dict):
        return f"the arguments are {_shown(arguments)}; they must be a JSON object"
    unknown = [name for name in arguments if name not in known]
    if unknown:
        return f"there is no argument {_shown(unknown[0])}"
    missing = [name for name in required if name not in arguments]
    if missing:
        return f"the argument {missing[0]!r} is missing"
    wrong = [name for name, value in arguments.items() if not fits(value, known[name])]
    return f"the argument {wrong[0]!r} is {_shown(arguments[wrong[0]])}; it must be {_wanted(known[wrong[0]])}" if wrong else ""


def fits(value: Any, schema: Schema) -> bool:
    """Whether a value of JSON is one of a schema that `schema_of` makes."""
    if value is None and schema.get("nullable"):
        return True
    if "anyOf" in schema:
        return any(fits(value, part) for part in schema["anyOf"])
    if "type" not in schema:
        return True
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if not any(isinstance(value, _PYTHON[kind]) and isinstance(value, bool) <= (kind == "boolean") for kind in kinds):
        return False
    if "enum" in schema:
        return any(value == each and type(value) is type(each) for each in schema["enum"])
    if isinstance(value, list):
        return all(fits(item, schema.get("items", {})) for item in value)
    return not isinstance(value, dict) or all(fits(item, schema.get("additionalProperties", {})) for item in value.values())


def usage(function: Schema) -> str:
    """A function as one line, such as "add(a: integer, b: integer = ...)"."""
    parameters = function["parameters"]
    required = parameters.get("required", [])
    told = [f"{name}: {_wanted(each)}{'' if name in required else ' = ...'}" for name, each in parameters["properties"].items()]
    return f"{function['name']}({', '.join(told)})"


def _wanted(schema: Schema) -> str:
    """A schema in words."""
    if "anyOf" in schema:
        found = " or ".join(map(_wanted, schema["anyOf"]))
    elif "enum" in schema:
        found = "one of " + ", ".join(map(json.dumps, schema["enum"]))
    elif "type" not in schema:
        found = "anything"
    else:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        inner = schema.get("items") or schema.get("additionalProperties")
        found = " or ".join(kinds) + (f" of {_wanted(inner)}" if inner else "")
    return found + (" or null" if schema.get("nullable") else "")


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # what Python writes and JSON does not
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
