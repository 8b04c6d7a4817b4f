"""Schemas of functions against those of transformers, and values against schemas."""

from typing import Any, Literal, Optional

import pytest

from jaxrl_llm.environments.schemas import fault_of, fits, schema_of, usage


def search(query: str, limit: int = 10, kind: Literal["web", "news"] = "web", exact: bool = False) -> list[str]:
    """Searches for pages.

    It has a second paragraph.

    Args:
      query: What to look for: words, or a sentence
        that goes on.
      limit (int): Most pages.
      kind: Which
        pages.
      exact: Whether the words stand together.

    Returns:
      Titles of pages.
    """


def nested(rows: list[dict[str, float]], note: Optional[str] = None, size: int | str | None = None, free: Any = 0) -> None:  # noqa: UP045
    """Adds rows.

    Args:
        rows: Numbers by name.
        note: A note.
        size: How many: a number or a word.
        free: Anything.
    """


def plain(items: list, table: dict, either: list[int] | str, level: Literal[1, "high"]):
    """Takes containers.

    Args:
        items: A list.
        table: A table.
        either: One of two.
        level: A level.
    """


def nothing() -> dict:
    """Takes nothing."""


@pytest.mark.parametrize("function", [search, nested, plain, nothing])
def test_schemas_are_those_of_transformers(function):
    from transformers.utils import get_json_schema

    assert schema_of(function) == get_json_schema(function)


def undocumented(x: int):
    pass


def untold(x: int, y: int):
    """Says.

    Args:
      x: Something.
    """


def unannotated(x):
    """Says.

    Args:
      x: Something.
    """


def strange(x: set[int]):
    """Says.

    Args:
      x: Something.
    """


def many(*x: int):
    """Says."""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (undocumented, "undocumented has no docstring"),
        (untold, "untold: the parameter 'y' has no line in the section 'Args:'"),
        (unannotated, "unannotated: the parameter 'x' has no annotation"),
        (strange, "strange: the parameter 'x' is a .*set.*, which a schema cannot describe; annotate it with"),
        (many, "many: the parameter 'x' cannot be given by name"),
        (lambda x: x, "has no name that a model could call it by"),
    ],
)
def test_what_cannot_be_described_is_told(function, message):
    with pytest.raises(ValueError, match=message):
        schema_of(function)


@pytest.mark.parametrize(
    ("function", "arguments", "fault"),
    [
        (search, {"query": "a"}, ""),
        (search, {"query": "a", "limit": 3, "kind": "news", "exact": True}, ""),
        (search, {}, "the argument 'query' is missing"),
        (search, {"query": 1}, "the argument 'query' is 1; it must be string"),
        (search, {"query": "a", "limit": True}, "the argument 'limit' is true; it must be integer"),
        (search, {"query": "a", "limit": 1.0}, "the argument 'limit' is 1.0; it must be integer"),
        (search, {"query": "a", "kind": "x"}, 'the argument \'kind\' is "x"; it must be one of "web", "news"'),
        (search, {"query": "a", "site": "x"}, 'there is no argument "site"'),
        (search, [1], "the arguments are [1]; they must be a JSON object"),
        (nested, {"rows": [{"a": 1}, {"b": 1.5}], "note": None, "size": "all", "free": [None]}, ""),
        (nested, {"rows": [{"a": "x"}]}, 'the argument \'rows\' is [{"a": "x"}]; it must be array of object of number'),
        (nested, {"rows": [], "size": 1.5}, "the argument 'size' is 1.5; it must be integer or string or null"),
        (plain, {"items": [1, "a"], "table": {"a": []}, "either": [1], "level": "high"}, ""),
        (plain, {"items": {1}, "table": {}, "either": "", "level": 1}, "the argument 'items' is {1}; it must be array"),
        (
            plain,
            {"items": [], "table": {}, "either": ["a"], "level": 1},
            "the argument 'either' is [\"a\"]; it must be array of integer or string",
        ),
    ],
)
def test_arguments_are_checked(function, arguments, fault):
    assert fault_of(arguments, schema_of(function)["function"]["parameters"]) == fault


def test_values_of_an_enumeration_keep_their_type():
    assert fits(1, {"type": "integer", "enum": [1]}) and not fits(True, {"type": ["integer", "boolean"], "enum": [1]})


def test_usage_is_one_line():
    told = usage(schema_of(search)["function"])
    assert told == 'search(query: string, limit: integer = ..., kind: one of "web", "news" = ..., exact: boolean = ...)'
