"""Examples from a JSONL file."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxrl_llm.data import sources
from jaxrl_llm.data.sources import Source, select_columns


def jsonl_source(path: str | pathlib.Path, columns: Mapping[str, str] | None = None, *, split_turns: bool = False) -> Source:
    """The objects of a JSONL file, one a line, read and checked at once; blank lines are skipped.

    Args:
      path: UTF-8 file.
      columns: our name -> name in the file, as in {"prompt": "question", "answer": "answer"}; others are left out.
        Without it every column keeps its name.
      split_turns: dialogues become one example for each of their assistant turns, as `sources.split_turns` says.

    Raises:
      ValueError: the file is empty, or a line is no JSON object, lacks a column or has a malformed dialogue; the message
        gives its number.
    """
    rows = [select_columns(row, columns, f"{path}, line {number}") for number, row in read_jsonl(path)]
    source = Source(str(path), len(rows), lambda index: dict(rows[index]))
    return sources.split_turns(source) if split_turns else source


def read_jsonl(path: str | pathlib.Path) -> list[tuple[int, dict[str, Any]]]:
    """Line numbers, from 1, and objects of a JSONL file.

    Raises:
      ValueError: the file is empty or a line is no JSON object.
    """
    with open(path, encoding="utf-8") as file:
        rows = [(number, _parse(line, path, number)) for number, line in enumerate(file, 1) if line.strip()]
    if not rows:
        raise ValueError(f"{path} holds no rows; give a file with one JSON object a line")
    return rows


def _parse(line: str, path: str | pathlib.Path, number: int) -> dict[str, Any]:
    place = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        mend = "write one complete JSON object a line, with line breaks inside strings as \\n"
        raise ValueError(f"{place}: not valid JSON ({error.msg} at column {error.colno}); {mend}") from error
    if not isinstance(row, dict):
        raise ValueError(f'{place}: holds a {type(row).__name__}; each line must be a JSON object such as {{"prompt": ...}}')
    return row
