"""Chats that look things up: passages by BM25, and databases by SQL that change nothing."""

import json
import sqlite3

import pytest

from jaxrl_llm.environments import search, sql
from jaxrl_llm.environments.lookups import queried

DATABASE = "create table fruit(name text, price int); insert into fruit values ('pear', 3), ('fig', 5), ('kiwi', 2);"


def called(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_queries_read_the_database_of_the_example():
    chat = sql()
    state, _ = chat.reset({"prompt": "Which is dearest?", "answer": "fig", "database": DATABASE}, 0)
    found = chat.step(state, called("query", statement="select name from fruit order by price desc limit 1"))
    assert found.reply[0]["content"] == "name\nfig" and found.facts["calls"] == 1
    assert chat.step(found.state, "fig").reward == 1.0
    spoiled = chat.step(state, called("query", statement="drop table fruit"))
    assert "not authorized" in spoiled.reply[0]["content"] and spoiled.facts["failed_calls"] == 1
    with pytest.raises(ValueError, match="'database'"):
        chat.reset({"prompt": "?", "answer": "1"}, 0)


@pytest.mark.parametrize(
    "statement",
    [
        "insert into fruit values ('x', 1)",
        "attach 'a.db' as a",
        "pragma writable_schema=1",
        "create table t(x)",
        "select 1; select 2",
    ],
)  # fmt: skip
def test_nothing_but_one_reading_statement_is_run(statement):
    with pytest.raises((sqlite3.Error, sqlite3.Warning)):
        queried(DATABASE, statement)


def test_long_queries_and_long_tables_are_cut():
    endless = "with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n"
    with pytest.raises(sqlite3.Error, match="interrupted"):
        queried(DATABASE, endless)
    many = queried(DATABASE, "with recursive n(x) as (select 1 union all select x + 1 from n limit 50) select x from n")
    assert many.splitlines()[-1] == "(more rows)" and len(many.splitlines()) == 22


def test_passages_are_found_by_their_words(tmp_path):
    pytest.importorskip("bm25s")
    path = tmp_path / "corpus.jsonl"
    texts = ["the tower of pisa leans", "the tower of london stands", "rivers flow to the sea"]
    path.write_text("".join(json.dumps({"title": f"page {place}", "text": text}) + "\n" for place, text in enumerate(texts)))
    chat = search(str(path), count=1)
    state, _ = chat.reset({"prompt": "Which tower leans?", "answer": "pisa"}, 0)
    found = chat.step(state, called("search", query="tower leans"))
    assert found.reply[0]["content"] == "page 0\nthe tower of pisa leans"
    other = tmp_path / "other.jsonl"
    other.write_text('{"title": "x"}\n')
    with pytest.raises(ValueError, match="line 1"):
        search(str(other))
    with pytest.raises(ValueError, match="cannot be read"):
        search(str(tmp_path / "none.jsonl"))
