"""Sources and views of them; JSONL files; prompts that are too long."""

import json

import pytest

from jaxrl_llm import data


def write_lines(path, *lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_source_is_a_sequence():
    source = data.Source("squares", 3, lambda index: {"prompt": str(index * index)})
    assert [example["prompt"] for example in source] == ["0", "1", "4"]
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"squares: index {index} lies outside its 3"):
            source[index]


def test_views():
    source = data.map_source([{"prompt": "a", "answer": "1"}], lambda example: {**example, "answer": example["answer"] * 2})
    assert list(source) == [{"prompt": "a", "answer": "11"}]
    messages = [{"role": "system", "content": "Think."}, {"role": "user", "content": "a?"}]
    assert data.as_chat(source, system="Think.", suffix="?")[0] == {"prompt": messages, "answer": "11"}
    assert data.as_chat(source)[0]["prompt"] == [{"role": "user", "content": "a"}]


def test_jsonl_keeps_values_and_skips_blank_lines(tmp_path):
    row = {"prompt": "é\n", "answer": 42, "tags": ["x", None]}
    path = write_lines(tmp_path / "rows.jsonl", json.dumps(row), "", json.dumps({"prompt": "b"}))
    source = data.jsonl_source(path)
    assert list(source) == [row, {"prompt": "b"}]
    source[0]["prompt"] = "edited"
    assert source[0] == row


def test_jsonl_maps_columns(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", '{"question": "q", "gold": "g", "other": 1}')
    assert list(data.jsonl_source(path, {"prompt": "question", "answer": "gold"})) == [{"prompt": "q", "answer": "g"}]


@pytest.mark.parametrize(
    ("lines", "columns", "message"),
    [
        (['{"prompt": "a"}', '{"prompt": '], None, "rows.jsonl, line 2: not valid JSON.*one complete JSON object a line"),
        (["[1]"], None, "line 1: holds a list"),
        ([""], None, "holds no rows"),
        (['{"text": "a"}'], None, r"line 1: no column gives 'prompt'.*\['text'\]"),
        (['{"q": "a"}', "", '{"p": "a"}'], {"prompt": "q"}, r"line 3: column 'q' is missing; the row has \['p'\]"),
        (['{"q": "a"}'], {"answer": "q"}, "no column gives 'prompt'"),
    ],
)
def test_jsonl_errors(tmp_path, lines, columns, message):
    path = write_lines(tmp_path / "rows.jsonl", *lines)
    with pytest.raises(ValueError, match=message):
        data.jsonl_source(path, columns)


def test_long_prompts():
    source = data.Source("words", 3, lambda index: {"prompt": "a" * (2 * index), "index": index})
    tokenizer = data.load_tokenizer("bytes")
    assert data.filter_long(source, tokenizer, 5) == (source, 0)
    with pytest.raises(ValueError, match="words: the prompt of example 2 has 5 tokens, more than 4.*drop=True"):
        data.filter_long(source, tokenizer, 4)
    kept, dropped = data.filter_long(source, tokenizer, 4, drop=True)
    assert [example["index"] for example in kept] == [0, 1] and dropped == 1
    with pytest.raises(ValueError, match="none of its 3 prompts fits into 0 tokens"):
        data.filter_long(source, tokenizer, 0, drop=True)
