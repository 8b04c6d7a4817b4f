"""Sources: random access to examples, and views of them.

An example is a dict with a "prompt" (text, or a list of chat messages), usually an "answer", for supervised
training a "completion", and any other columns, which are handed to the rewards by name. In place of prompt and
completion, an example to learn from may be a dialogue: "messages", with the "tools" that the assistant has. Its prompt,
where no column gives one, is what comes before its last assistant turn.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxrl_llm.data.chat import encode_prompt
from jaxrl_llm.data.dialogues import assistant_turns, check_dialogue, encode_example
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
    """`source` with text prompts turned into chat messages: `system`, if given, and the prompt + `suffix` as the user.

    Prompts that are chat messages already stay as they are, and so do dialogues.

    Raises:
      ValueError: when such an example is read, if `system` or `suffix` is given.
    """
    begin = [] if system is None else [{"role": "system", "content": system}]

    def convert(example: Example) -> Example:
        prompt = example.get("prompt")
        if (begin or suffix) and ("messages" in example or not isinstance(prompt, str)):
            mend = "put them into the messages themselves"
            raise ValueError(f"system={system!r} and suffix={suffix!r} would not change an example of chat messages; {mend}")
        if not isinstance(prompt, str):
            return example
        return {**example, "prompt": [*begin, {"role": "user", "content": prompt + suffix}]}

    return map_source(source, convert)


def split_turns(source: Sequence[Example]) -> Source:
    """One example for each assistant turn of the dialogues of `source`: the messages up to it, to learn from it alone.

    This is how to learn from all turns under a template that writes a dialogue in another way once it goes on.
    """
    turns = [(index, turn) for index, example in enumerate(source) for turn in assistant_turns(example["messages"])]

    def fetch(index: int) -> Example:
        number, turn = turns[index]
        messages = source[number]["messages"][: turn + 1]
        return {**source[number], "messages": messages, "prompt": messages[:-1], "turns": "last"}

    return Source(getattr(source, "name", "examples"), len(turns), fetch)


def select_columns(row: Mapping[str, Any], columns: Mapping[str, str] | None, place: str) -> Example:
    """The example that `columns` (our name -> name in the row) picks from `row`; without `columns`, all of it.

    Raises:
      ValueError: a column is missing, there is neither a prompt nor a dialogue, or the dialogue is malformed; the message
        begins with `place`.
    """
    mapping = {name: name for name in row} if columns is None else columns
    missing = next((theirs for theirs in mapping.values() if theirs not in row), None)
    if missing is not None:
        raise ValueError(f"{place}: column {missing!r} is missing; the row has {sorted(row)}: correct `columns`")
    if "prompt" not in mapping and "messages" not in mapping:
        mend = f"say which of {sorted(row)} does, as in columns={{'prompt': 'question'}}"
        raise ValueError(f"{place}: no column gives 'prompt' (or 'messages'); {mend}")
    example = {ours: row[theirs] for ours, theirs in mapping.items()}
    if "messages" in example:
        check_dialogue(example["messages"], f"{place}: messages", example.get("tools"))
        example = {"prompt": example["messages"][: assistant_turns(example["messages"])[-1]], **example}
    return example


def filter_long(
    source: Sequence[Example], tokenizer: Tokenizer, max_prompt_tokens: int, *, drop: bool = False
) -> tuple[Sequence[Example], int]:
    """Sees to it that every prompt fits its bucket; no prompt is ever cut. A dialogue is measured whole.

    Args:
      source: examples.
      tokenizer: counts the tokens, chat template included.
      max_prompt_tokens: longest prompt allowed, in tokens.
      drop: leave longer ones out instead of raising.

    Returns:
      The examples that fit and the number of those left out.

    Raises:
      ValueError: a prompt is longer and `drop` is false, none is left, or the template refuses a dialogue.
    """
    name = getattr(source, "name", "examples")
    kept = []
    for index in range(len(source)):
        kind, length = _measured(tokenizer, source[index], f"{name}: example {index}")
        if length <= max_prompt_tokens:
            kept.append(index)
        elif not drop:
            fault = f"the {kind} of example {index} has {length} tokens, more than {max_prompt_tokens}"
            raise ValueError(f"{name}: {fault}; raise max_prompt_tokens or drop long prompts with drop=True")
    if not kept:
        fault = f"none of its {len(source)} prompts fits into {max_prompt_tokens} tokens"
        raise ValueError(f"{name}: {fault}; raise max_prompt_tokens")
    if len(kept) == len(source):
        return source, 0
    return Source(name, len(kept), lambda index: source[kept[index]]), len(source) - len(kept)


def _measured(tokenizer: Tokenizer, example: Example, place: str) -> tuple[str, int]:
    """What an example is measured by, and its number of tokens."""
    if "messages" not in example:
        return "prompt", len(encode_prompt(tokenizer, example["prompt"], tools=example.get("tools")))
    try:
        return "dialogue", len(encode_example(tokenizer, example)[0])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
