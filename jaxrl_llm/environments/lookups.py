"""Chats with something to look answers up in: a local corpus by BM25, and databases by SQL."""

import functools
import json
import sqlite3
import time
from pathlib import Path

from jaxrl_llm.environments.base import Environment, Example
from jaxrl_llm.environments.tool_use import chat_with, terms_of
from jaxrl_llm.environments.tools import Tool, tool

MOST_ROWS = 20  # of a table that the policy is shown
SQL_SECONDS = 2.0  # of one query
_SHOWN = 600  # characters of a passage
_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


def search(
    corpus: str, count: int = 3, style: str = "hermes", answer: str = "exact_match", cost: float = 0.0, malformed: float = 0.0
) -> Environment:
    """A chat with a tool `search` over the passages of a file, by BM25; see `tool_use`.

    Args:
      corpus: JSONL with "text", and "title" where there is one, in each line.
      count: passages that a search shows.
      style, answer, cost, malformed: as in `tool_use`.

    Raises ValueError: a file that is missing or malformed, an option out of range, or the package bm25s is missing.
    """
    if count < 1:
        raise ValueError(f"count is {count}; give at least 1")
    _index(corpus)
    make = functools.partial(_searching, corpus, count)
    return chat_with(make, [each.schema for each in make({})], terms_of(style, answer, cost, malformed))


def _searching(corpus: str, count: int, example: Example) -> list[Tool]:
    def find(query: str) -> str:
        """Finds passages of the corpus.

        Args:
          query: Words to look for.
        """
        passages, index, split = _index(corpus)
        places, _ = index.retrieve(split(query), k=min(count, len(passages)), show_progress=False)
        return "\n\n".join(passages[int(place)][:_SHOWN] for place in places[0])

    find.__name__ = "search"
    return [tool(find)]


@functools.cache
def _index(corpus: str):
    """Passages, their index, and the function that splits a query into words."""
    try:
        import bm25s
    except ImportError as error:
        raise ValueError("the environment 'search' needs a package: pip install 'jaxrl_llm[environments]'") from error
    passages = []
    try:
        lines = Path(corpus).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"the corpus {corpus!r} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            own = json.loads(line)
            passages.append("\n".join(str(own[name]) for name in ("title", "text") if name in own or name == "text"))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{corpus}, line {number}: give an object with a 'text': {error!r}") from error
    if not passages:
        raise ValueError(f"the corpus {corpus!r} is empty")
    split = functools.partial(bm25s.tokenize, stopwords=None, show_progress=False)
    index = bm25s.BM25()
    index.index(split(passages), show_progress=False)
    return passages, index, split


def sql(style: str = "hermes", answer: str = "exact_match", cost: float = 0.0, malformed: float = 0.0) -> Environment:
    """A chat with a tool `query` over a database of the example, whose "database" is SQL that makes it; see `tool_use`.

    Queries read and change nothing; one that takes longer than two seconds, or more rows than 20, is cut.
    """
    return chat_with(
        _querying, [each.schema for each in _querying({})], terms_of(style, answer, cost, malformed), ("database",)
    )


def _querying(example: Example) -> list[Tool]:
    def query(statement: str) -> str:
        """Runs a query of SQLite on the database, which it cannot change.

        Args:
          statement: One SELECT statement.
        """
        return queried(str(example["database"]), statement)

    return [tool(query)]


def queried(database: str, statement: str) -> str:
    """The rows of a query as lines, behind one with the names of the columns.

    Raises sqlite3.Error: SQL that is wrong, that would change something or takes too long.
    """
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(database)
        ends = time.monotonic() + SQL_SECONDS
        connection.set_progress_handler(lambda: time.monotonic() > ends, 10_000)
        connection.set_authorizer(lambda kind, *_: sqlite3.SQLITE_OK if kind in _READING else sqlite3.SQLITE_DENY)
        cursor = connection.execute(statement)
        names, rows = [column[0] for column in cursor.description or ()], cursor.fetchmany(MOST_ROWS + 1)
        lines = [" | ".join(map(str, row)) for row in (names, *rows[:MOST_ROWS])]
        return "\n".join([*lines, *["(more rows)"] * (len(rows) > MOST_ROWS)])
    finally:
        connection.close()
