"""Sources: random access to examples, and views of them.

An example is a dict with a "prompt" (text, or a list of chat messages), usually an "answer", for supervised
training a "completion", and any other columns, which are handed to the rewards by name.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxrl_llm.data.chat import encode_prompt
from jaxrl_llm.data.tokenizers import Tokenizer

Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Source:
    """A sequence of examples, each of them a pure function of its index. A list of dicts will do in its place.

    Attributes:
      name: what messages call it.
      length: number of examples.
      fetch: index in [0, length) to example.
    """

    name: str
    length: int
    fetch: Callable[[int], Example]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        index = operator.index(index)
        if not 0 <= index < self.length:
            raise IndexError(f"{self.name}: index {index} lies outside its {self.length} examples")
        return self.fetch(index)


def map_source(source: Sequence[Example], function: Callable[[Example], Example]) -> Source:
    """`source` with `function` applied to each example when it is read."""
    return Source(getattr(source, "name", "examples"), len(source), lambda index: function(source[index]))


def as_chat(source: Sequence[Example], *, system: str | None = None, suffix: str = "") -> Source:
    """`source` with text prompts turned into chat messages: `system`, if given, and the prompt + `suffix` as the user."""
    begin = [] if system is None else [{"role": "system", "content": system}]
    return map_source(source, lambda e: {**e, "prompt": [*begin, {"role": "user", "content": e["prompt"] + suffix}]})


def select_columns(row: Mapping[str, Any], columns: Mapping[str, str] | None, place: str) -> Example:
    """The example that `columns` (our name -> name in the row) picks from `row`; without `columns`, all of it.

    Raises:
      ValueError: a column is missing, or there is no prompt; the message begins with `place`.
    """
    mapping = {name: name for name in row} if columns is None else columns
    missing = next((theirs for theirs in mapping.values() if theirs not in row), None)
    if missing is not None:
        raise ValueError(f"{place}: column {missing!r} is missing; the row has {sorted(row)}: correct `columns`")
    if "prompt" not in mapping:
        mend = f"say which of {sorted(row)} does, as in columns={{'prompt': 'question'}}"
        raise ValueError(f"{place}: no column gives 'prompt'; {mend}")
    return {ours: row[theirs] for ours, theirs in mapping.items()}


def filter_long(
    source: Sequence[Example], tokenizer: Tokenizer, max_prompt_tokens: int, *, drop: bool = False
) -> tuple[Sequence[Example], int]:
    """Sees to it that every prompt fits its bucket; no prompt is ever cut.

    Args:
      source: examples.
      tokenizer: counts the tokens, chat template included.
      max_prompt_tokens: longest prompt allowed, in tokens.
      drop: leave longer ones out instead of raising.

    Returns:
      The examples that fit and the number of those left out.

    Raises:
      ValueError: a prompt is longer and `drop` is false, or none is left.
    """
    name = getattr(source, "name", "examples")
    kept = []
    for index in range(len(source)):
        length = len(encode_prompt(tokenizer, source[index]["prompt"]))
        if length <= max_prompt_tokens:
            kept.append(index)
        elif not drop:
            fault = f"the prompt of example {index} has {length} tokens, more than {max_prompt_tokens}"
            raise ValueError(f"{name}: {fault}; raise max_prompt_tokens or drop long prompts with drop=True")
    if not kept:
        fault = f"none of its {len(source)} prompts fits into {max_prompt_tokens} tokens"
        raise ValueError(f"{name}: {fault}; raise max_prompt_tokens")
    if len(kept) == len(source):
        return source, 0
    return Source(name, len(kept), lambda index: source[kept[index]]), len(source) - len(kept)
