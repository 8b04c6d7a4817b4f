"""Preferences as rollouts: the rows of pairs, of their gold texts, of marked answers, and of answers to other prompts."""

from collections.abc import Sequence

import numpy as np

from jaxrl_llm.data.dialogues import encode_answer
from jaxrl_llm.data.packing import batch_from
from jaxrl_llm.data.sources import Example, check_ids, chosen_of, place_of
from jaxrl_llm.data.tokenizers import Tokenizer
from jaxrl_llm.estimators import pair_mean
from jaxrl_llm.types import Batch, Rollouts

# The texts of an example, with the preference of their rows.
SIDES = {"chosen": 1.0, "rejected": -1.0, "gold": 0.0}
PAIR = ("chosen", "rejected")


def filter_long_pairs(
    source: Sequence[Example], tokenizer: Tokenizer, width: int, *, drop: bool = False, texts: Sequence[str] = PAIR,
    vocab_size: int | None = None, mend: str = "raise the width of rows or drop long pairs with drop=True",
) -> tuple[Sequence[Example], int]:  # fmt: skip
    """Sees to it that all texts of every example fit into a row; none is ever cut.

    Args:
      source: pairs or marked answers.
      tokenizer: counts the tokens, chat template and end token included.
      width: tokens of a row; `preference_rollouts` needs one for the place behind the text.
      drop: leave longer examples out instead of raising.
      texts: those that every example must have; none for marked answers.
      vocab_size: of the network, which knows no other ids; by default they are not looked at.
      mend: what messages say to do about a pair that is too long.

    Returns: The examples that fit and the number of those left out.
    Raises ValueError: an example lacks a text, or is longer and `drop` is false, or none is left.
    """
    name, kept = getattr(source, "name", "examples"), []
    for index in range(len(source)):
        place = place_of(source, index)
        encoded = [row for _, example in _shown(source[index]) for row in _encoded(tokenizer, example, place, texts)]
        for _, prompt, text in encoded:
            check_ids((*prompt, *text), vocab_size, f"{place}: a text")
        longest = 1 + max(len(prompt) + len(text) for _, prompt, text in encoded)
        if longest <= width:
            kept.append(index)
        elif not drop:
            fault = f"pair {index} takes {longest} places, more than the {width} of a row"
            raise ValueError(f"{place}: {fault}; {mend}")
    if not kept:
        raise ValueError(f"{name}: none of its {len(source)} pairs fits into {width} places; {mend}")
    return (source, 0) if len(kept) == len(source) else (chosen_of(source, kept), len(source) - len(kept))


def preference_rollouts(
    tokenizer: Tokenizer, examples: Sequence[Example], width: int, numbers: Sequence[int] | None = None, *,
    texts: Sequence[str] = PAIR,
) -> Rollouts:  # fmt: skip
    """A row for each text of each example, the chosen one first; the tokens of the completions are the actions.

    A row has one place more than its text (token 0, no action): a value belongs to the state before its place, so that
    the one there is what a value head says of the last token.

    Args:
      tokenizer: of prompts and completions; each completion gets the end token.
      examples: as those of `preference_source`.
      width: T, places of a row.
      numbers: of the examples in their source.
      texts: those that each example must have, none for marked answers; with "gold" among them it gives a third row, of
        source 1 and preference 0.

    An example with "revisions" has the rows of each of its prompts, the plain one first; see `goals.revised`.

    Returns: Rollouts of NumPy arrays; `group` is the number of the example, `extras` hold "preference" [N] (1 or -1) and
      "margin" [N] (0 where a pair has none), and with revisions "revises" [N], the preference of the answer that the prompt
      shows (0 for none); `rewards` are 0.
    Raises ValueError: an example lacks a text, or is longer than `width`; the message gives its number.
    """
    numbers = range(len(examples)) if numbers is None else numbers
    rows, revises = [], []
    for group, (number, example) in enumerate(zip(numbers, examples, strict=True)):
        for shown, own in _shown(example):
            for side, prompt, text in _encoded(tokenizer, own, f"pair {number}", texts):
                rows.append((group, number, side, example.get("margin", 0.0), prompt, text))
                revises.append(shown)
    found = _rollouts(rows, width)
    return found.replace(extras=found.extras | {"revises": np.array(revises, np.float32)}) if any(revises) else found


def _shown(example: Example) -> list[tuple[float, Example]]:
    """The example, and once more behind each prompt of its "revisions", with the preference of the answer shown there."""
    asked = example.get("revisions", {}).items()
    return [(0.0, example), *((SIDES[side], example | {"prompt": prompt}) for side, prompt in asked)]


def batch_of_pairs(
    prompts: Sequence[Sequence[int]], chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]], *,
    margin: Sequence[float] | None = None, width: int | None = None,
) -> Batch:  # fmt: skip
    """Pairs of token ids for an update in a loop of your own: row 2i is the chosen one of pair i, row 2i + 1 the other.

    Each pair has the same share in the loss (`estimators.pair_mean`). The reference's log-probabilities are the caller's to
    add: `batch.replace(reference_logp=make_scorer(network)(reference_params, batch).logp)`.

    Args:
      prompts: token ids of each prompt.
      chosen: those of the preferred answer, its end token included.
      rejected: those of the other one.
      margin: by how much the one is better; 0 by default.
      width: T, places of a row; by default the longest text and the place behind it (see `preference_rollouts`).

    Returns: A batch [2 * pairs, T] of NumPy arrays.
    Raises ValueError: the lists differ in length or are empty, or a text does not fit into `width`.
    """
    margin = [0.0] * len(prompts) if margin is None else margin
    counts = {"prompts": len(prompts), "chosen": len(chosen), "rejected": len(rejected), "margin": len(margin)}
    if len(set(counts.values())) != 1 or not prompts:
        raise ValueError(f"the lists have lengths {counts}; give one entry a pair in each, and at least one pair")
    rows = [
        (number, number, side, margin[number], list(prompts[number]), list(texts[number]))
        for number in range(len(prompts))
        for side, texts in zip(PAIR, (chosen, rejected), strict=True)
    ]
    longest = 1 + max(len(prompt) + len(text) for *_, prompt, text in rows)
    weighted, _ = pair_mean().update(_rollouts(rows, width or longest), (), None)
    return batch_from(weighted)


def _rollouts(rows: Sequence[tuple], width: int) -> Rollouts:
    """Rollouts of rows (group, number of the example, side, margin, ids of the prompt, ids of the text)."""
    groups, numbers, sides, margins, *_ = zip(*rows, strict=True)
    tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.float32)
    length = np.zeros(len(rows), np.int32)
    for row, (_, number, _, _, prompt, text) in enumerate(rows):
        end = len(prompt) + len(text)
        if end >= width:
            raise ValueError(f"pair {number} takes {end + 1} places, more than width = {width}; widen the rows")
        tokens[row, :end] = prompt + text
        mask[row, len(prompt) : end] = 1.0
        length[row] = end + 1
    return Rollouts(
        tokens=tokens, length=length, mask=mask, rewards=np.zeros((len(rows), 1), np.float32), group=np.array(groups, np.int32),
        prompt_id=np.array(numbers, np.int32), source=np.array([side == "gold" for side in sides], np.int32),
        extras={"preference": np.array([SIDES[side] for side in sides], np.float32), "margin": np.array(margins, np.float32)},
    )  # fmt: skip


def mismatched_rollouts(tokenizer: Tokenizer, examples: Sequence[Example], width: int) -> Rollouts:
    """The rows of `preference_rollouts`, each with the answer of another example behind its own prompt.

    It is the text of the same side of the example before, the first one before the last; of an example with the same prompt
    it would be an answer to this one, so that the one before that is taken. An example that lacks the side gives the text
    that it has. What does not fit into a row is cut.

    Args:
      tokenizer: of prompts and completions.
      examples: as those of `preference_source`.
      width: T, places of a row.

    Raises ValueError: all examples have one prompt.
    Source: the KL term of KTO, https://arxiv.org/abs/2402.01306, section 4.1
    """
    prompts = [example["prompt"] for example in examples]
    encoded = [{side: ids for side, *ids in _encoded(tokenizer, example, f"pair {n}")} for n, example in enumerate(examples)]
    rows = []
    for number, (prompt, own) in enumerate(zip(prompts, encoded, strict=True)):
        others = (encoded[other] for other in range(number - 1, number - len(examples), -1) if prompts[other] != prompt)
        other = next(others, None)
        if other is None:
            raise ValueError(
                f"all {len(examples)} examples of the step have the prompt {str(prompt)[:60]!r}; an answer to another prompt "
                "is needed: raise the number of examples of a step, or shuffle the file"
            )
        for side in (side for side in PAIR if side in own):
            text = other.get(side, other.get("chosen", other.get("rejected")))[1]
            before = own[side][0]
            rows.append((number, number, side, 0.0, before, text[: width - 1 - len(before)]))
    return _rollouts(rows, width)


def _encoded(tokenizer: Tokenizer, example: Example, place: str, needed: Sequence[str] = ()):
    """Triples of a side, and the token ids of prompt and completion, the end token included; "gold" where it is needed."""
    sides = [name for name in SIDES if name in needed or (name in PAIR and name in example)] or [PAIR[0]]
    missing = next((name for name in sides if not isinstance(example.get(name), str)), None)
    if missing:
        fault = f"there is no {missing!r}, only {sorted(example)}"
        raise ValueError(f"{place}: {fault}; take a source of preferences that gives each example a text of that name")
    try:
        return [(name, *encode_answer(tokenizer, example["prompt"], example[name], example.get("tools"))) for name in sides]
    except (ValueError, UnicodeError) as error:
        raise ValueError(f"{place}: {error}") from error
