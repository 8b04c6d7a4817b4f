"""Environments of other packages: Gymnasium's with states as text, games of TextArena, agents of verifiers.

Those of the first two are objects that change. Here a state is what made it, a seed and what was said since; the object of
the last state is kept, and where another one is wanted, it is made anew and played up to there. Noise that they draw from the
module `random` is theirs alone.
"""

import asyncio
import functools
import itertools
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxrl_llm.environments.base import Agent, Environment, Example, Transition

# A place that a rendering marks by a colour, and colours elsewhere.
_MARKED = re.compile(r"\x1b\[\d+m(.)\x1b\[0m", re.DOTALL)
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
MOST_KEPT = 64  # objects in a worker


class Past(NamedTuple):
    """A state: the seed, and what was said in each turn."""

    seed: int
    said: tuple[str, ...] = ()


class _Live(NamedTuple):
    """An object, and the state of the module `random` that goes with it."""

    world: Any
    noise: Any


_kept: dict[tuple, _Live] = {}


def _at(key: tuple, past: Past, begin: Callable[[int], Any], move: Callable[[Any, str], Any]) -> _Live:
    """The object in a state: as it was kept, or played up to there. It is not kept any more."""
    found = _kept.pop((*key, past), None)
    if found is not None:
        return found
    found = _alone(None, lambda: begin(past.seed))
    for text in past.said:
        found = _alone(found.noise, functools.partial(_moved, move, found.world, text))
    return found


def _moved(move: Callable, world: Any, text: str) -> Any:
    move(world, text)
    return world


def _alone(noise: Any, act: Callable[[], Any]) -> _Live:
    """What `act` gives, with the module `random` in that state, which others find as it was."""
    before = random.getstate()
    try:
        if noise is not None:
            random.setstate(noise)
        return _Live(act(), random.getstate())
    finally:
        random.setstate(before)


def _keep(key: tuple, past: Past, live: _Live) -> None:
    while len(_kept) >= MOST_KEPT:
        _kept.pop(next(iter(_kept)))
    _kept[(*key, past)] = live


def gymnasium(name: str, actions: Sequence[str] = (), **options: Any) -> Environment:
    """An environment of Gymnasium (https://gymnasium.farama.org) with discrete actions; what it renders as text is read.

    Args:
      name: as `gymnasium.make` knows it, such as "FrozenLake-v1"; one that does not render as "ansi" has its number told.
      actions: a word for each action; the last of them in a turn is taken. By default their numbers.
      **options: of `gymnasium.make`.

    Raises ValueError: the package is missing, there is no such environment, or other numbers of actions.
    """
    made = _gymnasium(name, options, 0)
    count = getattr(made.action_space, "n", None)
    if count is None or (actions and len(actions) != count):
        raise ValueError(f"{name} has the actions {made.action_space}; the adapter is for discrete ones, with a word for each")
    words = tuple(actions) or tuple(map(str, range(count)))
    key = ("gymnasium", name, tuple(sorted(options.items())))
    return Environment(
        functools.partial(_begin_gymnasium, key, name, options), functools.partial(_step_gymnasium, key, name, options, words)
    )


def _gymnasium(name: str, options: dict, seed: int):
    try:
        import gymnasium as package
    except ImportError as error:
        raise ValueError("the environment 'gymnasium' needs a package: pip install 'jaxrl_llm[environments]'") from error
    try:
        try:
            made = package.make(name, render_mode="ansi", **options)
        except (TypeError, ValueError, AssertionError):
            made = package.make(name, **options)
        made.reset(seed=seed)
    except package.error.Error as error:
        raise ValueError(f"gymnasium.make({name!r}): {error}") from error
    return made


def _shown(made) -> str:
    text = made.render() if made.render_mode == "ansi" else None
    if not isinstance(text, str):
        return str(getattr(made.unwrapped, "s", ""))
    return _COLOUR.sub("", _MARKED.sub(r"[\1]", text)).strip()


def _begin_gymnasium(key: tuple, name: str, options: dict, example: Example, seed: int) -> tuple[Past, str]:
    past, live = Past(seed), _alone(None, lambda: _gymnasium(name, options, seed))
    _keep(key, past, live)
    return past, f"{_shown(live.world)}\n> "


def _step_gymnasium(key: tuple, name: str, options: dict, words: tuple[str, ...], past: Past, text: str) -> Transition:
    places = {word: text.rfind(word) for word in words if word in text}
    if not places:
        return Transition(past, f"\nsay one of {', '.join(words)}\n> ", facts={"illegal": 1})
    action = words.index(max(places, key=places.get))
    live = _at(key, past, functools.partial(_gymnasium, name, options), lambda made, said: made.step(int(said)))
    found: list = []
    live = _alone(live.noise, lambda: (found.append(live.world.step(action)), live.world)[1])
    _, reward, ended, cut, _ = found[0]
    past = past._replace(said=(*past.said, str(action)))
    shown = _shown(live.world)
    _keep(key, past, live)
    return Transition(past, f"\n{shown}\n> ", float(reward), ended or cut, {"illegal": 0, "state": shown})


def textarena(name: str, roles: int = 1, **options: Any) -> Environment:
    """A game of TextArena (https://www.textarena.ai): each role reads what is new to it, and their rewards are the outcome.

    Args:
      name: as `textarena.make` knows it, such as "GuessTheNumber-v0" or "TicTacToe-v0".
      roles: players.
      **options: of `textarena.make`.

    Raises ValueError: the package is missing, or there is no such game for so many.
    """
    try:
        _textarena(name, roles, options, 0)
    except ImportError as error:
        raise ValueError(
            f"the environment 'textarena' needs a package: {error}; pip install 'jaxrl_llm[environments]'"
        ) from error
    except Exception as error:  # whatever a game raises that is not played like this
        raise ValueError(f"textarena.make({name!r}) for {roles} players: {type(error).__name__}: {error}") from error
    key = ("textarena", name, roles, tuple(sorted(options.items())))
    begin = functools.partial(_begin_textarena, key, name, roles, options)
    return Environment(begin, functools.partial(_step_textarena, key, name, roles, options), roles=roles)


def _textarena(name: str, roles: int, options: dict, seed: int):
    import textarena as package

    made = package.make(name if name.endswith("-raw") else f"{name}-raw", **options)
    made.reset(num_players=roles, seed=seed)
    return made


def _read(made) -> tuple[int, str]:
    """Who speaks, and what he has not read yet, without his own words."""
    role, messages = made.get_observation()
    own = [text for sender, text, *_ in messages if sender != role]
    return int(role), "\n".join(own)


def _play(made, text: str):
    """A move, behind which everybody has read what he reads before his next."""
    done, _ = made.step(action=text)
    return done, (0, "") if done else _read(made)


def _begin_textarena(key: tuple, name: str, roles: int, options: dict, example: Example, seed: int) -> tuple[Past, str, int]:
    past, found = Past(seed), []
    live = _alone(None, lambda: _opened(name, roles, options, found, seed))
    _keep(key, past, live)
    role, text = found[0]
    return past, f"{text}\n> ", role


def _opened(name: str, roles: int, options: dict, found: list, seed: int):
    made = _textarena(name, roles, options, seed)
    found.append(_read(made))
    return made


def _step_textarena(key: tuple, name: str, roles: int, options: dict, past: Past, text: str) -> Transition:
    found: list = []
    live = _at(key, past, lambda seed: _opened(name, roles, options, [], seed), _play)
    live = _alone(live.noise, lambda: (found.append(_play(live.world, text)), live.world)[1])
    past = past._replace(said=(*past.said, text))
    done, (role, told) = found[0]
    if not done:
        _keep(key, past, live)
        return Transition(past, f"\n{told}\n> ", role=role)
    rewards, _ = live.world.close()
    return Transition(past, done=True, outcome=[float((rewards or {}).get(own, 0.0)) for own in range(roles)])


def verifiers(name: str, taskset: Mapping[str, Any] | None = None, **environment: Any) -> Agent:
    """An environment of verifiers (https://github.com/PrimeIntellect-ai/verifiers), whose agents ask the run's server.

    An example names its task: by the column "number", as those of the source "numbered" do, its place among the taskset's.
    The rewards of the agents' traces are added up, and their metrics are facts. Nothing is replayed: an episode is a value of
    what the server sampled for it.

    Args:
      name: of an installed taskset, as verifiers knows it.
      taskset: fields of its configuration.
      **environment: fields of the environment's; where an agent of it does not say otherwise, it is the harness "null", a
        chat with the tools of the task, in a process of this machine, which `uv` starts.

    Raises ValueError: the package is missing, or it has no such environment or fields.
    """
    told = json.dumps(environment | {"taskset": {"id": name, **(taskset or {})}})
    _verifiers(told)
    return Agent(functools.partial(_ask_verifiers, told))


@functools.cache
def _verifiers(told: str):
    try:
        from verifiers.v1.configs.agent import agent_config_fields
        from verifiers.v1.utils import loaders
    except ImportError as error:
        mend = "pip install 'jaxrl_llm[verifiers]' into an environment with openai<3, which it asks for"
        raise ValueError(f"the environment 'verifiers' needs a package: {error}; {mend}") from error
    config = json.loads(told)
    usual = {"harness": {"id": "null"}, "runtime": {"type": "subprocess"}}
    try:
        kind = loaders.env_config_type(config["taskset"]["id"], config.get("id", ""))
        agents = {name: usual | config.get(name, {}) for name in agent_config_fields(kind())}
        return loaders.load_environment(loaders.resolve_env_config(config | agents))
    except Exception as error:  # whatever a plugin of theirs raises
        raise ValueError(f"verifiers has no environment {config}: {type(error).__name__}: {error}") from error


def _ask_verifiers(told: str, address: str, example: Example) -> tuple[float, dict[str, float]]:
    from verifiers.v1.clients import EvalClientConfig, ModelContext

    made = _verifiers(told)
    task = next(itertools.islice(made.taskset, int(example["number"]), None), None)
    if task is None:
        raise ValueError(f"the taskset {made.taskset.config.id!r} has no task {example['number']}; give fewer examples")

    async def play():
        context = ModelContext("policy", EvalClientConfig(base_url=address, api_key_var="JAXRL_LLM_TOKEN"))
        async with made.serving():
            return await made.run_episode(task, context)

    episode = asyncio.run(play())
    if not episode.ok:
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        raise ValueError(f"an episode of verifiers failed: {errors[0].type}: {errors[0].message}" if errors else "it failed")
    metrics = {name: float(value) for trace in episode.traces for name, value in trace.metrics.items() if value is not None}
    return sum(trace.reward for trace in episode.traces), metrics
