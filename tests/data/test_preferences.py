"""Pairs: files of every form that the Hub has, the built-in task, and their rollouts."""

import json

import numpy as np
import pytest
from training.tiny_chat_model import write_tiny_chat_model

from jaxrl_llm import data
from jaxrl_llm.data import (
    arithmetic_preferences,
    character_tokenizer,
    filter_long_pairs,
    preference_rollouts,
    preference_source,
    revised,
)

TOKENIZER = character_tokenizer("0123456789+-*=;#")
USER, HELPER = {"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}
WRONG = {"role": "assistant", "content": "3"}


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


PAIR = {"chosen": "2", "rejected": "3"}
FORMS = {
    "texts": ({"prompt": "1+1=", **PAIR}, "1+1="),
    "chat prompt, texts": ({"prompt": [USER], **PAIR}, [USER]),
    "conversations": ({"chosen": [USER, HELPER], "rejected": [USER, WRONG]}, [USER]),
    "conversations with the prompt as text": ({"prompt": "1+1=", "chosen": [USER, HELPER], "rejected": [USER, WRONG]}, [USER]),
    "conversations with the prompt as chat": ({"prompt": [USER], "chosen": [USER, HELPER], "rejected": [USER, WRONG]}, [USER]),
    "answers as chat": ({"prompt": [USER], "chosen": [HELPER], "rejected": [WRONG]}, [USER]),
    "answers as chat, prompt as text": ({"prompt": "1+1=", "chosen": [HELPER], "rejected": [WRONG]}, [USER]),
    "several turns": ({"chosen": [USER, WRONG, USER, HELPER], "rejected": [USER, WRONG, USER, WRONG]}, [USER, WRONG, USER]),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form, tmp_path):
    row, prompt = FORMS[form]
    source = preference_source(write(tmp_path / "pairs.jsonl", row))
    assert len(source) == 1
    assert source[0] == row | {"prompt": prompt, "chosen": "2", "rejected": "3", "completion": "2"}


def test_equal_conversations_are_a_pair(tmp_path):
    source = preference_source(write(tmp_path / "pairs.jsonl", {"chosen": [USER, HELPER], "rejected": [USER, HELPER]}))
    assert source[0]["prompt"] == [USER] and source[0]["chosen"] == source[0]["rejected"] == "2"


def test_columns_and_margin(tmp_path):
    row = {"question": "1+1=", "better": "2", "worse": "3", "by": 0.5, "other": 1}
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse", "margin": "by"}
    found = preference_source(write(tmp_path / "pairs.jsonl", row), columns)[0]
    assert found == {"prompt": "1+1=", "chosen": "2", "rejected": "3", "margin": 0.5, "completion": "2"}
    talk = {"good": [USER, HELPER], "bad": [USER, WRONG]}
    found = preference_source(write(tmp_path / "talk.jsonl", talk), {"chosen": "good", "rejected": "bad"})[0]
    assert found["prompt"] == [USER] and found["rejected"] == "3"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "1", "chosen": "2"}, r"line 2: there is no 'rejected', only .*'chosen'.*; map a column"),
        ({"chosen": "2", "rejected": "3"}, r"line 2: 'prompt' is None; give a text or a list of chat messages"),
        ({"prompt": "1", "chosen": "2", "rejected": [WRONG]}, r"line 2: 'chosen' and 'rejected' are str and list"),
        ({"prompt": "1", "chosen": 2, "rejected": 3}, r"line 2: 'chosen' and 'rejected' are int and int; give two texts"),
        ({"chosen": [HELPER, USER, HELPER], "rejected": [USER, WRONG]}, r"line 2: 'chosen' has 3 messages behind those"),
        ({"chosen": [USER, HELPER], "rejected": [USER, USER]}, r"line 2: 'rejected' ends with the role 'user'"),
        ({"prompt": "2+2=", "chosen": [USER, HELPER], "rejected": [USER, WRONG]}, r"line 2: .*other messages than 'prompt'"),
        ({"prompt": "1", **PAIR, "margin": "big"}, r"line 2: 'margin' is 'big'; give a number"),
    ],
)
def test_lines_that_are_no_pairs(row, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        preference_source(write(tmp_path / "pairs.jsonl", {"prompt": "1", **PAIR}, row))


def test_splits_of_a_file_share_no_prompt(tmp_path):
    path = write(tmp_path / "pairs.jsonl", *({"prompt": f"{n}+1=", **PAIR} for n in range(200) for _ in range(2)))
    parts = {split: preference_source(path, split=split) for split in ("train", "test", "all")}
    prompts = {split: [part[index]["prompt"] for index in range(len(part))] for split, part in parts.items()}
    assert set(prompts["train"]).isdisjoint(prompts["test"]) and len(prompts["all"]) == 400
    assert len(prompts["train"]) + len(prompts["test"]) == 400 and 20 <= len(prompts["test"]) <= 60
    with pytest.raises(ValueError, match="split is 'dev'"):
        preference_source(path, split="dev")
    with pytest.raises(ValueError, match=r"no prompt that falls into split='test'; give each split a file"):
        preference_source(write(tmp_path / "one.jsonl", {"prompt": "1", **PAIR}), split="test")


@pytest.mark.parametrize("options", [{}, {"operations": "-", "digits": (1, 3)}, {"operations": "+-", "digits": (3, 3)}])
def test_the_built_in_task(options):
    """The chosen working is right; the other one differs in one digit of its working and in its result, nowhere else."""
    source, again = (arithmetic_preferences(300, seed=3, **options) for _ in range(2))
    for index in range(300):
        pair = source[index]
        assert pair == again[index] and pair["chosen"] == pair["completion"]
        left, operation, right = pair["prompt"].replace("-", "+-").rstrip("=").partition("+")
        true = int(left) + int(right)
        (right_work, right_result), (work, result) = (pair[name].split("#") for name in ("chosen", "rejected"))
        assert int(right_result) == true != int(result) and int(pair["answer"]) == true
        assert len(work) == len(right_work) and sum(a != b for a, b in zip(work, right_work, strict=True)) == 1
        digits = len(right_work.split(";"))
        assert sum(a != b for a, b in zip(result.zfill(digits), right_result.zfill(digits), strict=True)) == 1
    slips = [pair["rejected"] for pair in map(source.__getitem__, range(300))]
    assert slips != [arithmetic_preferences(300, seed=4, **options)[index]["rejected"] for index in range(300)]


def test_held_out_problems_are_never_trained_on():
    parts = [arithmetic_preferences(500, seed=seed, split=split) for seed, split in ((0, "train"), (1, "test"))]
    train, test = ({part[index]["prompt"] for index in range(500)} for part in parts)
    assert train.isdisjoint(test)
    with pytest.raises(ValueError, match=r"operations is '\*'; slips are made in columns"):
        arithmetic_preferences(5, operations="*")


def test_rollouts():
    pairs = [{"prompt": "1+1=", "chosen": "2", "rejected": "33", "margin": 2}, {"prompt": "4=", "chosen": "", "rejected": "1"}]
    rollouts = preference_rollouts(TOKENIZER, pairs, 10, numbers=[7, 9])
    end = TOKENIZER.eos_id
    assert rollouts.tokens[0].tolist() == [*TOKENIZER.encode("1+1=2"), end, 0, 0, 0, 0]
    np.testing.assert_array_equal(rollouts.mask[1], [0, 0, 0, 0, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(rollouts.mask[2], [0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
    # One place behind each text, where the value is that of its last token.
    np.testing.assert_array_equal(rollouts.length, [7, 8, 4, 5])
    np.testing.assert_array_equal(rollouts.group, [0, 0, 1, 1])
    np.testing.assert_array_equal(rollouts.prompt_id, [7, 7, 9, 9])
    np.testing.assert_array_equal(rollouts.extras["preference"], [1, -1, 1, -1])
    np.testing.assert_array_equal(rollouts.extras["margin"], [2, 2, 0, 0])
    with pytest.raises(ValueError, match="pair 9 takes 4 places, more than width = 3"):
        preference_rollouts(TOKENIZER, pairs[1:], 3, numbers=[9])
    with pytest.raises(ValueError, match=r"pair 0: there is no 'rejected', only \['chosen', 'prompt'\]; take a source"):
        preference_rollouts(TOKENIZER, [{"prompt": "1", "chosen": "2"}], 9)


def test_revisions_are_rows_of_the_same_group():
    pairs = [{"prompt": "1=", "chosen": "2", "rejected": "3"}, {"prompt": "4=", "chosen": "5", "rejected": "6"}]
    shown = revised(pairs, template="{answer};{prompt}")
    rollouts = preference_rollouts(TOKENIZER, [shown[0], shown[1]], 10)
    np.testing.assert_array_equal(rollouts.group, [0] * 6 + [1] * 6)
    np.testing.assert_array_equal(rollouts.extras["preference"], [1, -1] * 6)
    np.testing.assert_array_equal(rollouts.extras["revises"], [0, 0, 1, 1, -1, -1] * 2)
    assert rollouts.tokens[4, :7].tolist() == [*TOKENIZER.encode("3;1=2"), TOKENIZER.eos_id, 0]
    assert rollouts.mask[4].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert filter_long_pairs(shown, TOKENIZER, 7) == (shown, 0)
    with pytest.raises(ValueError, match="pair 0 takes 7 places, more than the 6 of a row"):
        filter_long_pairs(shown, TOKENIZER, 6)


def test_long_pairs_are_refused_or_left_out():
    pairs = [{"prompt": "1=", "chosen": "1", "rejected": "2" * count} for count in (1, 5, 2)]
    assert filter_long_pairs(pairs, TOKENIZER, 9) == (pairs, 0)
    with pytest.raises(ValueError, match="pair 1 takes 9 places, more than the 8 of a row; raise the width"):
        filter_long_pairs(pairs, TOKENIZER, 8)
    kept, dropped = filter_long_pairs(pairs, TOKENIZER, 8, drop=True)
    assert dropped == 1 and [kept[0], kept[1]] == [pairs[0], pairs[2]]
    preference_rollouts(TOKENIZER, [kept[0], kept[1]], 8)
    with pytest.raises(ValueError, match="none of its 3 pairs fits into 3 places"):
        filter_long_pairs(pairs, TOKENIZER, 3, drop=True)


def test_chat_prompts_are_written_by_the_template(tmp_path):
    write_tiny_chat_model(tmp_path / "model")
    tokenizer = data.load_tokenizer(tmp_path / "model")
    rollouts = preference_rollouts(tokenizer, [{"prompt": [USER], "chosen": "2", "rejected": "3"}], 64)
    prompt = data.encode_prompt(tokenizer, [USER])
    for row, text in enumerate(("2", "3")):
        expected = prompt + tokenizer.encode(text) + [tokenizer.eos_id]
        assert rollouts.tokens[row, : rollouts.length[row] - 1].tolist() == expected
        assert rollouts.mask[row].sum() == len(expected) - len(prompt)
