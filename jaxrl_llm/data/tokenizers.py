"""Tokenizers as frozen, picklable values: bytes, small alphabets, SentencePiece models and Hugging Face directories."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from jaxrl_llm.data import templates, tokenizer_files
from jaxrl_llm.data.tokenizer_files import Span, encode_between

CHARACTERS_PREFIX = "characters:"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back."""

    encode_text: Callable[[str, bool], list[int]]  # `(text, add_special_tokens) -> ids`
    decode_ids: Callable[[list[int], bool], str]  # `(ids, skip_special_tokens) -> text`
    vocab_size: int  # ids lie in [0, vocab_size)
    eos_id: int | None = None  # the token that ends a completion, or None
    bos_id: int | None = None  # the token that begins a text, or None
    pad_id: int = 0  # a value to fill arrays with; it may equal `eos_id`, so a mask must never be derived from it
    stop_ids: tuple[int, ...] = ()  # tokens that end a generation, `eos_id` first
    stop_strings: tuple[str, ...] = ()  # texts that end a generation, as the checkpoint's generation configuration has them
    chat_template: str | None = None  # jinja source, or None
    # pairs of the name and the source of further templates, such as ("tool_use", ...)
    named_templates: tuple[tuple[str, str], ...] = ()
    special_tokens: tuple[tuple[str, str], ...] = ()  # pairs such as ("bos_token", "<s>"), the names that chat templates use
    # pairs such as ("enable_thinking", False): variables of chat templates that all conversations have
    template_options: tuple[tuple[str, Any], ...] = ()
    # tokens after which the text of those before may still change: bytes of characters that have no token of their own, and
    # what decoding leaves out between them. Empty where bytes need no such care
    open_ids: frozenset[int] = frozenset()
    # text that a chat template wrote to its ids and, for each id, the characters [start, end) that it stands for; special
    # tokens that are written in the text become themselves. None where this cannot be told
    encode_spans: Callable[[str], tuple[list[int], list[Span]]] | None = None

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of `text`; with `add_special_tokens`, those that the tokenizer puts round a text of its own."""
        return self.encode_text(text, add_special_tokens)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD, ids outside the vocabulary become nothing."""
        known = [int(i) for i in ids if 0 <= i < self.vocab_size]
        return self.decode_ids(known, skip_special_tokens)


def load_tokenizer(path_or_name: str | pathlib.Path) -> Tokenizer:
    """Loads a tokenizer.

    Args:
      path_or_name: "bytes"; "characters:" followed by an alphabet; a SentencePiece `.model` file; a `tokenizer.json`;
        or a directory that holds one of these files, as a Hugging Face checkpoint does.

    Raises ValueError: nothing can be loaded from there; the message says what was found and what to do.
    """
    name = str(path_or_name)
    if name == "bytes":
        return byte_tokenizer()
    if name.startswith(CHARACTERS_PREFIX):
        return character_tokenizer(name.removeprefix(CHARACTERS_PREFIX))
    path = pathlib.Path(path_or_name)
    candidates = [path] if path.is_file() else [path / "tokenizer.json", path / "tokenizer.model"]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise ValueError(_nothing_found(path))
    read = tokenizer_files.huggingface_fields if file.suffix == ".json" else tokenizer_files.sentencepiece_fields
    return stop_at_turns(Tokenizer(**read(file)))


def stop_at_turns(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the token that ends the assistant's turns in its template among the stop tokens.

    Base checkpoints have templates as well, and an end token that ends documents, not turns. For a tokenizer whose
    `chat_template` was replaced.
    """
    end = templates.end_of_turn(tokenizer.chat_template, dict(tokenizer.special_tokens)) if tokenizer.chat_template else ""
    ids = tokenizer.encode_spans(end)[0][:1] if end else []
    special = [i for i in ids if not tokenizer.decode([i]) and tokenizer.decode([i], skip_special_tokens=False)]
    return dataclasses.replace(tokenizer, stop_ids=tuple(dict.fromkeys([*tokenizer.stop_ids, *special])))


def byte_tokenizer() -> Tokenizer:
    """UTF-8 bytes as ids 0 to 255, then beginning of text (256), end of text (257) and padding (258)."""
    return Tokenizer(
        encode_text=_encode_bytes, decode_ids=_decode_bytes, vocab_size=259, bos_id=256, eos_id=257, pad_id=258,
        stop_ids=(257,), special_tokens=(("bos_token", "<bos>"), ("eos_token", "<eos>"), ("pad_token", "<pad>")),
        encode_spans=functools.partial(encode_between, {"<bos>": 256, "<eos>": 257, "<pad>": 258}, _byte_spans),
    )  # fmt: skip


def character_tokenizer(alphabet: str) -> Tokenizer:
    """One id for each character of `alphabet` in its order, then end of text and padding.

    Raises ValueError: `alphabet` is empty or names a character twice.
    """
    repeated = sorted({c for c in alphabet if alphabet.count(c) > 1})
    if repeated or not alphabet:
        fault = f"names {repeated[0]!r} twice" if repeated else "is empty"
        raise ValueError(f"alphabet {alphabet!r} {fault}; give each character once")
    size = len(alphabet)
    return Tokenizer(
        encode_text=functools.partial(_encode_characters, alphabet),
        decode_ids=functools.partial(_decode_characters, alphabet),
        vocab_size=size + 2,
        eos_id=size,
        pad_id=size + 1,
        stop_ids=(size,),
        special_tokens=(("eos_token", "<eos>"), ("pad_token", "<pad>")),
        encode_spans=functools.partial(
            encode_between, {"<eos>": size, "<pad>": size + 1}, functools.partial(_character_spans, alphabet)
        ),
    )


def _encode_bytes(text: str, add_special_tokens: bool) -> list[int]:
    return [256] * add_special_tokens + list(text.encode("utf-8"))


def _byte_spans(text: str) -> tuple[list[int], list[Span]]:
    return _encode_bytes(text, False), [(place, place + 1) for place, c in enumerate(text) for _ in c.encode("utf-8")]


def _decode_bytes(ids: list[int], skip_special_tokens: bool) -> str:
    specials = {} if skip_special_tokens else {256: b"<bos>", 257: b"<eos>", 258: b"<pad>"}
    return b"".join(bytes([i]) if i < 256 else specials.get(i, b"") for i in ids).decode("utf-8", errors="replace")


def _encode_characters(alphabet: str, text: str, add_special_tokens: bool) -> list[int]:
    ids = [alphabet.find(c) for c in text]
    if -1 in ids:
        unknown = text[ids.index(-1)]
        raise ValueError(f"character {unknown!r} of {text!r} is not in the alphabet {alphabet!r}; add it to the alphabet")
    return ids


def _character_spans(alphabet: str, text: str) -> tuple[list[int], list[Span]]:
    return _encode_characters(alphabet, text, False), [(place, place + 1) for place in range(len(text))]


def _decode_characters(alphabet: str, ids: list[int], skip_special_tokens: bool) -> str:
    specials = ("", "") if skip_special_tokens else ("<eos>", "<pad>")
    return "".join((*alphabet, *specials)[i] for i in ids)


def _nothing_found(path: pathlib.Path) -> str:
    wanted = "'bytes', 'characters:...', a .model file, a tokenizer.json, or a directory with one of them"
    if not path.exists():
        return f"tokenizer {str(path)!r}: there is no such file; give {wanted}"
    found = sorted(entry.name for entry in path.iterdir())[:8]
    given = "directory" + next((f", gguf_file={name!r}" for name in found if name.endswith(".gguf")), "")
    return (
        f"tokenizer {str(path)!r}: the directory has neither tokenizer.json nor tokenizer.model (it has {found}); "
        f"write a tokenizer.json with `transformers.AutoTokenizer.from_pretrained({given}).save_pretrained(directory)`"
    )


# Text of a token stream, piece by piece, never splitting a character.

REPLACEMENT = "\ufffd"


class DecoderState(NamedTuple):
    """What a stream has seen: all its token ids in the vocabulary, and how many characters of their text were given out."""

    ids: tuple[int, ...] = ()
    emitted: int = 0


def decode_step(
    tokenizer: Tokenizer, ids: Sequence[int], state: DecoderState, *, last: bool = False
) -> tuple[str, DecoderState]:
    """Text that the next `ids` of a stream settle.

    Bytes of an unfinished character wait for the next call, or for `last=True`. The concatenated texts of a stream
    whose final call has `last=True` equal `tokenizer.decode` of all its ids.

    Args:
      tokenizer: any tokenizer whose decoding of a prefix is a prefix of the decoding.
      ids: new token ids; may be empty.
      state: what the previous call returned; `DecoderState()` at the start.
      last: whether the stream ends here.

    Returns: The new text and the state for the next call.
    """
    seen = state.ids + tuple(int(i) for i in ids if 0 <= i < tokenizer.vocab_size)
    text = tokenizer.decode(seen if last else _settled(tokenizer, seen))
    settled = text if last else text.rstrip(REPLACEMENT)
    return settled[state.emitted :], DecoderState(seen, max(state.emitted, len(settled)))


def _settled(tokenizer: Tokenizer, ids: tuple[int, ...]) -> tuple[int, ...]:
    """`ids` without a final run of open tokens, whose text a later byte may change."""
    end = len(ids)
    while end and ids[end - 1] in tokenizer.open_ids:
        end -= 1
    return ids[:end]
