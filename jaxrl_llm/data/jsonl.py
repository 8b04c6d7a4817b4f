"""Examples from a file."""

import pathlib
from collections.abc import Mapping

from jaxrl_llm.data import sources
from jaxrl_llm.data.columns import require_prompt, select_columns
from jaxrl_llm.data.files import read_rows
from jaxrl_llm.data.sources import Source


def jsonl_source(path: str | pathlib.Path, columns: Mapping[str, str] | None = None, *, split_turns: bool = False) -> Source:
    """The rows of a file, read and checked at once.

    Args:
      path: what `files.read_rows` reads: JSON lines, compressed or not, Parquet, or a folder of these.
      columns: our name -> name in the file, as in {"prompt": "question", "answer": "answer"}; others are left out.
        Without it every column keeps its name. See `columns.select_columns` for the forms that are known.
      split_turns: dialogues become one example for each of their assistant turns, as `sources.split_turns` says.

    Raises ValueError: the file is empty, or a line is no JSON object, lacks a column or has a prompt, completion or dialogue
      that is none; the message gives its number.
    """
    found = [(place, require_prompt(select_columns(row, columns, place), row, place)) for place, row in read_rows(path)]
    places, rows = zip(*found, strict=True)
    source = Source(str(path), len(rows), lambda index: dict(rows[index]), places.__getitem__)
    return sources.split_turns(source) if split_turns else source
