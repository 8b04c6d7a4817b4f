"""JSONL files prepared as TFDS data sets and read as data sources."""

import json
import sys

import pytest

from jaxrl_llm import data

ROWS = [
    {"question": f"é {i}\n", "number": i - 1, "share": i / 3, "right": i % 2 == 0, "odd": [i, {"a": None}], "mixed": i or "x"}
    for i in range(5)
]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    files = {"train": write_rows(folder / "train.jsonl", ROWS), "test": write_rows(folder / "test.jsonl", ROWS[3:])}
    return folder / "data", files, data.prepare_jsonl(files, folder / "data")


def test_rows_come_back_in_order_and_unchanged(prepared):
    folder, _, name = prepared
    columns = {"prompt": "question", **{column: column for column in ROWS[0] if column != "question"}}
    train = data.tfds_source(name, "train", folder, columns)
    expected = [{"prompt": row["question"], **{k: v for k, v in row.items() if k != "question"}} for row in ROWS]
    assert list(train) == expected and len(train) == 5
    assert [type(value) for value in train[1].values()] == [type(value) for value in expected[1].values()]
    assert list(data.tfds_source(name, "test", folder, columns)) == expected[3:]
    assert len(data.tfds_source(name, "train[:2]", folder, columns)) == 2
    assert "tensorflow" not in sys.modules


def test_preparing_again_finds_the_result_and_new_contents_get_a_new_name(prepared, tmp_path):
    folder, files, name = prepared
    stamp = {path: path.stat().st_mtime_ns for path in folder.rglob("*array_record*")}
    assert data.prepare_jsonl(files, folder) == name
    assert stamp and {path: path.stat().st_mtime_ns for path in folder.rglob("*array_record*")} == stamp
    other = {**files, "test": write_rows(tmp_path / "test.jsonl", ROWS[:1])}
    assert data.prepare_jsonl(other, folder) != name


def test_errors(prepared, tmp_path):
    folder, _, name = prepared
    with pytest.raises(ValueError, match="column 'gold' is missing; the row has"):
        data.tfds_source(name, "train", folder, {"prompt": "gold"})
    with pytest.raises(ValueError, match="split 'dev', cannot be read.*prepare"):
        data.tfds_source(name, "dev", folder, {"prompt": "question"})
    with pytest.raises(ValueError, match="'no_such_set'.*cannot be read"):
        data.tfds_source("no_such_set", "train", folder)
    ragged = write_rows(tmp_path / "ragged.jsonl", [{"a": 1}, {"b": 1}])
    with pytest.raises(ValueError, match="line 2: column 'a' is not in every row"):
        data.prepare_jsonl({"train": ragged}, folder)
