"""A chat with tools: what is called is run and answered, and a turn without a call is the last one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxrl_llm.environments.base import Environment, Example, Transition
from jaxrl_llm.environments.syntaxes import calls_in
from jaxrl_llm.environments.tools import Tool, call, load_tools
from jaxrl_llm.rewards.answers import exact_match, gsm8k, marked_answer
from jaxrl_llm.rewards.worker import call_reward

# One of which stands where the first call begins.
_MARKS = ("<tool_call>", "<|python_tag|>", "```", "to=functions", "{")
REWARDS = {"exact_match": exact_match, "gsm8k": gsm8k, "#": marked_answer("#")}


class Chat(NamedTuple):
    """What a chat is about, and what was called so far."""

    example: dict[str, Any]
    calls: int = 0
    malformed: int = 0
    failed: int = 0


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

    Raises ValueError: a tool or a way of comparison that is unknown.
    """
    if answer not in REWARDS:
        raise ValueError(f"answer is {answer!r}; give one of {sorted(REWARDS)}")
    calls_in("", style)  # refuses a style that is none
    found = load_tools(tools)
    step = functools.partial(_step, tuple(tools), style, REWARDS[answer], cost, malformed)
    return Environment(_begin, step, tools=tuple(each.schema for each in found))


@functools.cache
def _loaded(names: tuple[str, ...]) -> list[Tool]:
    return load_tools(names)


def _begin(example: Example, seed: int) -> tuple[Chat, list[dict[str, Any]]]:
    prompt = example.get("prompt")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt or ())
    if not messages or example.get("answer") is None:
        raise ValueError(f"an example has no 'prompt' or no 'answer', only {sorted(example)}; tool use needs both")
    return Chat({"prompt": prompt, "answer": example["answer"]}), messages


def _step(
    tools: tuple[str, ...], style: str, reward: Callable, cost: float, malformed: float, chat: Chat, text: str
) -> Transition:
    messages, counts = call(_loaded(tools), text, style)
    if not messages:
        columns = {"answer": [chat.example["answer"]]}
        (value,) = call_reward(reward, [chat.example["prompt"]], [text], columns)
        return Transition(chat, reward=float(value or 0.0), done=True, facts=_facts(chat))
    chat = chat._replace(
        calls=chat.calls + counts.calls, malformed=chat.malformed + counts.malformed, failed=chat.failed + counts.failed
    )
    lost = cost * counts.calls + malformed * counts.malformed
    places = [place for place in map(text.find, _MARKS) if place >= 0]
    facts = _facts(chat) | {"calls": counts.calls, "first_call": min(places, default=0)}
    return Transition(chat, messages, reward=-lost, facts=facts)


def _facts(chat: Chat) -> dict[str, int]:
    return {"malformed_calls": chat.malformed, "failed_calls": chat.failed}
