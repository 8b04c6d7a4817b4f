"""Rows of data as people have them, and as they should not be."""

import json

from malformed import damage, parses

from jaxrl_llm import data

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
# Rows that are right, and whether they are preferences.
VALID = (
    ({"prompt": "q", "answer": 1}, False),
    ({"prompt": CHAT[:1], "completion": "a"}, False),
    ({"prompt": CHAT[:1], "completion": CHAT[1:]}, False),
    ({"messages": CHAT}, False),
    ({"conversations": SHAREGPT}, False),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1}, True),
    ({"chosen": "q a", "rejected": "q b"}, True),
    ({"prompt": "q", "completion": "a", "label": True}, True),
)
VALUES = (
    None, "", "a", 5, 1.5, True, [], {}, [1], ["a"], "\ud800", CHAT, CHAT[:1], CHAT[0], SHAREGPT, SHAREGPT[:1], "x" * 50,
    [{"role": "assistant", "content": 3}], [{"role": None, "content": "a"}], -0.0, 10**30, [[[]]], {"a": {"b": []}},
    10**5000,
)  # fmt: skip
# Values that a column can never have; others depend on the columns beside it.
NEVER = {
    "prompt": (5, 1.5, True, [1], ["a"], {}, "", "\ud800", [[[]]]),
    "completion": (5, 1.5, True, [1], {}, "\ud800"),
    "messages": (5, "a", [1], [], {}, "\ud800"),
    "margin": ("a", True, [], "\ud800"),
    "answer": ("\ud800", 10**5000),
}


def rows_kind(folder):
    """A line of JSON, read as data of the supervised and the RL phase or as preferences, and encoded."""
    path, tokenizer, preferences = folder / "rows.jsonl", data.load_tokenizer("bytes"), [False]

    def make(rng, folder):
        row, preferences[0] = rng.choice(VALID)
        row, wrong = dict(row), False
        for name in rng.sample(list(NEVER), rng.randrange(3)):
            row[name] = rng.choice(VALUES)
            wrong |= any(type(row[name]) is type(value) and row[name] == value for value in NEVER[name])
        if rng.random() < 0.2:
            text = damage(rng, _written(dict(rng.choice(VALID)[0])))[0].replace(b"\n", b" ")
            wrong = not parses(text)
        else:
            text = _written(row).encode()
        path.write_bytes(text + b"\n")
        return wrong

    def read(folder):
        if preferences[0]:
            data.filter_long_pairs(data.preference_source(path), tokenizer, 1000, texts=())
        else:
            data.filter_long(data.jsonl_source(path), tokenizer, 1000)

    return make, read


def _written(row) -> str:
    """The row as JSON; an integer that Python does not write has as many digits."""
    return json.dumps({name: "@" if value == 10**5000 else value for name, value in row.items()}).replace(
        '"@"', "1" + "0" * 5000
    )
