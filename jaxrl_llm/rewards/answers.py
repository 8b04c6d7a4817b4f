"""Rewards that compare the final answer of a completion with the gold one: 1.0 where they agree, else 0.0.

A gold answer of None is no answer, and the reward of its row missing. What a reward takes for the answer of a completion is
its attribute `answer`, by which majority votes and methods that compare answers go too: see `answer_of`.
"""

import decimal
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from jaxrl_llm.rewards import notation
from jaxrl_llm.rewards.notation import Number

Answer = Callable[[str], Hashable | None]


def environment(
    prompts: Sequence[Any], completions: Sequence[str], environment_reward: Sequence[float | None]
) -> list[float | None]:
    """What the environment gave for the last turn of each episode, see `rollouts.episodes`."""
    return list(environment_reward)


def exact_match(
    prompts: Sequence[Any], completions: Sequence[str], answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """Whether the whole completion is `answer`, white space at both ends aside; numbers of JSON however they are written."""
    return [_agreement(completion, gold) for completion, gold in zip(completions, answer, strict=True)]


def marked_answer(marker: str) -> Callable[..., list[float | None]]:
    """Reward: whether what follows the last `marker` of the completion is `answer`; 0.0 without a marker.

    The arithmetic task marks its answers with "#".
    """
    if not marker:
        raise ValueError("marker is empty; give the text that precedes the answer, such as '#'")
    reward = functools.partial(_marked_answer, marker)
    reward.answer = functools.partial(_after, marker)
    return reward


def arithmetic(prompts: Sequence[Any], completions: Sequence[str], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """Whether what follows the last "#" of the completion is `answer`, as in the built-in arithmetic task."""
    return _marked_answer("#", prompts, completions, answer)


def gsm8k(prompts: Sequence[Any], completions: Sequence[str], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """Whether the final number of the completion equals that of `answer`.

    The final number is the first one after the last "####" that is no heading; else that of the last `\\boxed{...}`; else the
    last number at all. Numbers are compared exactly, however they are written: "1,200.0", "1{,}200" and "1.2e3" are equal.

    Args:
      answer: numbers, or worked solutions of the data set (arXiv:2110.14168) that end in "#### number".

    Raises ValueError: an `answer` without a number.
    """
    golds = [None if gold is None else final_number(written(gold)) for gold in answer]
    for row, (given, gold) in enumerate(zip(answer, golds, strict=True)):
        if gold is None and given is not None:
            raise ValueError(f"answer of row {row} is {given!r}, which has no final number; correct the column 'answer'")
    pairs = zip(completions, golds, strict=True)
    return [None if gold is None else float(final_number(completion) == gold) for completion, gold in pairs]


def final_number(text: str) -> Number | None:
    """The final number of `text` as `gsm8k` understands it, or None."""
    mark = notation.marked(text)
    if mark is not None:
        return notation.number_at_start(mark)
    box = notation.last_box(text)
    found = None if box is None else notation.number(box)
    return notation.last_number(text) if found is None else found


def final_answer(text: str) -> Hashable | None:
    """What `text` answers: its final number; else the words of its last box, or else all of it; None if that is nothing."""
    box = notation.last_box(text)
    if box is not None and notation.number(box) is None and notation.marked(text) is None:
        return "".join(box.split())
    found = final_number(text)
    return whole_answer(text) if found is None else found


def whole_answer(text: str) -> Hashable | None:
    """All of `text` as an answer, white space at both ends aside; a number where it is one, None where it is empty."""
    text = text.strip()
    number = notation.number(text)
    return (text or None) if number is None else number


def answer_of(reward: Callable) -> Answer:
    """What the reward takes for the answer of a completion: its attribute `answer`, or `final_answer`.

    Two completions with equal answers are one vote; None has none.
    """
    return getattr(reward, "answer", final_answer)


exact_match.answer = whole_answer
gsm8k.answer = final_number


def _marked_answer(marker, /, prompts, completions, answer, **columns: Any) -> list[float | None]:
    found = [completion.rpartition(marker) for completion in completions]
    pairs = zip(found, answer, strict=True)
    return [_agreement(tail, gold) if mark or gold is None else 0.0 for (_, mark, tail), gold in pairs]


def _after(marker: str, text: str) -> Hashable | None:
    _, mark, tail = text.rpartition(marker)
    return whole_answer(tail) if mark else None


arithmetic.answer = functools.partial(_after, "#")


def _agreement(text: str, gold: Any) -> float | None:
    """Whether `text` is the gold answer, which is a text, a number or a boolean of JSON; None without one."""
    if gold is None:
        return None
    text, wanted = text.strip(), written(gold)
    if isinstance(gold, bool):
        return float(text.lower() == wanted)
    return float(text == wanted.strip() or (not isinstance(gold, str) and notation.number(text) == notation.number(wanted)))


def text_of(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt as a text: itself, or who says what in a chat."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)


def written(gold: Any) -> str:
    """The text of a gold answer; a number without an exponent, as a person would write it.

    Raises ValueError: it is neither a text nor a number that is finite.
    """
    if isinstance(gold, str):
        return gold
    if isinstance(gold, bool):
        return str(gold).lower()
    try:
        value = decimal.Decimal(repr(gold) if isinstance(gold, float) else int(gold))
    except (TypeError, ValueError, decimal.InvalidOperation):
        value = decimal.Decimal("nan")
    if not value.is_finite():
        raise ValueError(f"an answer is {gold!r}; give a text or a number in the column 'answer', or null where there is none")
    return f"{value:f}"
