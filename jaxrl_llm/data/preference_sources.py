"""Pairs of completions of which one is preferred, and single ones that are marked: from files, and made up.

An example has a "prompt" (text or chat messages), the texts "chosen" and "rejected", and perhaps a "margin" by which the
one is better and a third text, "gold". Its "completion" is the chosen text, so that a supervised phase can imitate it. An
answer that is marked by itself as desirable or not is an example with one of both texts alone.
"""

import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrl_llm.data.arithmetic import ANSWER_MARKER, SPLITS, arithmetic_source
from jaxrl_llm.data.columns import check_prompt, common_prompt, select_columns
from jaxrl_llm.data.files import read_rows
from jaxrl_llm.data.sources import Example, Source

HELD_OUT_SHARE = 10  # one prompt in ten is held out
_OTHER_STREAM = 2**63  # keeps the slips independent of the problems that they are made in


def preference_source(path: str | pathlib.Path, columns: Mapping[str, str] | None = None, *, split: str = "all") -> Source:
    """The pairs of a file, one a row, or its marked answers, read and checked at once.

    "chosen" and "rejected" are texts behind a "prompt", or lists of chat messages that end with the assistant's. Both may
    repeat the prompt, as whole texts or conversations; then their common beginning is the prompt, of texts up to a word, and
    there need be no column for it. A text "gold" may stand beside them. Rows of "prompt", "completion" and "label" (true or
    false) are single answers, desirable or not; the completion is a text or a list of one message of the assistant.

    Args:
      path: what `files.read_rows` reads.
      columns: our name -> name in the file, as in {"prompt": "question", "chosen": "better", "rejected": "worse"}.
      split: "train", or "test" for about a tenth of all prompts, chosen by a hash, that "train" never shows; or "all".

    Raises ValueError: a line is no pair; the message gives its number and what is wrong.
    """
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split is {split!r}; it must be one of {(*SPLITS, 'all')}")
    names = columns and {"prompt": "prompt"} | dict(columns)
    pairs = []
    for place, row in read_rows(path):
        pairs.append((place, as_preference(select_columns({"prompt": None} | row, names, place), place)))
    if split != "all":
        pairs = [(place, pair) for place, pair in pairs if _is_held_out(pair["prompt"]) == (split == "test")]
    if not pairs:
        raise ValueError(f"{path} has no prompt that falls into split={split!r}; give each split a file, with split='all'")
    return Source(f"{path} ({split})", len(pairs), lambda index: dict(pairs[index][1]), lambda index: pairs[index][0])


def arithmetic_preferences(
    size: int = 50_000, *, seed: int = 0, split: str = "train", digits: tuple[int, int] = (1, 2), operations: str = "+"
) -> Source:
    """Worked sums and differences, preferred over the same with a slip: "7+5=12;3+4+1=8#82" over "7+5=13;3+4+1=8#83".

    The slip is a wrong last digit of one column, which the result repeats: only calculation finds it.

    Args:
      size: number of examples.
      seed: seed of the problems and of the slips.
      split: as in `arithmetic_source`, whose problems these are.
      digits: as there.
      operations: some of "+-".

    Raises ValueError: an operation that is not worked column by column.
    """
    if set(operations) - set("+-"):
        raise ValueError(f"operations is {operations!r}; slips are made in columns: give some of '+-'")
    problems = arithmetic_source(size, seed=seed, split=split, digits=digits, operations=operations)

    def fetch(index: int) -> Example:
        random = np.random.Philox(key=np.array([(seed + _OTHER_STREAM) % 2**64, index], np.uint64))
        problem = problems[index]
        rejected = _with_slip(problem["completion"], *(int(word) for word in random.random_raw(2)))
        return problem | {"chosen": problem["completion"], "rejected": rejected}

    return Source(f"arithmetic preferences {split}", size, fetch)


def _with_slip(solution: str, column_word: int, digit_word: int) -> str:
    working, result = solution.split(ANSWER_MARKER)
    steps = working.split(";")
    column = column_word % len(steps)
    # The result has no leading zeros, so that it may lack the last column.
    digits = result.rjust(len(steps), "0")
    place = len(digits) - 1 - column
    digit = str((int(steps[column][-1]) + 1 + digit_word % 9) % 10)
    steps[column] = steps[column][:-1] + digit
    wrong = int(digits[:place] + digit + digits[place + 1 :])
    return ";".join(steps) + f"{ANSWER_MARKER}{wrong}"


def as_preference(example: Mapping[str, Any], place: str) -> Example:
    """The example of a pair, see `as_pair`, or, of one with a "label", of a single answer, see `as_marked_answer`."""
    return as_marked_answer(example, place) if "label" in example else as_pair(example, place)


def as_marked_answer(example: Mapping[str, Any], place: str) -> Example:
    """The example {"prompt", "completion", "label"} with its text as "chosen" where the label is true, else as "rejected".

    Args:
      example: as in a file; see `preference_source`.
      place: what messages call it.

    Raises ValueError: a label that is neither true nor false, or a prompt or completion that is none.
    """
    prompt, completion, label = (example.get(name) for name in ("prompt", "completion", "label"))
    if label not in (True, False) or not isinstance(label, bool | int):
        raise ValueError(f"{place}: 'label' is {label!r}; give true for a desirable answer, false for an undesirable one")
    if completion is None:
        raise ValueError(f"{place}: 'completion' is None; give a text or a list of one message of the assistant")
    check_prompt(prompt, f"{place}: 'prompt'")
    kept = {name: value for name, value in example.items() if name not in ("completion", "label")}
    return kept | ({"chosen": completion, "completion": completion} if label else {"rejected": completion})


def as_pair(example: Mapping[str, Any], place: str) -> Example:
    """The example with "prompt", texts "chosen" and "rejected", and "completion", the chosen one.

    Args:
      example: as in a file; see `preference_source`.
      place: what messages call it.

    Raises ValueError: the example is no pair.
    """
    missing = next((name for name in ("chosen", "rejected") if name not in example), None)
    if missing:
        raise ValueError(f"{place}: there is no {missing!r}, only {sorted(example)}; map a column to it with `columns`")
    prompt, chosen, rejected = (example.get(name) for name in ("prompt", "chosen", "rejected"))
    if isinstance(chosen, list) and isinstance(rejected, list):
        prompt, chosen, rejected = _split_conversations(prompt, chosen, rejected, place)
    elif not (isinstance(chosen, str) and isinstance(rejected, str)):
        kinds = f"{type(chosen).__name__} and {type(rejected).__name__}"
        raise ValueError(f"{place}: 'chosen' and 'rejected' are {kinds}; give two texts or two lists of chat messages")
    elif prompt is None:
        prompt, chosen, rejected = common_prompt(chosen, rejected, place)
    check_prompt(prompt, f"{place}: 'prompt'")
    return dict(example) | {"prompt": prompt, "chosen": chosen, "rejected": rejected, "completion": chosen}


def _split_conversations(prompt, chosen: list, rejected: list, place: str):
    """Prompt messages and the two last texts of conversations that share all but their last message."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    ends = chosen[shared:], rejected[shared:]
    for name, end in zip(("chosen", "rejected"), ends, strict=True):
        if len(end) != 1 or not isinstance(end[0], dict) or not isinstance(end[0].get("content"), str):
            fault = f"{name!r} has {len(end)} messages behind those that it shares with the other"
            raise ValueError(f"{place}: {fault}; it must be one, with a text as 'content'")
        if end[0].get("role") != "assistant":
            raise ValueError(f"{place}: {name!r} ends with the role {end[0].get('role')!r}; it must end with 'assistant'")
    given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if shared and given and given[-1] not in chosen[:shared]:
        raise ValueError(f"{place}: 'chosen' and 'rejected' begin with other messages than 'prompt'; leave the prompt out")
    return chosen[:shared] or given, *(end[0]["content"] for end in ends)


def _is_held_out(prompt) -> bool:
    return zlib.crc32(json.dumps(prompt, sort_keys=True).encode()) % HELD_OUT_SHARE == 0
