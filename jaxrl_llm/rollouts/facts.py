"""Facts: what functions of a user say of rows and of their tokens, beside rewards."""

import bisect
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxrl_llm.data.tokenizers import DecoderState, Tokenizer, decode_step
from jaxrl_llm.rewards.worker import Value
from jaxrl_llm.rollouts.collect import Collection

# As rewards are asked: (prompts, completions, columns, groups) -> a value for each row by name, NaN where it is missing.
Facts = Callable[..., Mapping[str, Sequence[Value]]]
TOKEN_REWARDS = "token_rewards"  # a field of the rollouts, not one of their extras


def with_facts(collection: Collection, found: Mapping[str, Sequence[Value]], tokenizer: Tokenizer) -> Collection:
    """The collection with `found` as arrays in `extras`, or in `token_rewards` for that name.

    Numbers become [N], int32 where all are whole; vectors [N, E]; spans of characters of the completion, as
    `(first, behind the last, value)`, become [N, T] with the value at each token that has a part of the span, and the sum
    where spans overlap. Tokens are told apart by decoding the sampled ids, never by encoding the text anew. A row of which
    a fact is missing takes no part in the step (`valid` = 0), with 0 in its place. Arrays stay as they are.

    Raises ValueError: values of several kinds under one name, or vectors of several lengths.
    """
    added, valid = {}, np.asarray(collection.rollouts.valid)
    for name, values in found.items():
        missing = np.array([isinstance(value, float) and value != value for value in values])
        valid = valid * ~missing
        known = [value for value, lost in zip(values, missing, strict=True) if not lost]
        is_array = isinstance(values, np.ndarray)  # of a network that was asked
        added[name] = values if is_array else _array(name, values, missing, known, collection, tokenizer)
    rewards = {TOKEN_REWARDS: added.pop(TOKEN_REWARDS)} if TOKEN_REWARDS in added else {}
    return collection.changed(valid=valid.astype(np.float32), extras=added, **rewards)


def _array(name: str, values, missing: np.ndarray, known: list[Value], collection: Collection, tokenizer) -> np.ndarray:
    kinds = {_kind(value) for value in known} - {"none"} or {"spans" if known and isinstance(known[0], list) else "number"}
    if len(kinds) > 1:
        raise ValueError(f"the fact {name!r} is {' and '.join(sorted(kinds))} of different rows; give one kind")
    (kind,) = kinds
    if kind == "spans":
        rows = [[] if lost else value for value, lost in zip(values, missing, strict=True)]
        return _of_tokens(collection, rows, tokenizer)
    whole = all(isinstance(value, int) for value in known)
    if kind == "number":
        beyond = [value for value in known if whole and not -(2**31) <= value < 2**31]
        if beyond:
            told = "whole numbers must fit into 32 bits, from -2147483648 to 2147483647"
            raise ValueError(f"the fact {name!r} is {beyond[0]} of a row; {told}: give a smaller one, or a fraction")
        numbers = [0 if lost else value for value, lost in zip(values, missing, strict=True)]
        return np.array(numbers, np.int32 if whole else np.float32)
    lengths = {len(value) for value in known}
    if len(lengths) > 1:
        raise ValueError(f"the fact {name!r} has vectors of {sorted(lengths)} numbers; give all rows as many")
    zeros = [0.0] * lengths.pop()
    return np.array([zeros if lost else value for value, lost in zip(values, missing, strict=True)], np.float32)


def _kind(value: Value) -> str:
    if not isinstance(value, list):
        return "number"
    return "none" if not value else "spans" if isinstance(value[0], list) else "vector"


def _of_tokens(collection: Collection, spans: Sequence[list], tokenizer: Tokenizer) -> np.ndarray:
    """Spans of each row's completion as values of its tokens, float32 [N, T]."""
    rollouts = collection.rollouts
    found = np.zeros(rollouts.tokens.shape, np.float32)
    for row, (start, own) in enumerate(zip(collection.prompt_length, spans, strict=True)):
        ids = np.asarray(rollouts.tokens[row, start : rollouts.length[row]]).tolist()
        for first, end, value in own:
            begin, behind = token_span(tokenizer, ids, int(first), int(end))
            found[row, start + begin : start + behind] += value
    return found


def token_span(tokenizer: Tokenizer, ids: Sequence[int], first: int, end: int) -> tuple[int, int]:
    """The tokens `[begin, behind)` that the characters `[first, end)` of the decoded text come from.

    A token belongs to it when a part of one of the characters does, also where several tokens make one character. Characters
    beyond the text are none.
    """
    if first >= end:
        return 0, 0
    before = _fewest(tokenizer, ids, first)
    begin = before if _characters(tokenizer, ids, before) == first else before - 1
    return begin, max(begin, min(_fewest(tokenizer, ids, end), len(ids)))


def _fewest(tokenizer: Tokenizer, ids: Sequence[int], characters: int) -> int:
    """The fewest tokens from the beginning whose text has so many characters; one more than there are where none do."""
    return bisect.bisect_left(range(len(ids) + 1), characters, key=functools.partial(_characters, tokenizer, ids))


def _characters(tokenizer: Tokenizer, ids: Sequence[int], count: int) -> float:
    """Characters that the first `count` tokens settle; all that there may be beyond the last."""
    if count > len(ids):
        return float("inf")
    return len(decode_step(tokenizer, ids[:count], DecoderState(), last=count == len(ids))[0])
