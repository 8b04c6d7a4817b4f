"""A chat with tools: what is called is run and answered, and a turn without a call is the last one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxrl_llm.environments.base import Environment, Example, Transition
from jaxrl_llm.environments.syntaxes import answer_in, calls_in, first_call
from jaxrl_llm.environments.tools import Tool, call, load_tools
from jaxrl_llm.rewards.answers import exact_match, gsm8k, marked_answer
from jaxrl_llm.rewards.worker import call_reward

ANSWERS = {"exact_match": exact_match, "gsm8k": gsm8k, "#": marked_answer("#")}


class Chat(NamedTuple):
    """What a chat is about, and what was called so far."""

    example: dict[str, Any]
    malformed: int = 0
    failed: int = 0


class Terms(NamedTuple):
    """How turns are read and rewarded."""

    style: str
    answer: Callable
    cost: float
    malformed: float


def tool_use(
    tools: Sequence[str] = ("calculator",), style: str = "hermes", answer: str = "gsm8k", cost: float = 0.0,
    malformed: float = 0.0,
) -> Environment:  # fmt: skip
    """The prompt of the example, as a chat with tools, until a turn calls none: its text is rewarded by the example's "answer".

    Args:
      tools: names, see `tools.load_tools`.
      style: in which the template has calls written, see `syntaxes`; a run takes that of its chat template.
      answer: how the last turn is compared with it: "gsm8k" by the final number, "exact_match", or "#" by what is behind a "#".
      cost: taken off the reward for each call.
      malformed: taken off for each call that cannot be understood.

    Raises ValueError: a tool, a style or a way of comparison that is unknown.
    """
    names = tuple(tools)
    schemas = [each.schema for each in _loaded(names)]
    return chat_with(functools.partial(_named, names), schemas, terms_of(style, answer, cost, malformed))


def terms_of(style: str, answer: str, cost: float, malformed: float) -> Terms:
    """The terms of these options.

    Raises ValueError: a style or a way of comparison that is unknown.
    """
    if answer not in ANSWERS:
        raise ValueError(f"answer is {answer!r}; give one of {sorted(ANSWERS)}")
    calls_in("", style)  # refuses a style that is none
    return Terms(style, ANSWERS[answer], cost, malformed)


def chat_with(
    make: Callable[[Example], Sequence[Tool]], schemas: Sequence[dict], terms: Terms, columns: Sequence[str] = ()
) -> Environment:
    """A chat with tools that may depend on the example.

    Args:
      make: the tools of an example, a function of a module.
      schemas: of the tools, the same for all examples.
      terms: see `terms_of`.
      columns: of the example that `make` looks at.
    """
    begin = functools.partial(_begin, tuple(columns))
    return Environment(begin, functools.partial(_step, make, terms), tools=tuple(schemas))


@functools.cache
def _loaded(names: tuple[str, ...]) -> list[Tool]:
    return load_tools(names)


def _named(names: tuple[str, ...], example: Example) -> list[Tool]:
    return _loaded(names)


def _begin(columns: tuple[str, ...], example: Example, seed: int) -> tuple[Chat, list[dict[str, Any]]]:
    missing = [name for name in ("prompt", "answer", *columns) if not example.get(name) and example.get(name) != 0]
    if missing:
        raise ValueError(f"an example has no {missing[0]!r}, only {sorted(example)}; the environment asks for it")
    prompt = example["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return Chat({name: example[name] for name in ("prompt", "answer", *columns)}), messages


def _step(make: Callable[[Example], Sequence[Tool]], terms: Terms, chat: Chat, text: str) -> Transition:
    messages, counts = call(make(chat.example), text, terms.style)
    if not messages:
        columns = {"answer": [chat.example["answer"]]}
        said = answer_in(text, terms.style)
        (value,) = call_reward(terms.answer, [chat.example["prompt"]], [said], columns)
        return Transition(chat, reward=float(value or 0.0), done=True, facts=_facts(chat))
    chat = chat._replace(malformed=chat.malformed + counts.malformed, failed=chat.failed + counts.failed)
    lost = terms.cost * counts.calls + terms.malformed * counts.malformed
    facts = _facts(chat) | {"calls": counts.calls, "first_call": first_call(text, terms.style)}
    return Transition(chat, messages, reward=-lost, facts=facts)


def _facts(chat: Chat) -> dict[str, int]:
    return {"malformed_calls": chat.malformed, "failed_calls": chat.failed}
