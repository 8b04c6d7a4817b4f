"""Typed reading of what comes from outside: files, values, dataclasses."""

import dataclasses
import json
import math
import re
from typing import Any

import pytest

from jaxrl_llm import reading


def write(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def test_objects_are_read_with_a_byte_order_mark_and_windows_line_ends(tmp_path):
    assert reading.read_object(write(tmp_path, b'\xef\xbb\xbf{"a":\r\n [1, 2.5, "\xc3\xa9", null]}\r\n')) == {
        "a": [1, 2.5, "é", None]
    }
    assert reading.read_object(write(tmp_path, r'{"a": "\ud83d\ude42"}')) == {"a": "🙂"}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "it is empty"),
        ("\0\0", "Expecting value at line 1, column 1"),
        ('{"a": 1,\n "b": }', "Expecting value at line 2, column 7"),
        ("[1]", "holds a list, [1]; it must hold a JSON object"),
        ("null", "holds a NoneType, None"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"a": -Infinity}', "-Infinity is no number of JSON"),
        ('{"a": 1e999}', "1e999 is no finite number"),
        ('{"a": ' + "9" * 5000 + "}", "a number has 5000 digits"),
        ("[" * 100_000 + "]" * 100_000, "brackets within more than 200 brackets"),
        ('{"a": ' + "[" * 300 + "]" * 300 + "}", "brackets within more than 200 brackets"),
        (r'{"a": "\ud800"}', "half of a surrogate pair is no character"),
        (r'{"\udc00": 1}', "half of a surrogate pair is no character"),
        (b'{"a": "\xff"}', "is not UTF-8 (invalid start byte at byte 7); save it as UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "is not UTF-8 (invalid start byte at byte 0)"),
    ],
)
def test_what_is_no_json_object_is_refused_in_one_line(content, fault, tmp_path):
    path = write(tmp_path, content)
    with pytest.raises(ValueError) as caught:
        reading.read_object(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and fault in message and "\n" not in message and len(message) < 400


@pytest.mark.parametrize("name", ["nosuch.module:f", "math:nosuch", ":f", "math:"])
def test_what_cannot_be_imported_is_named(name):
    assert reading.imported("math:cos", "reward") is math.cos
    with pytest.raises(ValueError, match=f"^reward '{re.escape(name)}' cannot be imported: .*PYTHONPATH"):
        reading.imported(name, "reward")


def test_files_that_are_too_large_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_BYTES", 5)
    with pytest.raises(ValueError, match=r"file.json has 8 bytes; such a file has at most 5"):
        reading.read_object(write(tmp_path, '{"a": 1}'))


@pytest.mark.parametrize(
    ("check", "right", "wrong", "wanted"),
    [
        (reading.whole(1, 9), [1, 9], [0, 10, True, 3.0, "3", None, 10**400], "a whole number from 1 to 9"),
        (
            reading.real(0.0, 1.0),
            [0, 1, 0.5],
            [-1e-9, 1.1, float("nan"), float("inf"), 10**400, True, "1"],
            "a number from 0 to 1",
        ),
        (reading.real(above=0.0), [1e-30, 5], [0, -1, float("inf")], "a number above 0 to 3e+38"),
        (reading.flag, [True, False], [0, 1, "true", []], "true or false"),
        (reading.text, ["", "x"], [0, ["x"], {}], "a string"),
        (reading.mapping(reading.text), [{}, {"a": "b"}], [[], "x", 1], "an object"),
    ],
)
def test_values_of_another_type_or_out_of_bounds_are_named(check, right, wrong, wanted):
    assert [check(value, "f: x") for value in right] == right
    for value in wrong:
        with pytest.raises(ValueError) as caught:
            check(value, "f: x")
        assert str(caught.value).startswith("f: x is ") and str(caught.value).endswith(f"it must be {wanted}")
        assert len(str(caught.value)) < 200


def test_parts_are_named_by_their_place_and_null_is_no_value():
    checks = {"ids": reading.one_or_more(reading.whole()), "scale": reading.mapping(reading.real())}
    assert reading.fields({"ids": 3, "scale": {"a": 1, "b": None}, "other": "x", "none": None}, checks, "f: ") == {
        "ids": (3,),
        "scale": {"a": 1.0},
        "other": "x",
    }
    for value, place in (({"ids": [1, -1]}, r"f: ids\[1\] is -1"), ({"scale": {"a": "x"}}, "f: scale.a is 'x'")):
        with pytest.raises(ValueError, match=place):
            reading.fields(value, checks, "f: ")
    with pytest.raises(ValueError, match=r"f: x is \[2\]; it must be a name or a number"):
        reading.either("a name or a number", reading.text, reading.real())([2], "f: x")


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    scale: float | None = None
    inner: Inner | None = None
    pairs: tuple[tuple[str, Any], ...] = ()
    span: tuple[int, int] = (0, 1)


def test_dataclasses_are_built_from_their_annotations():
    stored = json.loads('{"name": "x", "scale": 2, "inner": {"size": 3}, "pairs": [["a", 1], ["b", null]], "span": [4, 5]}')
    assert reading.build(Outer, stored, "f: ") == Outer("x", 2.0, Inner(3), (("a", 1), ("b", None)), (4, 5))
    assert reading.build(Outer, {"name": "x", "scale": None, "span": None}, "f: ") == Outer("x")
    faults = {
        "f: name is missing": {"scale": 1.0},
        "f: nosuch is unknown; the fields are name, scale": {"name": "x", "nosuch": 1},
        "f: inner.size is 'x'; it must be a whole number": {"name": "x", "inner": {"size": "x"}},
        r"f: pairs\[0\] is \['a'\]; it must be a list of 2 values": {"name": "x", "pairs": [["a"]]},
        r"f: span\[1\] is 1.5": {"name": "x", "span": [1, 1.5]},
    }
    for message, stored in faults.items():
        with pytest.raises(ValueError, match=message):
            reading.build(Outer, stored, "f: ")


def test_errors_within_begin_with_the_place_and_are_not_endless():
    with pytest.raises(ValueError, match="^f: no good$"), reading.about("f"):
        raise ValueError("no good")
    with pytest.raises(ValueError, match="^f: it$"), reading.about("f"):
        raise ValueError("f: it")
    with pytest.raises(ValueError) as caught, reading.about("f"):
        raise ValueError("x" * 10_000)
    assert len(str(caught.value)) < 1000
