"""Text of a token stream, piece by piece, never splitting a character."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxrl_llm.data.tokenizers import Tokenizer

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
