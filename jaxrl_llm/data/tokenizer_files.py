"""Reads SentencePiece models and Hugging Face tokenizer directories into the fields of a `Tokenizer`."""

import contextlib
import functools
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from jaxrl_llm import reading

Span = tuple[int, int]

MOST_TOKENS = 10**8
_READABLE = "a tokenizer that the library `tokenizers` reads"
_MOST_UNUSED = 10**6  # ids below the largest one that no token has
_TOKEN_ID = reading.whole(0, MOST_TOKENS)


def _written(value, place: str) -> str:
    """A special token, as its text or as an object that has the text."""
    if isinstance(value, dict):
        value = reading.fields(value, {"content": reading.text}, f"{place}.").get("content")
    return reading.text(value, place)


_WRITTEN_TOKENS = reading.either("an object of tokens", reading.mapping(_written), reading.listed(reading.anything))
_SPECIAL_CHECKS = dict.fromkeys((f"{name}_token" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")), _written)
_SPECIAL_CHECKS |= dict.fromkeys(("extra_special_tokens", "model_specific_special_tokens"), _WRITTEN_TOKENS)
_STOP_CHECKS = {"eos_token_id": reading.one_or_more(_TOKEN_ID), "vocab_size": reading.whole(1, MOST_TOKENS)}
_STOP_CHECKS |= {"stop_strings": reading.one_or_more(reading.text), "text_config": reading.mapping()}


def huggingface_fields(file: pathlib.Path) -> dict[str, Any]:
    """Fields of the `Tokenizer` that `tokenizer.json` and the configuration files beside it describe."""
    import tokenizers

    text = reading.read_text(file)
    content = reading.parse_object(text, str(file))
    # Trimmed, the place of " the" in a text would lack the space that belongs to the token.
    untrimmed = _without_trimming(content, f"{file}: ")
    with _loading(file, _READABLE):
        inner = tokenizers.Tokenizer.from_str(json.dumps(content) if untrimmed else text)
    # Files often keep the truncation and padding of the last training script; either would corrupt ids silently.
    inner.no_truncation()
    inner.no_padding()
    vocabulary = inner.get_vocab(with_added_tokens=True)
    fallback = "ByteFallback" in json.dumps(content.get("decoder"))
    special = {token.content for token in inner.get_added_tokens_decoder().values() if token.special}
    open_tokens = special | {f"<0x{byte:02X}>" for byte in range(256)}
    vocab_size = max(vocabulary.values(), default=-1) + 1
    if not 0 < vocab_size <= min(MOST_TOKENS, len(vocabulary) + _MOST_UNUSED):
        raise ValueError(f"{file}: {len(vocabulary)} tokens have ids up to {vocab_size - 1}; download or export it again")
    unused = set(range(vocab_size)) - set(vocabulary.values())
    open_ids = unused | {i for token, i in vocabulary.items() if token in open_tokens} if fallback else ()
    return {
        "encode_text": functools.partial(_encode_huggingface, inner, file),
        "encode_spans": functools.partial(_spans_of_huggingface, inner, file),
        "decode_ids": functools.partial(_decode_huggingface, inner),
        "vocab_size": vocab_size,
        "open_ids": frozenset(open_ids),
        **_special_fields(file.parent, vocabulary, vocab_size, {}),
    }


def sentencepiece_fields(file: pathlib.Path) -> dict[str, Any]:
    """Fields of the `Tokenizer` that a SentencePiece model and the configuration files beside it describe."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    with _loading(file, "a SentencePiece model"):
        processor.LoadFromSerializedProto(file.read_bytes())
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
        **_special_fields(file.parent, vocabulary, processor.vocab_size(), own),
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


@contextlib.contextmanager
def _loading(file: pathlib.Path, wanted: str) -> Iterator[None]:
    """Makes whatever a library raises at a file that it cannot read a ValueError that names it."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # Among them the panics of Rust, which are no `Exception`.
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} is not {wanted} ({why}); download or export it again") from error


def _fields_of(file: pathlib.Path, checks: dict[str, reading.Check]) -> dict[str, Any]:
    """What the object in `file` has and is not null; {} if there is no such file."""
    return reading.fields(reading.read_object(file), checks, f"{file}: ") if file.is_file() else {}


def _special_fields(
    directory: pathlib.Path, vocabulary: dict[str, int], vocab_size: int, own: dict[str, str]
) -> dict[str, Any]:
    """Special tokens, stop ids and chat template; `own` are the specials that the model file itself declares."""
    config = _fields_of(directory / "tokenizer_config.json", _SPECIAL_CHECKS | {"chat_template": _check_templates})
    generation = _fields_of(directory / "generation_config.json", _STOP_CHECKS)
    network = _fields_of(directory / "config.json", _STOP_CHECKS)
    # Checkpoints with several parts say it of the one that writes.
    network |= reading.fields(network.get("text_config", {}), _STOP_CHECKS, f"{directory / 'config.json'}: text_config.")
    special = _fields_of(directory / "special_tokens_map.json", _SPECIAL_CHECKS)
    named = own | _token_texts(special) | _token_texts(config)
    for name in ("bos_token", "eos_token"):
        if name in named and named[name] not in vocabulary:
            mend = "correct it in tokenizer_config.json"
            raise ValueError(f"{directory}: {name} {reading.shown(named[name])} is not in the vocabulary; {mend}")
    stops = list(generation.get("eos_token_id", network.get("eos_token_id", ())))
    # The network may have more tokens than the tokenizer.
    known = max(vocab_size, network.get("vocab_size", 0))
    if any(stop >= known for stop in stops):
        raise ValueError(
            f"{directory}: eos_token_id {reading.shown(stops)} is outside of the {known} tokens; correct generation_config.json"
        )
    eos_id = vocabulary.get(named.get("eos_token"), stops[0] if stops else None)
    templates = _chat_templates(directory, config)
    pad_id = vocabulary.get(named.get("pad_token"), 0 if eos_id is None else eos_id)
    stop_ids = tuple(dict.fromkeys(([] if eos_id is None else [eos_id]) + stops))
    return {
        "bos_id": vocabulary.get(named.get("bos_token")),
        "eos_id": eos_id,
        "pad_id": pad_id,
        "stop_ids": stop_ids,
        "stop_strings": tuple(text for text in generation.get("stop_strings", ()) if text),
        "chat_template": templates.pop("default", None),
        "named_templates": tuple(sorted(templates.items())),
        "special_tokens": tuple(sorted(named.items())),
    }


def _token_texts(config: dict[str, Any]) -> dict[str, str]:
    """Named special tokens of a configuration: bos_token and its like, and names of the model's own."""
    named = {name: value for name, value in config.items() if name.endswith("_token")}
    for section in ("extra_special_tokens", "model_specific_special_tokens"):
        own = config.get(section)
        named |= own if isinstance(own, dict) else {}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _chat_templates(directory: pathlib.Path, config: dict[str, Any]) -> dict[str, str]:
    """Templates by name, the plain one as "default"; files of their own replace what the configuration has."""
    files = {"default": directory / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    found = {name: reading.read_text(file) for name, file in files.items() if file.is_file()}
    return found or config.get("chat_template", {})


def _check_templates(value, place: str) -> dict[str, str]:
    """Templates by name, from one text or a list of objects with name and template."""
    if isinstance(value, str):
        return {"default": value}
    checks, found = {"name": reading.text, "template": reading.text}, {}
    for index, entry in enumerate(reading.listed(reading.mapping())(value, place)):
        entry = reading.fields(entry, checks, f"{place}[{index}].")
        if not entry.keys() >= checks.keys():
            raise reading.wrong(entry, f"{place}[{index}]", "an object with 'name' and 'template'")
        found[entry["name"]] = entry["template"]
    return found


def _check_processor(value, place: str) -> dict[str, Any]:
    return reading.fields(reading.mapping()(value, place), {"processors": reading.listed(reading.mapping())}, f"{place}.")


def _without_trimming(content: dict[str, Any], before: str) -> bool:
    """Makes the post-processor of a tokenizer leave spaces in the places of tokens; whether there was need to."""
    parts = dict.fromkeys(("model", "normalizer", "pre_tokenizer", "decoder"), reading.mapping())
    parts |= {"post_processor": _check_processor, "added_tokens": reading.listed(reading.mapping())}
    reading.fields(content, parts, before)  # Its library takes lists for objects.
    processor = content.get("post_processor") or {}
    trimming = [part for part in (processor, *(processor.get("processors") or ())) if part.get("trim_offsets")]
    for part in trimming:
        part["trim_offsets"] = False
    return bool(trimming)


def _encode_huggingface(inner, file: pathlib.Path, text: str, add_special_tokens: bool) -> list[int]:
    with _loading(file, _READABLE):  # Some faults of a file show only in a text.
        return inner.encode(text, add_special_tokens=add_special_tokens).ids


def _spans_of_huggingface(inner, file: pathlib.Path, text: str) -> tuple[list[int], list[Span]]:
    with _loading(file, _READABLE):
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
