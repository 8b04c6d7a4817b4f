"""Values and files as they should not be, and what can be told of them without reading them as the package does."""

import json
import pathlib
import random

# What stands in files where a value should be. Texts after "@" are written as they are, without quotes.
VALUES = [
    None,
    True,
    False,
    0,
    1,
    2,
    3,
    -1,
    7,
    64,
    10**5,
    2 * 10**9,
    10**30,
    10**400,
    0.0,
    0.5,
    1.5,
    3.0,
    -2.5,
    1e-9,
    1e16,
    1e300,
]
VALUES += ["", "x", "1", "default", "a" * 5000, "../x", "/etc/passwd", "é\n", [], [1], [1.5], ["x"], [None], [[]], [-1], [True]]
VALUES += [
    {},
    {"a": 1},
    {"content": 5},
    {"name": "x"},
    {"factor": 0},
    {"rope_type": "yarn"},
    {"rope_type": ["x"], "factor": "x"},
]
BROKEN = ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "[" * 100_000 + "]" * 100_000, r'"\ud800"', "01", "tru", "{,}"]
VALUES += [f"@{text}" for text in BROKEN]


def is_whole(value, least=0, most=10**8):
    """Whether it is an integer of Python in [least, most]."""
    return type(value) is int and least <= value <= most


def is_number(value, least=0.0):
    """Whether it is a number of Python from `least` on that float32 holds."""
    return type(value) in (int, float) and least <= value < 1e38


def is_flag(value):
    """Whether it is true or false."""
    return type(value) is bool


def is_text(value):
    """Whether it is a string."""
    return type(value) is str


def all_of(check):
    """Predicate: a list of which `check` holds for each value."""
    return lambda value: type(value) is list and all(map(check, value))


def one_or_all(check):
    """Predicate: `check` holds for the value, or for each of a list."""
    return lambda value: check(value) or all_of(check)(value)


def is_object(value):
    """Whether it is a dict."""
    return type(value) is dict


def dumped(content) -> str:
    """JSON in which texts after "@" are written without quotes."""
    text = json.dumps(content)
    for quoted, broken in _QUOTED.items() if '"@' in text else ():
        text = text.replace(quoted, broken)
    return text


_QUOTED = {json.dumps(f"@{text}"): text for text in BROKEN}


def change(rng: random.Random, content: dict, right: dict, needed=()) -> bool:
    """Changes one value in place; whether that makes the content wrong. `right` has a predicate for each name."""
    name, value = rng.choice(list(right)), rng.choice(VALUES)
    content[name] = value
    if value is None:
        return name in needed
    return (is_text(value) and value.startswith("@")) or not right[name](value)


def damage(rng: random.Random, text: str) -> tuple[bytes, bool]:
    """The text with a fault of files, and whether it must be refused."""
    whole = text.encode()
    kind = rng.randrange(9)
    if kind == 0:
        return whole[: rng.randrange(len(whole))].rstrip(), True
    if kind == 1:
        return b"\xef\xbb\xbf" + whole, False
    if kind == 2:
        return rng.choice(
            [b"", b" \n", b"\0" * 9, b"[]", b"5", b"null", b'"x"', b"{", text.encode("utf-16"), whole + b"}"]
        ), True
    if kind == 3:
        return b"[" + whole + b"]", True
    if kind == 4:
        return whole[:-1] + b', "\xff": 1}', True
    changed = bytearray(whole)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed), not parses(bytes(changed))


def parses(content: bytes) -> bool:
    """Whether the bytes are a JSON object in UTF-8, as the standard library reads it."""
    try:
        return isinstance(json.loads(content.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def written(rng: random.Random, path: pathlib.Path, content: dict, right: dict, needed=()) -> bool:
    """Writes a changed or damaged copy of `content`; whether it must be refused."""
    content = json.loads(json.dumps(content))
    if rng.random() < 0.25:
        found, wrong = damage(rng, json.dumps(content))
        path.write_bytes(found)
        return wrong
    wrong = [change(rng, content, right, needed) and name for name in range(rng.randrange(1, 3))]
    path.write_text(dumped(content))
    return any(item is not False for item in wrong) and not_mended(content, right, needed)


def not_mended(content: dict, right: dict, needed) -> bool:
    """Whether something is still wrong: a second change may have replaced the first."""
    present = {name: content.get(name) for name in right}
    broken = [value for value in present.values() if is_text(value) and value.startswith("@")]
    unlike = [name for name, value in present.items() if value is not None and not right[name](value)]
    return bool(broken or unlike or [name for name in needed if present.get(name) is None])
