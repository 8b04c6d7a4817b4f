"""Files as people have them, and what is said of those that nobody can read."""

import dataclasses
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from jaxrl_llm import data
from jaxrl_llm.data.files import read_rows

ROWS = [{"prompt": "é", "answer": "1"}, {"prompt": "b", "answer": None}]
USER, HELPER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def dataset_folder(folder):
    """What `datasets.Dataset.save_to_disk` writes."""
    folder.mkdir()
    table = pyarrow.Table.from_pylist(ROWS)
    with (
        pyarrow.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        pyarrow.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": None}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_every_kind_of_file_has_the_same_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES, encoding="utf-8")
    (tmp_path / "bom.jsonl").write_text(LINES.replace("\n", "\r\n"), encoding="utf-8-sig")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    with pyarrow.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as sink:
        sink.write(LINES.encode())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    shards = tmp_path / "shards"
    shards.mkdir()
    for number, row in enumerate(ROWS):
        table = pyarrow.Table.from_pylist(
            [row], schema=pyarrow.schema([("prompt", pyarrow.string()), ("answer", pyarrow.string())])
        )
        pyarrow.parquet.write_table(table, shards / f"train-{number}.parquet")
    for name in ("a.jsonl", "bom.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "shards"):
        assert list(data.jsonl_source(tmp_path / name)) == ROWS, name
    assert list(data.jsonl_source(dataset_folder(tmp_path / "saved"))) == ROWS
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": messages}]), tmp_path / "chat.parquet")
    plain = [messages[0], {"role": "assistant", "content": "b"}]
    assert data.jsonl_source(tmp_path / "chat.parquet")[0] == {"prompt": plain[:1], "messages": plain}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a"}\n{"prompt": "caf\xe9"}', "x.jsonl, line 2: byte 0xe9 at position 16 is no UTF-8.*save it as UTF-8"),
        ('{"prompt": "a"}'.encode("utf-16"), "x.jsonl, line 1: byte 0xff.*UTF-16"),
        (b'[{"prompt": "a"}]', "line 1: holds a list.*a JSON array one a line"),
        (b'[\n{"prompt": "a"}\n]', "line 1: not valid JSON.*a JSON array one a line"),
        (b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}", "line 1: not valid JSON .a number has 5000 digits."),
        (b'{"prompt": ' + b"[" * 100_000, "line 1: not valid JSON .brackets within more than 200 brackets."),
        (b'{"prompt": "a", "n": ' + b"[" * 500 + b"]" * 500 + b"}", "line 1: not valid JSON .brackets within more than 200"),
        (b'{"prompt": "a", "margin": NaN}', "line 1: not valid JSON .NaN is no number of JSON.*null where there is no value"),
        (b'{"prompt": "a", "prompt": "b"}', "line 1: not valid JSON .'prompt' stands twice"),
        (b'{"prompt": "a\\ud83d"}', "line 1: .*half of a surrogate pair"),
        (b'{"prompt": "a", "tags": {"\\udc00": 1}}', "line 1: .*half of a surrogate pair"),
        (b'{"prompt": "\\ud83d\\ude42"}', ""),
        (b'{"prompt": ""}', "line 1: 'prompt' is empty"),
        (b'{"prompt": null}', "line 1: 'prompt' is null"),
        (b'{"prompt": 5}', "line 1: 'prompt' is 5; give a text or a list of chat messages"),
        (b'{"prompt": []}', r"line 1: 'prompt' is \[\]"),
        (b'{"prompt": [{"role": 1, "content": ""}]}', r"line 1: 'prompt'\[0\] is "),
        (b'{"prompt": "a", "completion": 5}', "line 1: 'completion' is 5; give a text"),
        (
            b'{"prompt": "a", "completion": [{"role": "user", "content": "b"}]}',
            r"line 1: 'completion' has the roles \['user'\]",
        ),
        (b'{"prompt": "a", "margin": true}', "line 1: 'margin' is True"),
        (json.dumps({"prompt": True, "completion": [USER, HELPER]}).encode(), "line 1: 'prompt' is True"),
        (b'{"text": "a"}', r"no column gives 'prompt'.*\['text'\].*or split 'text'"),
        (b"\0\0\0", "line 1: not valid JSON"),
    ],
)
def test_what_cannot_be_read_names_its_line(tmp_path, content, message):
    (tmp_path / "x.jsonl").write_bytes(content)
    if not message:
        assert len(data.jsonl_source(tmp_path / "x.jsonl")) == 1
        return
    with pytest.raises(ValueError, match=message):
        data.jsonl_source(tmp_path / "x.jsonl")


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.jsonl: there is no such file"):
        read_rows(tmp_path / "gone.jsonl")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode())[:-9])
    (tmp_path / "b.jsonl.gz").write_text(LINES)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "a.jsonl.zst").write_bytes(b"no")
    for name in ("a.jsonl.gz", "b.jsonl.gz", "a.parquet", "a.jsonl.zst"):
        with pytest.raises(ValueError, match=f"{name} cannot be read: "):
            read_rows(tmp_path / name)
    with pytest.raises(ValueError, match=r"holds files of the kinds \['.jsonl', '.parquet'\]; give a folder of .jsonl or"):
        read_rows(tmp_path)
    folder = dataset_folder(tmp_path / "saved")
    (folder / "state.json").write_text('{"_data_files": [1]}')
    with pytest.raises(ValueError, match=r"state.json: '_data_files' is \[1\]"):
        read_rows(folder)
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "dataset_dict.json").write_text("{}")
    dataset_folder(tmp_path / "all" / "train")
    with pytest.raises(ValueError, match=r"several splits.*\['train'\]"):
        read_rows(tmp_path / "all")


def test_conversational_completions_and_sharegpt(tmp_path):
    user, helper = USER, HELPER
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    said = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    rows = [
        {"prompt": [user], "completion": [helper]},
        {"prompt": "q", "completion": [helper]},
        {"prompt": [user], "completion": [called]},
        {"conversations": said, "system": "s", "id": 1},
        {"messages": said},
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(data.jsonl_source(tmp_path / "x.jsonl")) == [
        {"prompt": [user], "completion": "a"},
        {"prompt": "q", "completion": "a"},
        {"prompt": [user], "messages": [user, called], "turns": "last"},
        {
            "prompt": [{"role": "system", "content": "s"}, user],
            "messages": [{"role": "system", "content": "s"}, user, helper],
            "id": 1,
        },
        {"prompt": [user], "messages": [user, helper]},
    ]


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("\n\nHuman: hi\n\nAssistant: yes", "\n\nHuman: hi\n\nAssistant: no", ("\n\nHuman: hi\n\nAssistant:", " yes", " no")),
        ("Q: a A: yes", "Q: a A: yellow", ("Q: a A:", " yes", " yellow")),
        ("Q: a A: yes", "Q: a A: yes sir", ("Q: a A: yes", "", " sir")),
        ("Q\nyes", "Q\nno", ("Q\n", "yes", "no")),
        ("Q 12", "Q 13", ("Q", " 12", " 13")),
    ],
)
def test_pairs_of_whole_texts(tmp_path, chosen, rejected, expected):
    (tmp_path / "x.jsonl").write_text(json.dumps({"chosen": chosen, "rejected": rejected}))
    pair = data.preference_source(tmp_path / "x.jsonl")[0]
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == expected


def test_pairs_without_a_common_prompt_are_refused(tmp_path):
    for chosen, rejected, fault in (
        ("yes", "no", "different words"),
        ("yes", "yellow", "different words"),
        ("a b", "a b", "are equal"),
    ):
        (tmp_path / "x.jsonl").write_text(json.dumps({"chosen": chosen, "rejected": rejected}))
        with pytest.raises(ValueError, match=f"line 1: 'prompt' is None.*{fault}"):
            data.preference_source(tmp_path / "x.jsonl")


def test_ids_that_the_network_does_not_have_are_found_when_the_data_are_read(tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": "z", "rejected": "b"}\n'
    )
    tokenizer = data.character_tokenizer("abcz")
    pairs = data.preference_source(tmp_path / "x.jsonl")
    assert data.filter_long_pairs(pairs, tokenizer, 9, vocab_size=6) == (pairs, 0)
    with pytest.raises(ValueError, match="line 2: a text has the token id 3, which a network of 3 tokens does not know"):
        data.filter_long_pairs(pairs, dataclasses.replace(tokenizer, eos_id=None), 9, vocab_size=3)
    rows = [{"prompt": "a"}, {"prompt": "z"}]
    with pytest.raises(ValueError, match="example 1: the prompt has the token id 3"):
        data.filter_long(rows, tokenizer, 9, vocab_size=3)
