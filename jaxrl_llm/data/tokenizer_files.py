"""Reads SentencePiece models and Hugging Face tokenizer directories into the fields of a `Tokenizer`."""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
from typing import Any

SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


def huggingface_fields(file: pathlib.Path) -> dict[str, Any]:
    """Fields of the `Tokenizer` that `tokenizer.json` and the configuration files beside it describe."""
    import tokenizers

    inner = tokenizers.Tokenizer.from_file(str(file))
    # Files often keep the truncation and padding of the last training script; either would corrupt ids silently.
    inner.no_truncation()
    inner.no_padding()
    vocabulary = inner.get_vocab(with_added_tokens=True)
    fallback = "ByteFallback" in json.dumps(read_json(file).get("decoder"))
    special = {token.content for token in inner.get_added_tokens_decoder().values() if token.special}
    open_tokens = special | {f"<0x{byte:02X}>" for byte in range(256)}
    vocab_size = max(vocabulary.values()) + 1
    unused = set(range(vocab_size)) - set(vocabulary.values())
    open_ids = unused | {i for token, i in vocabulary.items() if token in open_tokens} if fallback else ()
    return {
        "encode_text": functools.partial(_encode_huggingface, inner),
        "decode_ids": functools.partial(_decode_huggingface, inner),
        "vocab_size": vocab_size,
        "open_ids": frozenset(open_ids),
        **_special_fields(file.parent, vocabulary, {}),
    }


def sentencepiece_fields(file: pathlib.Path) -> dict[str, Any]:
    """Fields of the `Tokenizer` that a SentencePiece model and the configuration files beside it describe."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    vocabulary = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
    ids = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "pad_token": processor.pad_id()}
    own = {name: processor.id_to_piece(i) for name, i in ids.items() if i >= 0}
    return {
        "encode_text": functools.partial(_encode_sentencepiece, processor),
        "decode_ids": functools.partial(_decode_sentencepiece, processor),
        "vocab_size": processor.vocab_size(),
        "open_ids": frozenset(i for i in vocabulary.values() if processor.is_byte(i) or processor.is_control(i)),
        **_special_fields(file.parent, vocabulary, own),
    }


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """The object in `file`; {} if there is no such file.

    Raises:
      ValueError: the file is not a JSON object.
    """
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); download or export it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a {type(value).__name__}; it must hold a JSON object")
    return value


def _special_fields(directory: pathlib.Path, vocabulary: dict[str, int], own: dict[str, str]) -> dict[str, Any]:
    """Special tokens, stop ids and chat template; `own` are the specials that the model file itself declares."""
    config = read_json(directory / "tokenizer_config.json")
    generation = read_json(directory / "generation_config.json")
    named = own | _token_texts(read_json(directory / "special_tokens_map.json")) | _token_texts(config)
    for name in ("bos_token", "eos_token"):
        if name in named and named[name] not in vocabulary:
            mend = "correct it in tokenizer_config.json"
            raise ValueError(f"{directory}: {name} {named[name]!r} is not in the vocabulary; {mend}")
    stops = generation.get("eos_token_id", read_json(directory / "config.json").get("eos_token_id"))
    stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
    eos_id = vocabulary.get(named.get("eos_token"), stops[0] if stops else None)
    pad_id = vocabulary.get(named.get("pad_token"), 0 if eos_id is None else eos_id)
    stop_ids = tuple(dict.fromkeys(([] if eos_id is None else [eos_id]) + stops))
    return {
        "bos_id": vocabulary.get(named.get("bos_token")),
        "eos_id": eos_id,
        "pad_id": pad_id,
        "stop_ids": stop_ids,
        "chat_template": _chat_template(directory, config),
        "special_tokens": tuple(sorted(named.items())),
    }


def _token_texts(config: dict[str, Any]) -> dict[str, str]:
    values = {name: config.get(name) for name in SPECIAL_NAMES}
    texts = {name: value["content"] if isinstance(value, dict) else value for name, value in values.items()}
    return {name: text for name, text in texts.items() if text is not None}


def _chat_template(directory: pathlib.Path, config: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _encode_huggingface(inner, text: str, add_special_tokens: bool) -> list[int]:
    return inner.encode(text, add_special_tokens=add_special_tokens).ids


def _decode_huggingface(inner, ids: list[int], skip_special_tokens: bool) -> str:
    return inner.decode(ids, skip_special_tokens=skip_special_tokens)


def _encode_sentencepiece(processor, text: str, add_special_tokens: bool) -> list[int]:
    begin = [processor.bos_id()] if add_special_tokens and processor.bos_id() >= 0 else []
    return begin + processor.encode(text)


def _decode_sentencepiece(processor, ids: list[int], skip_special_tokens: bool) -> str:
    if skip_special_tokens:
        return processor.decode([i for i in ids if not processor.is_control(i)])
    # SentencePiece itself gives control tokens no text, so the runs between them are decoded one by one.
    runs = [(control, list(run)) for control, run in itertools.groupby(ids, processor.is_control)]
    return "".join("".join(map(processor.id_to_piece, run)) if control else processor.decode(run) for control, run in runs)
