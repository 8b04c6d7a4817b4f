"""Roles round other environments and tasks: one advises and another acts; one solves, one criticises, one scores."""

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxrl_llm import reading
from jaxrl_llm.environments.base import Environment, Example, Transition

ADVICE, ACTION = "{observation}\nSay how to go on: ", "{observation}\nAdvice: {advice}\nDo: "


class Advised(NamedTuple):
    """What the inner environment is at, what it showed, and the advice that was given for it."""

    inner: Any
    observation: str
    advice: str | None = None
    total: float = 0.0  # rewards of the actor so far


def advised(inner: str, options: Mapping[str, Any] | None = None, advice: str = ADVICE, action: str = ACTION) -> Environment:
    """Two roles in an environment of one: role 0 reads what it shows and advises, role 1 reads both and acts.

    A turn of the actor has the inner reward, and at the end the adviser gets their sum. Strategies, subgoals, hints and lists
    of candidates are advice. `config.environment.by` says who is trained: ("policy", "reference") an adviser before a frozen
    actor (EPO, https://arxiv.org/abs/2502.12486), ("reference", "policy") an actor that chooses among a frozen model's
    candidates (https://arxiv.org/abs/2310.18940), nothing both (VSC-RL, https://arxiv.org/abs/2502.07949). Turns of both count.

    Args:
      inner: a name of `jaxrl_llm.environments`, or "package.module:function", of an environment that replies with texts.
      options: of it.
      advice: what the adviser reads, with {observation}.
      action: what the actor reads, with {observation} and {advice}.

    Raises ValueError: there is no such environment, or it has several roles.
    """
    told = dict(options or {})
    made = _inner(inner, tuple(told.items()))
    if made.roles != 1:
        raise ValueError(f"inner is {inner!r}, which has {made.roles} roles; give an environment of one")
    whole = inner, tuple(told.items()), advice, action
    return Environment(functools.partial(_begin_advised, *whole), functools.partial(_step_advised, *whole), roles=2)


@functools.cache
def _inner(name: str, options: tuple) -> Environment:
    from jaxrl_llm import environments

    if ":" not in name and name not in environments.NAMED:
        raise ValueError(f"inner is {name!r}; give 'package.module:function' or one of {sorted(environments.NAMED)}")
    make = reading.imported(name, "inner") if ":" in name else environments.NAMED[name]
    found = make(**dict(options))
    if not isinstance(found, Environment):
        raise ValueError(f"inner is {name!r}, which gives {type(found).__name__}; give an Environment")
    return found


def _text(reply: Any) -> str:
    if not isinstance(reply, str):
        raise ValueError(
            f"the inner environment replies {reply!r:.80}; roles are laid round environments that reply with texts"
        )
    return reply


def _begin_advised(inner, options, advice: str, action: str, example: Example, seed: int) -> tuple[Advised, str]:
    state, prompt, *_ = _inner(inner, options).reset(example, seed)
    observation = _text(example["prompt"] if prompt is None else prompt)
    return Advised(state, observation), advice.format(observation=observation)


def _step_advised(inner, options, advice: str, action: str, state: Advised, text: str) -> Transition:
    if state.advice is None:
        told = action.format(observation=state.observation, advice=text.strip())
        return Transition(state._replace(advice=text.strip()), told, role=1)
    found = Transition(*_inner(inner, options).step(state.inner, text))
    total = state.total + found.reward
    after = Advised(found.state, _text(found.reply), None, total)
    told = advice.format(observation=after.observation)
    outcome = (total, 0.0) if found.done else ()
    return Transition(after, told, found.reward, found.done, found.facts, role=0, outcome=outcome)


SOLVE = "{prompt}\nSolution: "
EVALUATE = "{prompt}\nSolution: {solution}\nWhat is wrong with it? "
SCORE = "{prompt}\nSolution: {solution}\nCriticism: {evaluation}\nScore the solution from 1 (wrong) to 3 (right). Score: "


class Discussed(NamedTuple):
    """The task, and what has been said about it."""

    prompt: str
    solution: str | None = None
    evaluation: str | None = None


def discussion(
    solve: str = SOLVE, evaluate: str = EVALUATE, score: str = SCORE, pattern: str = r"([123])(?!.*[123])"
) -> Environment:
    """Three roles on a task: role 0 solves it, role 1 criticises the solution, and role 2 scores it with 1, 2 or 3.

    A score of s gives the solver (s - 1) / 2 and the critic the rest to 1; a scorer that says no score gets -1, and the others
    0. No verifier is asked.

    Args:
      solve: what the solver reads, with {prompt}.
      evaluate: what the critic reads, with {prompt} and {solution}.
      score: what the scorer reads, with {evaluation} too.
      pattern: regular expression, whose first group is the score.

    Source: CoMAS, https://arxiv.org/abs/2510.08529, with one round
    """
    steps = functools.partial(_discuss, evaluate, score, re.compile(pattern, re.DOTALL))
    return Environment(functools.partial(_begin_discussion, solve), steps, roles=3)


def _begin_discussion(solve: str, example: Example, seed: int) -> tuple[Discussed, str]:
    prompt = example["prompt"]
    prompt = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    return Discussed(prompt), solve.format(prompt=prompt)


def _discuss(evaluate: str, score: str, pattern: re.Pattern, state: Discussed, text: str) -> Transition:
    if state.solution is None:
        state = state._replace(solution=text.strip())
        return Transition(state, evaluate.format(**state._asdict()), role=1)
    if state.evaluation is None:
        state = state._replace(evaluation=text.strip())
        return Transition(state, score.format(**state._asdict()), role=2)
    found = pattern.search(text)
    share = None if found is None else (int(found.group(1)) - 1) / 2
    outcome = (0.0, 0.0, -1.0) if share is None else (share, 1.0 - share, 0.0)
    return Transition(state, done=True, outcome=outcome)
