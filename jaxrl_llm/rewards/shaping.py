"""Rewards for the form of a completion: a pattern, and its length in tokens."""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from jaxrl_llm.rewards.worker import call_reward

Reward = Callable[..., list[float]]
# One block of thoughts and one answer, neither of them within another.
_WITHIN = r"(?:(?!</?(?:think|answer)>).)*"
THINK_THEN_ANSWER = rf"<think>{_WITHIN}</think>\s*<answer>{_WITHIN}</answer>"


def format_reward(pattern: str = THINK_THEN_ANSWER) -> Reward:
    """Reward: 1.0 where the whole completion, white space at both ends aside, matches `pattern`; "." matches any character."""
    return functools.partial(_format, re.compile(pattern, re.DOTALL))


def length_soft_penalty(max_tokens: int, buffer_tokens: int) -> Reward:
    """Reward: 0 up to `max_tokens - buffer_tokens` tokens, then falling linearly to -1 at `max_tokens` and beyond.

    The soft overlong punishment of DAPO (arXiv:2503.14476, eq. 13). Needs the column "completion_length", in tokens.
    """
    if not 0 < buffer_tokens <= max_tokens:
        raise ValueError(f"buffer_tokens is {buffer_tokens}; it must lie in [1, max_tokens = {max_tokens}]")
    return functools.partial(_soft_penalty, max_tokens, buffer_tokens)


def length_cosine(
    reward: Callable, max_tokens: int, *, correct: tuple[float, float] = (2.0, 1.0), wrong: tuple[float, float] = (-10.0, 0.0),
    exceeded: float = -10.0,
) -> Reward:  # fmt: skip
    """Reward: correctness scaled along half a cosine of the length, so that right answers are short and wrong ones long.

    "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv:2502.03373, section 4.2). Needs the column
    "completion_length", in tokens.

    Args:
      reward: says what is correct, by a value above 0.5; where it is missing, so is this.
      max_tokens: the limit of the sampler.
      correct: value of a correct completion of no tokens, and of one near `max_tokens`.
      wrong: the same for a wrong completion.
      exceeded: value of any completion of `max_tokens` or more.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; give the largest number of tokens that the sampler may write")
    return functools.partial(_cosine, reward, max_tokens, correct, wrong, exceeded)


def _format(pattern, /, prompts, completions, **columns) -> list[float]:
    return [float(pattern.fullmatch(completion.strip()) is not None) for completion in completions]


def _soft_penalty(max_tokens, buffer_tokens, /, prompts, completions, **columns) -> list[float]:
    free = max_tokens - buffer_tokens
    return [-min(1.0, max(0.0, (length - free) / buffer_tokens)) for length in _lengths(columns)]


def _cosine(reward, max_tokens, correct, wrong, exceeded, /, prompts, completions, **columns) -> list[float | None]:
    lengths = _lengths(columns)
    values = call_reward(reward, prompts, completions, columns)

    def shaped(value: float | None, length: int) -> float | None:
        if value is None or math.isnan(value):
            return None
        if length >= max_tokens:
            return exceeded
        start, end = correct if value > 0.5 else wrong
        return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * length / max_tokens))

    return [shaped(value, length) for value, length in zip(values, lengths, strict=True)]


def _lengths(columns: dict[str, Any]) -> Sequence[int]:
    if "completion_length" not in columns:
        mend = "hand over the number of tokens of each completion under that name"
        raise ValueError(f"column 'completion_length' is missing, there are {sorted(columns)}; {mend}")
    return columns["completion_length"]
