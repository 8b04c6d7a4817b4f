"""Tokenizers: round trips, agreement with the libraries that own the formats, special tokens, pickling."""

import json
import pickle

import pytest
import sentencepiece
import transformers
from data.tiny_tokenizers import TEXTS, write_fallback, write_huggingface, write_sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_llm import data


@pytest.fixture(scope="session")
def every_tokenizer(tmp_path_factory):
    writers = {"bpe": write_huggingface, "fallback": write_fallback, "sentencepiece": write_sentencepiece}
    loaded = {name: data.load_tokenizer(write(tmp_path_factory.mktemp(name))) for name, write in writers.items()}
    return {"bytes": data.load_tokenizer("bytes"), **loaded}


TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("ab 🙂é日\ufffd"), max_size=12)


@settings(deadline=None, max_examples=60)
@given(text=TEXT)
def test_round_trip(every_tokenizer, text):
    for name in ("bytes", "bpe"):
        assert every_tokenizer[name].decode(every_tokenizer[name].encode(text)) == text


@settings(deadline=None, max_examples=60)
@given(text=st.text("ab é日🙂", max_size=12))
def test_round_trip_of_tokenizers_that_normalize(every_tokenizer, text):
    for name in ("fallback", "sentencepiece"):
        tokenizer = every_tokenizer[name]
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text(data.ARITHMETIC_ALPHABET))
def test_characters_round_trip(text):
    tokenizer = data.character_tokenizer(data.ARITHMETIC_ALPHABET)
    ids = tokenizer.encode(text)
    assert tokenizer.decode([*ids, tokenizer.eos_id, tokenizer.pad_id]) == text
    assert tokenizer.vocab_size == len(data.ARITHMETIC_ALPHABET) + 2
    assert tokenizer.encode(text, add_special_tokens=True) == ids


def test_characters_by_name_and_their_errors():
    assert data.load_tokenizer("characters:ab").encode("ba") == [1, 0]
    assert data.load_tokenizer("characters:ab").decode([0, 2, 3], skip_special_tokens=False) == "a<eos><pad>"
    with pytest.raises(ValueError, match="'c'.*not in the alphabet 'ab'"):
        data.character_tokenizer("ab").encode("abc")
    with pytest.raises(ValueError, match="twice"):
        data.character_tokenizer("aba")
    with pytest.raises(ValueError, match="is empty"):
        data.character_tokenizer("")


def test_bytes():
    tokenizer = data.load_tokenizer("bytes")
    assert tokenizer.encode("é") == [0xC3, 0xA9]
    assert tokenizer.encode("a", add_special_tokens=True) == [256, 97]
    assert tokenizer.decode([256, 97, 257, 258]) == "a"
    assert tokenizer.decode([256, 97, 257], skip_special_tokens=False) == "<bos>a<eos>"
    assert tokenizer.decode([0xC3, 97]) == "\ufffda"
    assert tokenizer.stop_ids == (257,) and tokenizer.vocab_size == 259


def test_pickled_tokenizers_are_the_same(every_tokenizer):
    for tokenizer in (*every_tokenizer.values(), data.character_tokenizer("sat he")):
        again = pickle.loads(pickle.dumps(tokenizer))
        assert again.encode("the sat") == tokenizer.encode("the sat")
        assert again.stop_ids == tokenizer.stop_ids


@pytest.mark.parametrize("style", ["bpe", "fallback"])
def test_agrees_with_transformers(tmp_path, style):
    directory = {"bpe": write_huggingface, "fallback": write_fallback}[style](tmp_path)
    ours = data.load_tokenizer(directory)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    for text in [*TEXTS[:5], "", "<|im_start|>user\nhi<|im_end|>\n"]:
        ids = theirs(text, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.encode(text, add_special_tokens=True) == theirs(text, truncation=False, padding=False)["input_ids"]
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    theirs.chat_template = "{{ messages }}"
    theirs.save_pretrained(tmp_path / "saved")
    saved = data.load_tokenizer(tmp_path / "saved")
    assert saved.chat_template == "{{ messages }}" and saved.encode(TEXTS[1]) == ours.encode(TEXTS[1])


def test_special_tokens_of_a_checkpoint(tmp_path):
    directory = write_huggingface(tmp_path, chat_template="from the configuration", bos_token=None)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    tokenizer = data.load_tokenizer(directory)
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id, tokenizer.stop_ids) == (2, None, 0, (2, 0))
    assert tokenizer.chat_template == "from the configuration"
    assert dict(tokenizer.special_tokens) == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert tokenizer.decode([*tokenizer.encode("a<think>"), 2]) == "a<think>"
    (directory / "chat_template.jinja").write_text("from its own file")
    assert data.load_tokenizer(directory / "tokenizer.json").chat_template == "from its own file"


def test_named_chat_templates_and_defaults_without_special_tokens(tmp_path):
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    directory = write_huggingface(tmp_path, chat_template=templates, eos_token=None, pad_token=None)
    tokenizer = data.load_tokenizer(directory)
    assert tokenizer.chat_template == "yes"
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.stop_ids) == (None, 0, ())
    (directory / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    assert data.load_tokenizer(directory).stop_ids == (1,)
    # Of several parts, the one that writes says it.
    (directory / "config.json").write_text(json.dumps({"vision_config": {}, "text_config": {"eos_token_id": [1, 0]}}))
    (directory / "generation_config.json").write_text(json.dumps({"stop_strings": ["###", ""], "eos_token_id": None}))
    found = data.load_tokenizer(directory)
    assert (found.stop_ids, found.stop_strings) == ((1, 0), ("###",))


def test_sentencepiece_agrees_with_its_library(tmp_path):
    directory = write_sentencepiece(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    tokenizer = data.load_tokenizer(directory / "tokenizer.model")
    for text in TEXTS[:5]:
        assert tokenizer.encode(text) == processor.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == processor.decode(processor.encode(text))
    assert tokenizer.encode("cat", add_special_tokens=True)[0] == tokenizer.bos_id == processor.bos_id()
    assert tokenizer.decode([1, *tokenizer.encode("cat"), 2], skip_special_tokens=False) == "<s>cat</s>"
    assert tokenizer.stop_ids == (processor.eos_id(),)


def test_ids_outside_the_vocabulary_decode_to_nothing(every_tokenizer):
    for tokenizer in every_tokenizer.values():
        assert tokenizer.decode([tokenizer.vocab_size + 5, -1, *tokenizer.encode("a")]) == "a"


def test_errors_say_what_was_found(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        data.load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"neither tokenizer.json.*vocab.json.*save_pretrained"):
        data.load_tokenizer(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"from_pretrained\(directory, gguf_file='model.gguf'\)"):
        data.load_tokenizer(tmp_path)
    (tmp_path / "model.gguf").unlink()
    write_huggingface(tmp_path, eos_token="<stop>")
    with pytest.raises(ValueError, match="eos_token '<stop>' is not in the vocabulary"):
        data.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list"):
        data.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        data.load_tokenizer(tmp_path)


@settings(deadline=None, max_examples=80)
@given(text=TEXT, cuts=st.lists(st.integers(0, 30)), noise=st.lists(st.integers(0, 300), max_size=6))
def test_streamed_text_is_the_decoded_text(every_tokenizer, text, cuts, noise):
    for tokenizer in every_tokenizer.values():
        ids = tokenizer.encode(text) + noise
        bounds = [0, *sorted(cut for cut in cuts if cut < len(ids)), len(ids)]
        state, pieces = data.DecoderState(), []
        for begin, end in zip(bounds, bounds[1:], strict=False):
            piece, state = data.decode_step(tokenizer, ids[begin:end], state, last=end == len(ids) and begin == bounds[-2])
            pieces.append(piece)
        assert "".join(pieces) == tokenizer.decode(ids)


def test_stream_never_splits_a_character(every_tokenizer):
    for tokenizer in every_tokenizer.values():
        state, pieces = data.DecoderState(), []
        for token in tokenizer.encode("a🙂b"):
            piece, state = data.decode_step(tokenizer, [token], state)
            pieces.append(piece)
        assert "".join(pieces) == "a🙂b"
        assert len(pieces) >= 3 and not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", '{"eos_token": 5}', "tokenizer_config.json: eos_token is 5; it must be a string"),
        ("tokenizer_config.json", '{"eos_token": {"content": 5}}', "tokenizer_config.json: eos_token.content is 5"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "x"}]}', r"chat_template\[0\] is .*'name' and 'template'"),
        ("special_tokens_map.json", "\ufeff[]", "special_tokens_map.json: holds a list"),
        ("generation_config.json", '{"eos_token_id": -1}', "generation_config.json: eos_token_id is -1; it must be"),
        ("generation_config.json", '{"eos_token_id": 90000}', r"is outside of the \d+ tokens; correct generation_config.json"),
        ("tokenizer.json", "{}", "tokenizer.json is not a tokenizer that the library `tokenizers` reads"),
        ("tokenizer.json", '{"post_processor": {"processors": 5}}', "tokenizer.json: post_processor.processors is 5"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 2000000000}, "merges": []}}', "1 tokens have ids up to"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "0 tokens have ids up to -1"),
    ],
)
def test_files_of_tokenizers_that_are_damaged_are_named(name, content, message, tmp_path):
    directory = write_huggingface(tmp_path)
    (directory / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        data.load_tokenizer(directory)


def test_null_is_absent_and_a_byte_order_mark_is_none_of_the_text(tmp_path):
    directory = write_huggingface(tmp_path)
    plain = data.load_tokenizer(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes(b"\xef\xbb\xbf" + (directory / name).read_bytes())
    (directory / "generation_config.json").write_text('{"eos_token_id": null}')
    (directory / "special_tokens_map.json").write_text('{"eos_token": null, "extra_special_tokens": null}')
    (directory / "chat_template.jinja").write_bytes(b"\xef\xbb\xbfx")
    loaded = data.load_tokenizer(directory)
    assert (loaded.stop_ids, loaded.vocab_size, loaded.chat_template) == (plain.stop_ids, plain.vocab_size, "x")
    for content in (b"", b"{}", b"\0" * 99, b"version https://git-lfs.github.com/spec/v1"):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(ValueError, match="tokenizer.model is not a SentencePiece model .*; download or export it again"):
            data.load_tokenizer(tmp_path / "tokenizer.model")
