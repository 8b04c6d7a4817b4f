"""Several attempts at a task, with what a verifier thinks of each in between: tasks of reasoning-gym, or any reward."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxrl_llm import reading
from jaxrl_llm.environments.base import Environment, Example, Transition
from jaxrl_llm.rewards.answers import arithmetic, exact_match, gsm8k
from jaxrl_llm.rewards.reasoning_gym import reasoning_gym_score
from jaxrl_llm.rewards.worker import call_reward

SCORES = {score.__name__: score for score in (reasoning_gym_score, arithmetic, exact_match, gsm8k)}
FEEDBACK = "\nThat has {score:.2f} of 1 points. Attempts left: {left}. Try again.\n"


class Tried(NamedTuple):
    """The example, and what became of earlier attempts."""

    example: dict[str, Any]
    best: float = 0.0
    count: int = 0


def attempts(
    score: str = "reasoning_gym_score", most: int = 3, feedback: str = FEEDBACK, discount: float = 1.0, success: float = 1.0
) -> Environment:
    """The prompt of the example, until an answer is right or the attempts are spent; a turn is an attempt.

    Each turn's reward is what it adds to the best score so far, times the discount for each turn before it, so that rewards
    add up to the best score where nothing is discounted.

    Args:
      score: one of "reasoning_gym_score", "arithmetic", "exact_match", "gsm8k", or "package.module:function", a reward.
      most: attempts.
      feedback: what is read behind an attempt, with {score}, {left} and {answer}, what was said; in a chat a message.
      discount: of an attempt for each before it.
      success: score from which on no other follows.

    Raises ValueError: an unknown score or one that cannot be imported, numbers out of range, or a feedback that asks for
      something else.
    """
    if score not in SCORES and ":" not in score:
        raise ValueError(f"score is {score!r}; give one of {sorted(SCORES)}, or 'package.module:function'")
    _score(score)
    if most < 1 or not 0 < discount <= 1:
        raise ValueError(f"most is {most}, discount {discount}; give at least 1, and a discount above 0 and at most 1")
    try:
        feedback.format(score=0.0, left=0, answer="")
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"feedback is {feedback!r}, which asks for {error}; it may have score, left and answer") from error
    return Environment(_begin, functools.partial(_step, score, most, feedback, discount, success))


def _begin(example: Example, seed: int) -> tuple[Tried, Any]:
    return Tried(dict(example)), example["prompt"]


@functools.cache
def _score(name: str) -> Callable:
    return SCORES[name] if name in SCORES else reading.imported(name, "score")


def _step(score: str, most: int, feedback: str, discount: float, success: float, tried: Tried, text: str) -> Transition:
    columns = {name: [value] for name, value in tried.example.items() if name != "prompt"}
    (value,) = call_reward(_score(score), [tried.example["prompt"]], [text], columns)
    value = float(value or 0.0)
    gain, count = max(value - tried.best, 0.0) * discount**tried.count, tried.count + 1
    after = tried._replace(best=max(value, tried.best), count=count)
    told = feedback.format(score=value, left=most - count, answer=text)
    facts = {"attempts": count, "state": told}
    return Transition(after, told, reward=gain, done=value >= success or count >= most, facts=facts)
