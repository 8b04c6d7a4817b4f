"""What comes from outside, read with suspicion: files of JSON, and values of the wanted type and within bounds.

A *check* is a function `(value, place) -> value`. It gives the value as it is used from there on, or raises a ValueError of
one line with the place (file and field), what was found and what is wanted. Null is no value, wherever it stands.
"""

import contextlib
import dataclasses
import functools
import importlib
import json
import math
import pathlib
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Check = Callable[[Any, str], Any]


def local(path: str | pathlib.Path) -> pathlib.Path:
    """The absolute path of a file or folder of this machine.

    Raises ValueError: it is an address such as gs://bucket/model, which would become a local folder of that name.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(path)):
        raise ValueError(f"{path} is no folder of this machine; mount the bucket or copy what is there, and give that")
    return pathlib.Path(path).absolute()


def imported(name: str, what: str) -> Any:
    """What "package.module:function" names.

    Raises ValueError: there is none; the message says `what` it is to be.
    """
    module, _, own = name.partition(":")
    try:
        return getattr(importlib.import_module(module), own)
    except (ImportError, AttributeError, ValueError) as error:  # ValueError of an empty name of a module
        raise ValueError(f"{what} {name!r} cannot be imported: {error}; is its module on PYTHONPATH?") from error


MOST_BYTES = 2**28  # of a file that is read into memory
MOST_NESTED = 200  # brackets within brackets
LARGEST = 3e38  # that float32 holds
_SHOWN, _LONGEST = 80, 800  # characters of a value in a message, and of a message
_MOST_DIGITS = 4000  # of an integer, fewer than Python converts
_HALVES = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(path: str | pathlib.Path) -> str:
    """The text of a UTF-8 file, without the byte order mark that some editors put before it.

    Raises ValueError: the file is not UTF-8, or larger than `MOST_BYTES`.
    """
    path = pathlib.Path(path)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{path} has {size} bytes; such a file has at most {MOST_BYTES}: check that it is the right one")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


def read_object(path: str | pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file; errors as in `read_text` and `parse_object`."""
    return parse_object(read_text(path), str(path))


def parse_object(
    text: str, place: str, mend: str = "write or download it again", *, pairs: Callable[[list], dict] | None = None
) -> dict[str, Any]:
    """The JSON object in `text`.

    Args:
      text: of a file or a line.
      place: of it, for messages.
      mend: what to do about a text that is none.
      pairs: makes an object of its names and values, and may refuse it with a ValueError; by default the last of one name
        counts.

    Raises ValueError: it is something else, or holds what JSON does not have or Python cannot use: numbers that are not finite,
      integers of thousands of digits, brackets within hundreds of brackets, halves of surrogate pairs.
    """
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer, object_pairs_hook=pairs
        )
        _check_depth(value)
        if _HALVES.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        fault = f"{error.msg} at line {error.lineno}, column {error.colno}" if text.strip() else "it is empty"
        raise ValueError(f"{place}: not valid JSON ({fault}); {mend}") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: not valid JSON (half of a surrogate pair is no character); {mend}") from error
    except RecursionError as error:
        raise ValueError(f"{place}: not valid JSON ({_TOO_DEEP}); {mend}") from error
    except ValueError as error:
        raise ValueError(f"{place}: not valid JSON ({str(error).partition(';')[0]}); {mend}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{place}: holds a {type(value).__name__}, {shown(value)}; it must hold a JSON object; {mend}")
    return value


_TOO_DEEP = f"brackets within more than {MOST_NESTED} brackets"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:_SHOWN]} is no finite number")
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_NESTED):
        if not level:
            return
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list))]
        level = [item for each in inner for item in each if isinstance(item, (dict, list))]
    if level:
        raise ValueError(_TOO_DEEP)


def wrong(value: Any, place: str, wanted: str) -> ValueError:
    """The error of a value that is not what is wanted."""
    return ValueError(f"{line(place)} is {shown(value)}; it must be {wanted}")


def line(text: str) -> str:
    """A text for a message: a name that a file gives may hold anything."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def whole(least: int = 0, most: int = 2**53) -> Check:
    """A whole number in [least, most]; neither 3.0 nor true is one."""

    def check(value, place):
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        raise wrong(value, place, f"a whole number from {least} to {most}")

    return check


def real(least: float = -LARGEST, most: float = LARGEST, *, above: float | None = None) -> Check:
    """A number in [least, most], or in (above, most], as a float."""

    def check(value, place):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and (least <= value if above is None else above < value) and value <= most:
            return float(value)
        raise wrong(value, place, f"a number {f'from {least:g}' if above is None else f'above {above:g}'} to {most:g}")

    return check


def flag(value: Any, place: str) -> bool:
    """True or false."""
    if isinstance(value, bool):
        return value
    raise wrong(value, place, "true or false")


def text(value: Any, place: str) -> str:
    """A string."""
    if isinstance(value, str):
        return value
    raise wrong(value, place, "a string")


def anything(value: Any, place: str) -> Any:
    """What others check."""
    return value


def listed(check: Check, count: int | None = None) -> Check:
    """A list of values, `count` if it is given, as a tuple."""

    def check_all(value, place):
        if not isinstance(value, (list, tuple)) or count not in (None, len(value)):
            raise wrong(value, place, "a list" if count is None else f"a list of {count} values")
        return tuple(check(item, f"{place}[{index}]") for index, item in enumerate(value))

    return check_all


def one_or_more(check: Check) -> Check:
    """A value or a list of such, as a tuple."""
    several = listed(check)
    return lambda value, place: several(value, place) if isinstance(value, list) else (check(value, place),)


def mapping(check: Check = anything) -> Check:
    """An object, each value of which that is not null is checked."""

    def check_all(value, place):
        if not isinstance(value, dict):
            raise wrong(value, place, "an object")
        return {name: check(item, f"{place}.{name}") for name, item in value.items() if item is not None}

    return check_all


def either(wanted: str, *checks: Check) -> Check:
    """What one of `checks` takes; `wanted` says it in words."""

    def check_any(value, place):
        for check in checks:
            with contextlib.suppress(ValueError):
                return check(value, place)
        raise wrong(value, place, wanted)

    return check_any


def fields(values: Mapping[str, Any], checks: Mapping[str, Check], before: str) -> dict[str, Any]:
    """Those of `values` that are not null, checked where there is a check for their name.

    Args:
      values: such as a JSON object.
      checks: by name.
      before: what stands before a name in messages, such as "models/qwen/config.json: ".
    """
    return {
        name: checks[name](value, before + name) if name in checks else value
        for name, value in values.items()
        if value is not None
    }


def build(kind: type, values: Mapping[str, Any], before: str) -> Any:
    """The dataclass `kind` from a JSON object, each field of the type with which it is annotated.

    Raises ValueError: a field is unknown, missing or of another type, or the dataclass itself refuses it.
    """
    checks, needed = _checks_of(kind)
    unknown = sorted(values.keys() - checks.keys())
    if unknown:
        raise ValueError(f"{line(before + unknown[0])} is unknown; the fields are {', '.join(checks)}")
    found = fields(values, checks, before)
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(f"{before}{missing[0]} is missing; write the file again")
    return kind(**found)


@functools.cache
def _checks_of(kind: type) -> tuple[dict[str, Check], list[str]]:
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    plain = (dataclasses.MISSING, dataclasses.MISSING)
    needed = [field.name for field in dataclasses.fields(kind) if (field.default, field.default_factory) == plain]
    return {name: _check_of(hints[name]) for name in names}, needed


def _check_of(hint: Any) -> Check:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _check_of(next(part for part in inner if part is not types.NoneType))
    if origin is tuple and inner[-1] is Ellipsis:
        return listed(_check_of(inner[0]))
    if origin is tuple:
        parts = [_check_of(part) for part in inner]
        several = listed(anything, len(parts))
        return lambda value, place: tuple(
            check(item, f"{place}[{index}]")
            for index, (check, item) in enumerate(zip(parts, several(value, place), strict=True))
        )
    if dataclasses.is_dataclass(hint):
        return lambda value, place: build(hint, mapping()(value, place), f"{place}.")
    return {int: whole(), float: real(), bool: flag, str: text, Any: anything}[hint]


@contextlib.contextmanager
def about(place: str) -> Iterator[None]:
    """Lets every ValueError within begin with `place`, and be of a length that one reads."""
    try:
        yield
    except ValueError as error:
        message = str(error) if str(error).startswith(place) else f"{place}: {error}"
        raise ValueError(line(message)) from error
