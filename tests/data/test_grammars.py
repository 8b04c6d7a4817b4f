"""Grammars as automata over tokens: what they accept is what the pattern matches."""

import itertools
import json
import re

import numpy as np
import pytest
from data.tiny_tokenizers import write_fallback, write_huggingface, write_sentencepiece

from jaxrl_llm.data import character_tokenizer, load_tokenizer
from jaxrl_llm.data.grammars import token_table

DIGITS = character_tokenizer("0123456789+-*=;")


def accepts(table, tokenizer, ids):
    state = 0
    for token in [*ids, tokenizer.stop_ids[0]]:
        state = table[state, token]
        if state < 0:
            return False
    return True


def test_exactly_the_matching_texts_are_accepted():
    pattern = r"[1-3]{1,2}=(4|55)"
    table = token_table(DIGITS, pattern=pattern)
    random = np.random.default_rng(0)
    texts = ["1=4", "33=55", "1=5", "123=4", "=4", "1=45", "", *("".join(random.choice(list("1=45"), 3)) for _ in range(60))]
    for text in texts:
        assert accepts(table, DIGITS, DIGITS.encode(text)) == bool(re.fullmatch(pattern, text)), text


@pytest.mark.parametrize(
    "pattern",
    [r"(12)+", r"(12)*", r"\d+(=\d+)?", r"(1|12|123)=", r"1?2?(31)*", r".", r"1.", r".*", r"[^1]2*", r"(1=){1,3}", r"1|2=1"],
)
def test_texts_go_on_from_what_matches_already(pattern):
    """All texts of up to five characters, a character a token; and those of two, a token each too."""
    table, letters = token_table(DIGITS, pattern=pattern), "123="
    for length in range(6):
        for text in map("".join, itertools.product(letters, repeat=length)):
            assert accepts(table, DIGITS, DIGITS.encode(text)) == bool(re.fullmatch(pattern, text)), text


def test_numbers_of_a_schema_may_have_fractions():
    tokenizer = load_tokenizer("bytes")
    table = token_table(tokenizer, schema={"type": "number"})
    for text, right in (("12", True), ("12.5", True), ("-0.25e+3", True), ("12.", False), ("01", False)):
        assert accepts(table, tokenizer, tokenizer.encode(text)) == right, text


def test_walks_under_a_schema_are_json_of_that_form():
    tokenizer = load_tokenizer("bytes")
    properties = {"sum": {"type": "integer"}, "sign": {"enum": ["+", "-"]}}
    table = token_table(tokenizer, schema={"type": "object", "properties": properties, "required": list(properties)})
    random = np.random.default_rng(1)
    for _ in range(5):
        state, ids = 0, []
        while True:
            token = int(random.choice(np.flatnonzero(table[state] >= 0)))
            if token in tokenizer.stop_ids:
                break
            ids, state = [*ids, token], table[state, token]
        found = json.loads(tokenizer.decode(ids))
        assert isinstance(found["sum"], int) and found["sign"] in "+-"
    assert (table[-1] == len(table) - 1).all()  # behind the end everything may follow


@pytest.mark.parametrize("write", [write_huggingface, write_fallback, write_sentencepiece])
def test_spaces_in_front_of_words_are_part_of_the_text(write, tmp_path):
    tokenizer = load_tokenizer(write(tmp_path))
    front = tokenizer.encode("a")
    whole = tokenizer.encode("aa cat and a mat")
    assert whole[: len(front)] == front  # a prompt "a", and the rest behind it
    ids = whole[len(front) :]
    assert accepts(token_table(tokenizer, pattern="a (cat|dog) and a mat"), tokenizer, ids)
    assert not accepts(token_table(tokenizer, pattern="acatandamat"), tokenizer, ids)


def test_a_vocabulary_may_be_without_letters():
    signs = character_tokenizer("+-=;")
    assert accepts(token_table(signs, pattern=r"(\+-)+"), signs, signs.encode("+-+-"))


def test_impossible_grammars_are_refused():
    with pytest.raises(ValueError, match="give one of them"):
        token_table(DIGITS)
    with pytest.raises(ValueError, match="no text of this tokenizer matches"):
        token_table(DIGITS, pattern="[a-z]+")
