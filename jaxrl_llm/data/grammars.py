"""Regular expressions and JSON schemas as automata over tokens."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrl_llm.data.tokenizers import Tokenizer

# A character that no text has stands behind it and is the end. Without it, outlines-core 0.2.14 forbids to go on from what
# matches already with what does not match yet: "ab" with "a" for "(ab)+", "1" with "." for a number.
_END = "\uffff"


def token_table(tokenizer: Tokenizer, *, pattern: str = "", schema: Mapping[str, Any] | None = None) -> np.ndarray:
    """The automaton of the texts that match, over the tokens of a tokenizer, for `networks.combined.automaton`.

    Args:
      tokenizer: whose stop tokens may come where a text is complete.
      pattern: a regular expression that whole completions match.
      schema: a JSON schema in its place.

    Returns: int32 [states, V]: the state behind each token, -1 where it may not come. State 0 is the beginning; behind a stop
      token comes one in which everything may follow.
    Raises ValueError: both or neither are given, the package `outlines-core` is missing, or no text of these tokens matches.
    Source: Willard and Louf, https://arxiv.org/abs/2307.09702, by way of https://github.com/dottxt-ai/outlines-core
    """
    if bool(pattern) == (schema is not None):
        raise ValueError(f"pattern is {pattern!r} and schema {schema!r}; give one of them")
    try:
        from outlines_core import Index, Vocabulary
        from outlines_core.json_schema import build_regex_from_schema
    except ImportError as error:
        raise ValueError("grammars need the package outlines-core; pip install 'jaxrl_llm[grammar]'") from error
    pattern = pattern or build_regex_from_schema(json.dumps(schema))
    stops = sorted(tokenizer.stop_ids)
    texts: dict[str, list[int]] = {}
    # Behind another token: alone, tokens of some kinds lose the space that they begin with.
    front = next(([token] for token in range(tokenizer.vocab_size) if tokenizer.decode([token]).isalnum()), [])
    skipped = len(tokenizer.decode(front))
    for token in range(tokenizer.vocab_size):
        text = tokenizer.decode([*front, token])[skipped:]
        if token not in stops and text and not {"\ufffd", _END} & set(text):
            texts.setdefault(text, []).append(token)
    end = tokenizer.vocab_size
    try:
        index = Index(f"(?:{pattern}){_END}", Vocabulary(end + 1, texts | {_END: [end]}))
    except ValueError as error:
        raise ValueError(f"no text of this tokenizer matches {pattern!r}: {error}") from error
    return _table(index, stops, end)


def _table(index, stops: list[int], vocab_size: int) -> np.ndarray:
    """The table of an index in which token `vocab_size` ends a text."""
    ends = set(index.get_final_states())
    transitions = index.get_transitions()
    first = index.get_initial_state()
    states = [first, *(state for state in transitions if state != first)]
    states += sorted({state for moves in transitions.values() for state in moves.values()} - set(states))
    number = {state: place for place, state in enumerate(states)}
    table = np.full((len(states) + 1, vocab_size), -1, np.int32)
    table[-1] = len(states)
    for state, moves in transitions.items():
        for token, behind in moves.items():
            if token < vocab_size:
                table[number[state], token] = number[behind]
            elif token == vocab_size and behind in ends:
                table[number[state], stops] = len(states)
    return table
