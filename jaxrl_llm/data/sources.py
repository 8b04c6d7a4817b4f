"""Sources: random access to examples, and views of them.

An example is a dict with a "prompt" (text, or a list of chat messages), usually an "answer", for supervised
training a "completion", and any other columns, which are handed to the rewards by name. In place of prompt and
completion, an example to learn from may be a dialogue: "messages", with the "tools" that the assistant has. Its prompt,
where no column gives one, is what comes before its last assistant turn.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

from jaxrl_llm.compose import require
from jaxrl_llm.data.chat import encode_prompt
from jaxrl_llm.data.dialogues import assistant_turns, encode_example
from jaxrl_llm.data.tokenizers import Tokenizer
from jaxrl_llm.progress import advancing

Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Source:
    """A sequence of examples, each of them a pure function of its index. A list of dicts will do in its place."""

    name: str  # what messages call it
    length: int  # number of examples
    fetch: Callable[[int], Example]  # index in [0, length) to example
    place: Callable[[int], str] | None = None  # index to what messages call that example; its number by default

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        index = operator.index(index)
        if not 0 <= index < self.length:
            raise IndexError(f"{self.name}: index {index} lies outside its {self.length} examples")
        return self.fetch(index)


def place_of(source: Sequence[Example], index: int) -> str:
    """What messages call an example of any source, such as "train.jsonl, line 3"."""
    own = getattr(source, "place", None)
    return own(index) if own is not None else f"{getattr(source, 'name', 'examples')}: example {index}"


def derived(
    source: Sequence[Example], fetch: Callable[[int], Example], indices: Sequence[int] | None = None, name: str = ""
) -> Source:
    """A view of `source`: example i is `fetch(i)`, and comes from example `indices[i]`, or i, of it."""
    indices = range(len(source)) if indices is None else indices
    name = name or getattr(source, "name", "examples")
    return Source(name, len(indices), fetch, lambda index: place_of(source, indices[index]))


def map_source(source: Sequence[Example], function: Callable[[Example], Example]) -> Source:
    """`source` with `function` applied to each example when it is read."""
    return derived(source, lambda index: function(source[index]))


def as_chat(source: Sequence[Example], *, system: str | None = None, suffix: str = "") -> Source:
    """`source` with text prompts turned into chat messages: `system`, if given, and the prompt + `suffix` as the user.

    Prompts that are chat messages already stay as they are, and so do dialogues.

    Raises ValueError: when such an example is read, if `system` or `suffix` is given.
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


def numbered_source(size: int, *, first: int = 0, prompt: str = "{}") -> Source:
    """Examples with nothing but a "number", from `first` on, for environments that begin with it; "{}" is it in the prompt.

    Raises ValueError: a size below 1.
    """
    require(size >= 1, "size", size, "at least 1")

    def fetch(index: int) -> Example:
        return {"prompt": prompt.replace("{}", str(first + index)), "number": first + index}

    return Source("numbered", size, fetch)


def split_turns(source: Sequence[Example]) -> Source:
    """One example for each assistant turn of the dialogues of `source`: the messages up to it, to learn from it alone.

    This is how to learn from all turns under a template that writes a dialogue in another way once it goes on.
    """
    turns = [(index, turn) for index, example in enumerate(source) for turn in assistant_turns(example["messages"])]

    def fetch(index: int) -> Example:
        number, turn = turns[index]
        messages = source[number]["messages"][: turn + 1]
        return {**source[number], "messages": messages, "prompt": messages[:-1], "turns": "last"}

    return derived(source, fetch, [index for index, _ in turns])


def filter_long(
    source: Sequence[Example], tokenizer: Tokenizer, max_prompt_tokens: int, *, drop: bool = False,
    vocab_size: int | None = None,
) -> tuple[Sequence[Example], int]:  # fmt: skip
    """Sees to it that every prompt fits its bucket; no prompt is ever cut. A dialogue is measured whole.

    Args:
      source: examples.
      tokenizer: counts the tokens, chat template included.
      max_prompt_tokens: longest prompt allowed, in tokens.
      drop: leave longer ones out instead of raising.
      vocab_size: of the network, which knows no other ids; by default they are not looked at.

    Returns: The examples that fit and the number of those left out.
    Raises ValueError: a prompt is longer and `drop` is false, none is left, a prompt has no tokens or some that the network
      does not know, or the template refuses it; the message names the line.
    """
    mend = "raise max_prompt_tokens or drop long prompts with drop=True"
    return _filter(source, lambda example: _prompt_ids(tokenizer, example), max_prompt_tokens, drop, vocab_size, mend)


def filter_long_examples(
    source: Sequence[Example], tokenizer: Tokenizer, width: int, *, drop: bool = False, vocab_size: int | None = None,
    mend: str = "raise the width of rows or drop long examples with drop=True",
) -> tuple[Sequence[Example], int]:  # fmt: skip
    """The same for examples to learn from, measured whole, which have to fit into rows of `width` tokens; `mend` says how."""
    return _filter(source, lambda example: ("example", encode_example(tokenizer, example)[0]), width, drop, vocab_size, mend)


def _filter(
    source: Sequence[Example], encode: Callable[[Example], tuple[str, list[int]]], limit: int, drop: bool,
    vocab_size: int | None, mend: str,
) -> tuple[Sequence[Example], int]:  # fmt: skip
    """Those of the examples whose ids, by the kind of text that they are, are at most `limit`, and the number of others."""
    kept = []
    with advancing(f"encoding {getattr(source, 'name', 'examples')}", len(source), "examples") as advance:
        for index in range(len(source)):
            place = place_of(source, index)
            try:
                kind, ids = encode(source[index])
            except (ValueError, UnicodeError) as error:
                raise ValueError(f"{place}: {error}") from error
            check_ids(ids, vocab_size, f"{place}: the {kind}")
            if len(ids) <= limit:
                kept.append(index)
            elif not drop:
                raise ValueError(f"{_whose(source, kind, index)} has {len(ids)} tokens, more than {limit}; {mend}")
            advance(1)
    if not kept:
        name = getattr(source, "name", "examples")
        raise ValueError(f"{name}: none of its {len(source)} {kind}s fits into {limit} tokens; {mend}")
    return (source, 0) if len(kept) == len(source) else (chosen_of(source, kept), len(source) - len(kept))


def _whose(source: Sequence[Example], kind: str, index: int) -> str:
    if getattr(source, "place", None) is not None:
        return f"{place_of(source, index)}: the {kind} of example {index}"
    return f"{getattr(source, 'name', 'examples')}: the {kind} of example {index}"


def chosen_of(source: Sequence[Example], indices: Sequence[int]) -> Source:
    """Those of the examples, in this order."""
    return derived(source, lambda index: source[indices[index]], indices)


def check_ids(ids: Sequence[int], vocab_size: int | None, place: str) -> None:
    """Refuses token ids that a network of `vocab_size` tokens does not have.

    Raises ValueError: the message begins with `place`.
    """
    if vocab_size is not None and ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        unknown = next(i for i in ids if not 0 <= i < vocab_size)
        fault = f"has the token id {unknown}, which a network of {vocab_size} tokens does not know"
        raise ValueError(f"{place} {fault}; take the tokenizer that belongs to the network")


def _prompt_ids(tokenizer: Tokenizer, example: Example) -> tuple[str, list[int]]:
    """What a prompt is measured by, and its token ids."""
    if "messages" in example:
        return "dialogue", encode_example(tokenizer, example)[0]
    return "prompt", encode_prompt(tokenizer, example["prompt"], tools=example.get("tools"))
