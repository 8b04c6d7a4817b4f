"""`Environment`: what a policy talks with over several turns, as functions of values.

Importing this loads no JAX: environments run in the worker processes of the reward pool.
"""

import base64
import dataclasses
import functools
import json
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxrl_llm.rewards.worker import LARGEST_REWARD, shorten

Example = Mapping[str, Any]
# A text that stands behind the policy's as it is, or messages of a chat, which the template writes.
Reply = str | Sequence[Mapping[str, Any]]


class Transition(NamedTuple):
    """What an environment answers to a turn."""

    state: Any  # a value: whoever copies it may go on from it twice, and a pickle of it is the whole state
    # What is read by whoever speaks next; where that role has not spoken yet, it is its prompt. Nobody reads that of the last.
    reply: Reply = ""
    reward: float = 0.0  # of the turn
    done: bool = False  # whether the episode is over
    # Numbers by name of what happened, which become facts of the row, see `rollouts.episodes`; "state" may be any text that
    # says what the policy has seen, "calls" counts tool calls, "first_call" is the character at which the first one begins.
    facts: Mapping[str, float | int | str] = {}
    role: int = 0  # who speaks next
    outcome: Sequence[float] = ()  # at the end of a game, what each role gets beside the rewards of its turns


@dataclasses.dataclass(frozen=True)
class Environment:
    """A pair of functions of values, as modules have them: a closure runs in a thread, which nobody can kill."""

    # `reset(example, seed) -> (state, prompt)` or `(state, prompt, role)`: the beginning for an example of the task; the prompt
    # is a text or messages, None for the example's own. Equal arguments give equal states, and noise of later turns is drawn
    # from the state.
    reset: Callable[[Example, int], tuple]
    step: Callable[[Any, str], Transition]  # `step(state, text) -> Transition`, what was said in the turn
    tools: tuple[Mapping[str, Any], ...] = ()  # schemas that the template is given
    stop: tuple[str, ...] = ()  # texts that end a turn, beside the end of the message
    roles: int = 1  # how many there are, each with a row of its own, of what it alone has read and said


@dataclasses.dataclass(frozen=True)
class Agent:
    """Somebody who asks a server for answers as any client of OpenAI's does, and knows nothing of training."""

    # `run(address, example) -> reward`, or `(reward, facts)`: the address is the `base_url` of clients, the model "policy"
    run: Callable[[str, Example], Any]


def resetting(environment: Environment) -> Callable[..., list[str]]:
    """`Environment.reset` as the reward pool calls it, for `worker.Told`, with the columns "example" and "seed"."""
    return _rowwise(_reset, environment)


def stepping(environment: Environment) -> Callable[..., list[str]]:
    """`Environment.step` as the reward pool calls it, for `worker.Told`, with completions and the column "state"."""
    return _rowwise(_step, environment)


def running(agent: Agent) -> Callable[..., list[str]]:
    """`Agent.run` as the reward pool calls it, for `worker.Told`, with the columns "address" and "example"."""
    found = _rowwise(_run, agent)
    found.row_seconds = math.inf  # an agent has the deadline of all
    return found


def _rowwise(function: Callable, whom: Environment | Agent) -> Callable[..., list[str]]:
    found = functools.partial(function, whom)
    found.rowwise = True
    return found


def _reset(environment: Environment, /, example: Sequence[Example], seed: Sequence[int]) -> list[str]:
    begun = [environment.reset(*arguments) for arguments in zip(example, seed, strict=True)]
    return [_written(Transition(state, prompt, role=sum(role))) for state, prompt, *role in begun]


def _step(environment: Environment, /, completions: Sequence[str], state: Sequence[bytes]) -> list[str]:
    pairs = zip(state, completions, strict=True)
    return [_written(Transition(*environment.step(pickle.loads(own), said))) for own, said in pairs]


def _run(agent: Agent, /, address: Sequence[str], example: Sequence[Example]) -> list[str]:
    found = [agent.run(*arguments) for arguments in zip(address, example, strict=True)]
    pairs = [own if isinstance(own, tuple) else (own, {}) for own in found]
    return [_written(Transition(None, reward=reward, done=True, facts=facts)) for reward, facts in pairs]


def _written(found: Transition) -> str:
    told = check_transition(found)._replace(state=base64.b64encode(pickle.dumps(found.state)).decode())
    return json.dumps(told)


def read_transition(text: str) -> Transition:
    """The transition that a worker wrote, its state as bytes, which nobody but a worker reads.

    Raises ValueError: it is none.
    """
    try:
        found = Transition(*json.loads(text))
        return check_transition(found)._replace(state=base64.b64decode(found.state, validate=True))
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no transition of an environment: {shorten(text)[:80]}") from error


def check_transition(found: Transition) -> Transition:
    """The same with plain values.

    Raises ValueError: a field that an environment cannot answer with; the message names it.
    """
    reply = found.reply
    if not (isinstance(reply, str) or reply is None):
        if not (isinstance(reply, Sequence) and all(isinstance(message, Mapping) for message in reply)):
            raise ValueError(f"Transition.reply is {shorten(repr(reply))[:80]}; give a text, or a list of messages")
        reply = list(map(dict, reply))
    rewards = [float(reward) for reward in (found.reward, *found.outcome)]
    for reward in rewards:
        if not (math.isfinite(reward) and abs(reward) <= LARGEST_REWARD):
            raise ValueError(f"a reward of a Transition is {reward}; rewards are finite and lie within +-{LARGEST_REWARD:g}")
    facts = {str(name): _fact(name, value) for name, value in dict(found.facts).items()}
    return Transition(found.state, reply, rewards[0], bool(found.done), facts, int(found.role), rewards[1:])


def _fact(name: str, value: Any) -> float | int | str:
    plain = value.item() if hasattr(value, "item") else value
    plain = int(plain) if isinstance(plain, bool) else plain
    if name == "state" or (isinstance(plain, int | float) and abs(plain) <= LARGEST_REWARD):
        return str(plain) if name == "state" else plain
    raise ValueError(f"Transition.facts[{name!r}] is {value!r}; give a number within +-{LARGEST_REWARD:g}")
