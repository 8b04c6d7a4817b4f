"""Reads SentencePiece models and Hugging Face tokenizer directories into the fields of a `Tokenizer`."""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

Span = tuple[int, int]


def huggingface_fields(file: pathlib.Path) -> dict[str, Any]:
    """Fields of the `Tokenizer` that `tokenizer.json` and the configuration files beside it describe."""
    import tokenizers

    content = read_json(file)
    # Trimmed, the place of " the" in a text would lack the space that belongs to the token.
    untrimmed = _without_trimming(content)
    inner = tokenizers.Tokenizer.from_str(json.dumps(content)) if untrimmed else tokenizers.Tokenizer.from_file(str(file))
    # Files often keep the truncation and padding of the last training script; either would corrupt ids silently.
    inner.no_truncation()
    inner.no_padding()
    vocabulary = inner.get_vocab(with_added_tokens=True)
    fallback = "ByteFallback" in json.dumps(content.get("decoder"))
    special = {token.content for token in inner.get_added_tokens_decoder().values() if token.special}
    open_tokens = special | {f"<0x{byte:02X}>" for byte in range(256)}
    vocab_size = max(vocabulary.values()) + 1
    unused = set(range(vocab_size)) - set(vocabulary.values())
    open_ids = unused | {i for token, i in vocabulary.items() if token in open_tokens} if fallback else ()
    return {
        "encode_text": functools.partial(_encode_huggingface, inner),
        "encode_spans": functools.partial(_spans_of_huggingface, inner),
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
    controls = {piece: i for piece, i in vocabulary.items() if processor.is_control(i)}
    return {
        "encode_text": functools.partial(_encode_sentencepiece, processor),
        # SentencePiece itself reads a control token in a text as plain characters.
        "encode_spans": functools.partial(encode_between, controls, functools.partial(_spans_of_sentencepiece, processor)),
        "decode_ids": functools.partial(_decode_sentencepiece, processor),
        "vocab_size": processor.vocab_size(),
        "open_ids": frozenset(i for i in vocabulary.values() if processor.is_byte(i) or processor.is_control(i)),
        **_special_fields(file.parent, vocabulary, own),
    }


def encode_between(
    special: dict[str, int], encode_run: Callable[[str], tuple[list[int], list[Span]]], text: str
) -> tuple[list[int], list[Span]]:
    """Ids and places of `text`: special tokens that are written in it, and `encode_run` of what lies between them."""
    ids, spans, place = [], [], 0
    pattern = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
    for piece in re.split(f"({pattern})", text) if special else [text]:
        found, places = ([special[piece]], [(0, len(piece))]) if piece in special else encode_run(piece)
        ids += found
        spans += [(place + start, place + end) for start, end in places]
        place += len(piece)
    return ids, spans


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
    templates = _chat_templates(directory, config)
    pad_id = vocabulary.get(named.get("pad_token"), 0 if eos_id is None else eos_id)
    stop_ids = tuple(dict.fromkeys(([] if eos_id is None else [eos_id]) + stops))
    return {
        "bos_id": vocabulary.get(named.get("bos_token")),
        "eos_id": eos_id,
        "pad_id": pad_id,
        "stop_ids": stop_ids,
        "chat_template": templates.pop("default", None),
        "named_templates": tuple(sorted(templates.items())),
        "special_tokens": tuple(sorted(named.items())),
    }


def _token_texts(config: dict[str, Any]) -> dict[str, str]:
    """Named special tokens of a configuration: bos_token and its like, and names of the model's own."""
    extra = config.get("extra_special_tokens")
    named = {name: value for name, value in config.items() if name.endswith("_token")}
    named |= extra if isinstance(extra, dict) else {}
    named |= config.get("model_specific_special_tokens") or {}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _chat_templates(directory: pathlib.Path, config: dict[str, Any]) -> dict[str, str]:
    """Templates by name, the plain one as "default"; files of their own replace what the configuration has."""
    files = {"default": directory / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    found = {name: file.read_text(encoding="utf-8") for name, file in files.items() if file.is_file()}
    template = config.get("chat_template")
    if found or template is None:
        return found
    return {entry["name"]: entry["template"] for entry in template} if isinstance(template, list) else {"default": template}


def _without_trimming(content: dict[str, Any]) -> bool:
    """Makes the post-processor of a tokenizer leave spaces in the places of tokens; whether there was need to."""
    processor = content.get("post_processor") or {}
    trimming = [part for part in (processor, *processor.get("processors", ())) if part.get("trim_offsets")]
    for part in trimming:
        part["trim_offsets"] = False
    return bool(trimming)


def _encode_huggingface(inner, text: str, add_special_tokens: bool) -> list[int]:
    return inner.encode(text, add_special_tokens=add_special_tokens).ids


def _spans_of_huggingface(inner, text: str) -> tuple[list[int], list[Span]]:
    encoding = inner.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets


def _decode_huggingface(inner, ids: list[int], skip_special_tokens: bool) -> str:
    return inner.decode(ids, skip_special_tokens=skip_special_tokens)


def _encode_sentencepiece(processor, text: str, add_special_tokens: bool) -> list[int]:
    begin = [processor.bos_id()] if add_special_tokens and processor.bos_id() >= 0 else []
    return begin + processor.encode(text)


def _spans_of_sentencepiece(processor, text: str) -> tuple[list[int], list[Span]]:
    pieces = processor.encode(text, out_type="proto").pieces
    # Places are in bytes of UTF-8; of a character in several byte tokens, all but the last lie at its beginning.
    character = [place for place, c in enumerate(text) for _ in c.encode("utf-8")] + [len(text)]
    return [piece.id for piece in pieces], [(character[piece.begin], character[piece.end]) for piece in pieces]


def _decode_sentencepiece(processor, ids: list[int], skip_special_tokens: bool) -> str:
    if skip_special_tokens:
        return processor.decode([i for i in ids if not processor.is_control(i)])
    # SentencePiece itself gives control tokens no text, so the runs between them are decoded one by one.
    runs = [(control, list(run)) for control, run in itertools.groupby(ids, processor.is_control)]
    return "".join("".join(map(processor.id_to_piece, run)) if control else processor.decode(run) for control, run in runs)
