"""What networks of a run are asked for rewards and facts: who is asked, what comes of it, and the rows that they score."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.data.chat import encode_prompt
from jaxrl_llm.rollouts.collect import Collection
from jaxrl_llm.rollouts.facts import token_span
from jaxrl_llm.rollouts.records import rounded
from jaxrl_llm.rollouts.requests import POLICY
from jaxrl_llm.types import Rollouts

OF_RUN = (POLICY, "reference", "teacher")


class Told(NamedTuple):
    """What was found out about the rows of a collection."""

    # a number or, of facts, what facts are, for each row, None where there is none; or, of facts, an array [N, ...]
    values: Sequence[Any] | np.ndarray
    notes: Sequence[Any] | None = None  # what else the record of each row says; None for nothing


Asked = Callable[[Any, Collection], Told]


def asking(function: Callable, by: str, /, *arguments, scores: bool) -> Asked:
    """A function `asked(io, collection) -> Told` that says whom it asks."""
    found = functools.partial(function, *arguments)
    found.asks, found.scores = by, scores  # whether it scores, which evaluations cannot
    return found


def rows_to_score(parts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Rollouts:
    """Rows of a beginning and what is scored behind it."""
    length = np.array([len(begun) + len(end) for begun, end in parts], np.int32)
    tokens = np.zeros((len(parts), rounded(int(length.max()))), np.int32)
    mask = np.zeros(tokens.shape, np.float32)
    for row, (begun, end) in enumerate(parts):
        tokens[row, : length[row]], mask[row, len(begun) : length[row]] = [*begun, *end], 1.0
    group = np.arange(len(parts), dtype=np.int32)
    return Rollouts(tokens=tokens, length=length, mask=mask, rewards=np.zeros((len(parts), 1), np.float32), group=group)


def logp_behind(io, by: str, parts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[np.ndarray]:
    """Log-probabilities (nats) of the tokens of each end behind its beginning, at the temperature of training."""
    if not parts:
        return []
    rows = rows_to_score(parts)
    found = np.asarray(io.statistics_of(rows, by, ("logp",))["logp"], np.float64)
    return [own[len(begun) : len(begun) + len(end)] for own, (begun, end) in zip(found, parts, strict=True)]


def ids_read(io, by: str, collection: Collection, row: int, end: int | None = None) -> tuple[list[int], list[int]]:
    """Prompt, and completion up to a character, as `by` reads them: the sampled ids where its tokenizer is the run's."""
    tokenizer, request = io.tokenizers.get(by), collection.requests[row]
    start, text = int(collection.prompt_length[row]), collection.records[row]["completion"]
    if tokenizer is not None:
        return encode_prompt(tokenizer, request.prompt, tools=request.example.get("tools")), tokenizer.encode(text[:end])
    ids = collection.rollouts.tokens[row, : collection.rollouts.length[row]].tolist()
    own = ids[start:]
    return ids[:start], own if end is None else own[: token_span(io.tokenizer, own, 0, end)[1]]
