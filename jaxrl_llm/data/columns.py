"""What the columns of a row may hold: the forms that people's files have, brought to ours, and the others refused.

A null is no value: a column that a row leaves empty is as good as absent, and a reward sees None in it.
"""

import math
from collections.abc import Mapping
from typing import Any

from jaxrl_llm.data.dialogues import assistant_turns, check_dialogue, message_fault

Example = dict[str, Any]
# Columns with a meaning of their own; null in them counts as absent.
OWN = ("prompt", "completion", "messages", "chosen", "rejected", "gold", "margin", "label")
# Names of ShareGPT for who speaks.
_SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant", "tool": "tool", "observation": "tool",
}  # fmt: skip


def select_columns(row: Mapping[str, Any], columns: Mapping[str, str] | None, place: str) -> Example:
    """The example that `columns` (our name -> name in the row) picks from `row`; without `columns`, all of it.

    Dialogues of ShareGPT ("conversations" of "from" and "value") become "messages", and a completion that is a list of one
    message of the assistant becomes its text, or a dialogue where it has more than a text.

    Raises ValueError: a column is missing, or holds what it cannot; the message begins with `place`.
    """
    mapping = {name: name for name in row} if columns is None else columns
    missing = next((theirs for theirs in mapping.values() if theirs not in row), None)
    if missing is not None:
        raise ValueError(f"{place}: column {missing!r} is missing; the row has {sorted(row)}: correct `columns`")
    example = {ours: row[theirs] for ours, theirs in mapping.items()}
    example = {name: value for name, value in example.items() if value is not None or name not in OWN}
    example = _with_completion_as_text(_with_messages(example, place), place)
    if "messages" in example:
        check_dialogue(example["messages"], f"{place}: messages", example.get("tools"))
        example = {"prompt": example["messages"][: assistant_turns(example["messages"])[-1]], **example}
    if "prompt" in example and not ("messages" in example and example["prompt"] == []):
        check_prompt(example["prompt"], f"{place}: 'prompt'")
    _check_kinds(example, place)
    return example


def require_prompt(example: Example, row: Mapping[str, Any], place: str) -> Example:
    """The example, which has a prompt.

    Raises ValueError: it has none.
    """
    if "prompt" in example:
        return example
    if "prompt" in row:
        raise ValueError(f"{place}: 'prompt' is null; give a text or a list of chat messages, or leave the row out")
    mend = f"say which of {sorted(row)} does, as in columns={{'prompt': 'question'}}"
    if "text" in row:
        mend += "; or split 'text' into a prompt and a 'completion' that is learned"
    raise ValueError(f"{place}: no column gives 'prompt' (or 'messages'); {mend}")


def check_prompt(prompt: Any, place: str) -> None:
    """Refuses what is no prompt: neither a text that is not empty nor a list of chat messages.

    Raises ValueError: the message begins with `place`, such as "train.jsonl, line 3: 'prompt'".
    """
    if isinstance(prompt, str):
        if not prompt:
            raise ValueError(f"{place} is empty; give a text, or leave the row out")
        return
    if not isinstance(prompt, list | tuple) or not prompt:
        raise ValueError(f"{place} is {prompt!r}; give a text or a list of chat messages")
    for index, message in enumerate(prompt):
        if fault := message_fault(message):
            raise ValueError(f"{place}[{index}] {fault}")


def _with_messages(example: Example, place: str) -> Example:
    """The example with a dialogue of ShareGPT as "messages"."""
    name = next((name for name in ("messages", "conversations") if _is_sharegpt(example.get(name))), None)
    if name is None:
        return example
    messages = []
    for index, said in enumerate(example[name]):
        role = _SPEAKERS.get(said.get("from")) if isinstance(said, Mapping) else None
        if role is None or not isinstance(said.get("value"), str):
            known = sorted(_SPEAKERS)
            raise ValueError(f"{place}: {name}[{index}] is {said!r:.80}; give 'from', one of {known}, and a text as 'value'")
        messages.append({"role": role, "content": said["value"]})
    rest = {key: value for key, value in example.items() if key not in (name, "system")}
    if isinstance(example.get("system"), str) and example["system"] and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": example["system"]}, *messages]
    return rest | {"messages": messages}


def _is_sharegpt(value: Any) -> bool:
    return isinstance(value, list) and any(
        isinstance(said, Mapping) and "from" in said and "role" not in said for said in value
    )


def _with_completion_as_text(example: Example, place: str) -> Example:
    completion = example.get("completion")
    if not isinstance(completion, list):
        return example
    for index, message in enumerate(completion):
        if fault := message_fault(message):
            raise ValueError(f"{place}: 'completion'[{index}] {fault}")
    if len(completion) == 1 and completion[0] == {"role": "assistant", "content": (content := completion[0].get("content"))}:
        return example | {"completion": content}
    if not completion or completion[-1]["role"] != "assistant" or "label" in example:
        roles = [message["role"] for message in completion]
        raise ValueError(f"{place}: 'completion' has the roles {roles}; give a text, or messages that end with the assistant's")
    prompt = example.get("prompt")
    if prompt is not None:
        check_prompt(prompt, f"{place}: 'prompt'")
    begun = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt or ())
    turns = {"turns": "last"} if len(assistant_turns(completion)) == 1 else {}
    rest = {name: value for name, value in example.items() if name not in ("completion", "prompt")}
    return {"prompt": begun, **rest, **turns, "messages": [*begun, *completion]}


def _check_kinds(example: Example, place: str) -> None:
    if not isinstance(example.get("completion", ""), str):
        found = example["completion"]
        raise ValueError(f"{place}: 'completion' is {found!r:.80}; give a text, or a list of one message of the assistant")
    margin = example.get("margin", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise ValueError(f"{place}: 'margin' is {margin!r}; give a number, or leave the column out")


def common_prompt(chosen: str, rejected: str, place: str) -> tuple[str, str, str]:
    """Prompt, chosen and rejected text of two texts that begin alike: what both begin with, up to a word and a space before it.

    Raises ValueError: they begin with different words, or are equal.
    """
    shared = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
    )
    if shared < max(len(chosen), len(rejected)) and _within_word(chosen, rejected, shared):
        shared = next((i for i in range(shared, 0, -1) if not _is_of_word(chosen[i - 1])), 0)
    if chosen[shared - 1 : shared] == " ":
        shared -= 1
    if not chosen[:shared] or chosen == rejected:
        fault = "are equal" if chosen == rejected else "begin with different words"
        raise ValueError(
            f"{place}: 'prompt' is None; give a text or a list of chat messages: 'chosen' and 'rejected' {fault}, so that none "
            "can be told from them"
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _within_word(chosen: str, rejected: str, place: int) -> bool:
    """Whether the texts part within a word of one of them."""
    return (
        place > 0
        and _is_of_word(chosen[place - 1])
        and any(_is_of_word(text[place : place + 1]) for text in (chosen, rejected))
    )


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character in ("_", "'", "\u2019") and bool(character)
