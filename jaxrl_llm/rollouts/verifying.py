"""Strategies in which somebody else writes about the policy's answers: a verifier judges their steps, an assistant spoils them.

Who it is says the option `by`: a module that learns from what it wrote, see `training.modules`, or "reference" or "teacher". A
row is right where the reward of number `component`, without its weight, is above `threshold`. Templates are those of
`views.templated`, in which "{completion}" stands for the answer.
"""

import dataclasses
import re

import numpy as np

from jaxrl_llm.rollouts.collect import Collection, joined
from jaxrl_llm.rollouts.forks import separators
from jaxrl_llm.rollouts.io import Io
from jaxrl_llm.rollouts.requests import requests_for
from jaxrl_llm.rollouts.strategy import Metrics, stateless_strategy
from jaxrl_llm.rollouts.views import under

VERDICT = "{prompt}\n{completion}\nJudge each line by + or -, then say 1 if the answer is right, or 0:"
SPOILED = "{prompt}\n{completion}\nWrite the same with a mistake that makes the answer wrong:"


def _samples_of(options: dict) -> tuple[str, ...]:
    """What a strategy asks for that has the reference or the teacher write."""
    return (f"{options['by']}_samples",) if options["by"] in ("reference", "teacher") else ()


@stateless_strategy(annotations=_samples_of, provides=("step_reward", "right"))
def verified(
    io: Io, prompts: int, *, samples: int = 8, by: str = "verifier", template: str = VERDICT, separator: str = "\n",
    step: str = "[+-]", final: str = "[01]", format_reward: float = 0.1, threshold: float = 0.0, component: int = 0,
) -> tuple[Collection, Metrics]:  # fmt: skip
    """Groups of the policy's answers, and what a verifier says of each: a verdict of each step, and one of the whole.

    `extras["step_reward"]` [N, T] is +-1/K at the last token of each of the K steps of an answer, 0 where the verifier said
    nothing; the steps are the turns of the row. `extras["right"]` [N] is 1 where the answer is right, also in the rows of the
    verifier, which follow those of the policy, in groups of their own: a group for the answers to one prompt. Their reward is 1
    for a verdict of the whole that is true, and `format_reward` for one of each step and of the whole.

    Args:
      template: of the verifier's prompt.
      separator: text that steps end with.
      step, final: patterns of a verdict of a step, and of the last one; "+", "1" and words such as "correct" say right.
      format_reward: for a judgement that is complete.

    Returns: With the metrics "verifier/true" and "verifier/complete", shares of the judgements.
    Raises ValueError: a prompt and its answer are longer than prompts may be.
    Source: RL Tango, https://arxiv.org/abs/2505.15034
    """
    answers = io.sample(requests_for(*io.draw(prompts), samples=samples))
    right, numbers = _right(answers, component, threshold), np.asarray(answers.rollouts.group)
    asked = [_about(io, answers, row, template, by, int(numbers[row])) for row in range(len(right))]
    judged = io.sample(asked, rewarded=False)
    turn, step_reward = np.zeros_like(answers.rollouts.turn), np.zeros(answers.rollouts.tokens.shape, np.float32)
    true, complete = np.zeros(len(right)), np.zeros(len(right))
    for row, record in enumerate(judged.records):
        first, last = int(answers.prompt_length[row]), int(answers.rollouts.length[row])
        ends = [*separators(text=separator, most=last)(io, answers, row), last]
        words = [_says_right(word) for word in re.findall(step, record["completion"])]
        whole = re.findall(final, record["completion"])
        complete[row] = len(words) == len(ends) and bool(whole)
        true[row] = bool(whole) and _says_right(whole[-1]) == right[row]
        for number, (start, end) in enumerate(zip([first, *ends[:-1]], ends, strict=True)):
            turn[row, start:end] = number
            if number < len(words):
                step_reward[row, end - 1] = (1.0 if words[number] else -1.0) / len(ends)
    extras = {"right": right.astype(np.int32)}
    judged = _with_rewards(judged.changed(extras=extras), true + format_reward * complete)
    metrics = {"verifier/true": float(true.mean()), "verifier/complete": float(complete.mean())}
    return _together(answers.changed(turn=turn, extras=extras | {"step_reward": step_reward}), judged), metrics


@stateless_strategy(annotations=_samples_of)
def spoiled(
    io: Io, prompts: int, *, samples: int = 16, by: str = "reference", template: str = SPOILED, threshold: float = 0.0,
    component: int = 0,
) -> tuple[Collection, Metrics]:  # fmt: skip
    """Groups of the policy's answers, and of each prompt with a right one a spoiled copy of it, written by somebody else.

    The copies stand in the groups of the answers and take no part in what the policy learns; they are the wrong answers of
    pairs, see `training.modules.made_pairs`.

    Returns: With the metric "spoiled/wrong", the share of the copies that are indeed wrong.
    Source: Cooper, https://arxiv.org/abs/2508.05613
    """
    answers = io.sample(requests_for(*io.draw(prompts), samples=samples))
    groups, right = np.asarray(answers.rollouts.group), _right(answers, component, threshold)
    chosen = {int(groups[row]): row for row in np.flatnonzero(right)[::-1]}
    if not chosen:
        return answers, {"spoiled/wrong": 0.0}
    copies = io.sample([_about(io, answers, row, template, by, group) for group, row in sorted(chosen.items())])
    wrong = ~_right(copies, component, threshold)
    found = _together(answers, copies.changed(valid=np.zeros_like(copies.rollouts.valid)))
    own = np.concatenate([groups, sorted(chosen)]).astype(np.int32)  # those of the answers, which stand together
    return found.changed(group=own), {"spoiled/wrong": float(wrong.mean())}


def _about(io: Io, answers: Collection, row: int, template: str, by: str, group: int):
    """The request to write about an answer."""
    request = under(answers.requests[row], template, io.tokenizer, completion=answers.records[row]["completion"])
    return dataclasses.replace(request, by=by, group=group, samples=1, prefix=None, learned_prompt=None, episode=None)


def _right(collection: Collection, component: int, threshold: float) -> np.ndarray:
    """Whether each row is right, bool [N]; one without that reward is not."""
    values = [record["rewards"][component] for record in collection.records]
    return np.array([value is not None and value > threshold for value in values])


def _says_right(word: str) -> bool:
    return word.strip().lower() in ("+", "1", "yes", "true", "correct", "right")


def _with_rewards(collection: Collection, rewards: np.ndarray) -> Collection:
    """The collection with these numbers as its first reward, and none beside it."""
    whole = np.full(collection.rollouts.rewards.shape, np.nan, np.float32)
    whole[:, 0] = rewards
    records = [record | {"rewards": [float(value)]} for record, value in zip(collection.records, rewards, strict=True)]
    return dataclasses.replace(collection.changed(rewards=whole), records=records)


def _together(own: Collection, others: Collection) -> Collection:
    """All rows, those of others with zeros for what is known of the policy's rows alone."""
    width = own.rollouts.rewards.shape[1]
    rewards = np.full((len(others.records), width), np.nan, np.float32)
    rewards[:, : others.rollouts.rewards.shape[1]] = others.rollouts.rewards
    known = own.rollouts.extras
    zeros = {name: np.zeros((len(others.records), *np.shape(known[name])[1:]), known[name].dtype) for name in known}
    records = [record | {"rewards": (record["rewards"] + [None] * width)[:width]} for record in others.records]
    given = {name: values for name, values in others.rollouts.extras.items() if name in known}
    rollouts = others.rollouts.replace(rewards=rewards, extras=zeros | given)
    return joined([own, dataclasses.replace(others, rollouts=rollouts, records=records)])
