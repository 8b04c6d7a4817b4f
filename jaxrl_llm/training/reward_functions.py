"""The reward functions that a configuration names."""

import functools
import inspect
from collections.abc import Callable, Mapping

import jax
from ml_collections import ConfigDict

from jaxrl_llm import environments, reading, rewards
from jaxrl_llm.compose import near
from jaxrl_llm.data import Tokenizer
from jaxrl_llm.data.dialogues import encode_answer
from jaxrl_llm.environments import Agent, Environment
from jaxrl_llm.networks import Network
from jaxrl_llm.rollouts.asked import OF_RUN
from jaxrl_llm.rollouts.asking import ASKING
from jaxrl_llm.rollouts.requests import POLICY
from jaxrl_llm.training import sections
from jaxrl_llm.training.config import REWARD_MODEL
from jaxrl_llm.training.policies import load_policy
from jaxrl_llm.training.sections import short_name

FACTORIES = rewards.FACTORIES | ASKING


def build_rewards(
    config: ConfigDict, mesh: jax.sharding.Mesh | None = None, given: Mapping[str, Callable] | None = None, folder: str = ""
) -> dict[str, Callable]:
    """Functions of training and evaluation by name, facts among them; a reward model is laid out on the mesh.

    Raises ValueError: a name that neither `given` nor `jaxrl_llm.rewards` has and that cannot be imported, or options for one
      that is given.
    """
    given, options = given or {}, config.rewards.options
    inert = [short_name(name) for name in given if short_name(name) in options]
    if inert:
        raise ValueError(f"config.rewards.options.{inert[0]} would change nothing: the reward is given as a function")
    names = [*config.rewards.names, *filter(None, [config.evaluation.reward]), *config.rewards.facts.values()]
    return {name: given.get(name) or build_reward(name, config, mesh, folder) for name in dict.fromkeys(names)}


def build_reward(name: str, config: ConfigDict, mesh: jax.sharding.Mesh | None = None, folder: str = "") -> Callable:
    """The function of one name; that of "reward_model" is the network in `config.rewards.model`.

    A name with options in `config.rewards.options`, and one of `rewards.FACTORIES`, is a function that makes the reward out of
    them. "max_tokens" is the longest completion of the run unless it is set, "reward" the name of another reward, and a judge
    keeps what it said in the `folder`.

    Raises ValueError: as `load_reward` says, or options that the function does not take.
    """
    if name == REWARD_MODEL:
        return load_reward_model(config.rewards.model, mesh)
    given, short = config.rewards.options.to_dict(), short_name(name)
    if short not in given and name not in FACTORIES:
        return load_reward(name)
    if name in rewards.NAMED:
        raise ValueError(f"config.rewards.options.{name} would change nothing: the reward has no options; leave it out")
    make, options = FACTORIES.get(name) or load_reward(name), dict(given.get(short, {}))
    known = inspect.signature(make).parameters
    if "folder" in known and name in rewards.FACTORIES:
        options.setdefault("folder", folder)
    elif "max_tokens" in known and name in rewards.FACTORIES:
        options.setdefault("max_tokens", config.rl.max_new_tokens)
    if name in rewards.FACTORIES and isinstance(options.get("reward"), str):
        options["reward"] = build_reward(options["reward"], config, mesh, folder)
    try:
        return make(**options)
    except TypeError as error:
        raise ValueError(
            f"config.rewards.options.{short} is {given.get(short, {})}; it takes {sorted(known)}: {error}"
        ) from error


def load_asked(
    functions: Mapping[str, Callable], config: ConfigDict, mesh: jax.sharding.Mesh | None = None
) -> dict[str, tuple[Network, Tokenizer]]:
    """The policies, with parameters and tokenizers, of the folders that rewards and facts ask, see `rollouts.asking`."""
    known = (*OF_RUN, *config.modules)
    folders = {function.asks for function in functions.values() if getattr(function, "asks", POLICY) not in known}
    return {folder: load_policy(folder, dtype=config.network.param_dtype, mesh=mesh) for folder in sorted(folders)}


def build_environment(config: ConfigDict, tokenizer: Tokenizer) -> Environment | Agent | None:
    """The environment, or agent, that the configuration names; None where it names none.

    A function with the option "style", of the calls of tools, is given that of the chat template.

    Raises ValueError: a name that is none of `environments.NAMED` and cannot be imported, or options that it does not take.
    """
    name, options = config.environment.name, config.environment.options.to_dict()
    if not name:
        return None
    if ":" not in name and name not in environments.NAMED:
        known = sorted(environments.NAMED)
        told = f"config.environment.name is {name!r}{near(name, known)}"
        raise ValueError(f"{told}; give 'package.module:function' or one of {known}")
    make = environments.NAMED[name] if ":" not in name else reading.imported(name, "config.environment.name")
    if "style" in inspect.signature(make).parameters and "style" not in options:
        options["style"] = environments.style_of(tokenizer.chat_template or "")
    try:
        found = make(**options)
    except TypeError as error:
        raise ValueError(f"config.environment.options is {options}, which {name!r} does not take: {error}") from error
    if not isinstance(found, Environment | Agent):
        raise ValueError(
            f"config.environment.name is {name!r}, which gives {type(found).__name__}; give an Environment or an Agent"
        )
    _check_players(config, found)
    return found


def _check_players(config: ConfigDict, found: Environment | Agent) -> None:
    """Raises ValueError: settings that would change nothing, or what nobody serves."""
    place, chosen = "config.environment", config.environment
    if isinstance(found, Environment):
        if len(chosen.by) > found.roles:
            raise ValueError(
                f"{place}.by has {len(chosen.by)} names, and {chosen.name!r} has {found.roles} roles; name as many"
            )
        return
    usual = sections.environment()
    inert = [name for name in ("by", "turns", "turn_tokens", "overlap") if chosen[name] != usual[name]]
    if inert:
        raise ValueError(f"{place}.{inert[0]} would change nothing: {chosen.name!r} is an agent and decides it; leave it out")
    if jax.process_count() > 1 or config.rl.in_flight:
        mend = "set config.rl.in_flight to 0" if config.rl.in_flight else "train it on one host"
        raise ValueError(f"{place}.name is {chosen.name!r}: one process serves agents, by parameters that stay; {mend}")


def environment_settings(config: ConfigDict) -> dict:
    """What the configuration says of `rollouts.episodes.Played`."""
    chosen = config.environment
    return {"by": tuple(chosen.by)} | {name: chosen[name] for name in ("turns", "turn_tokens", "overlap")}


def load_reward(name: str) -> Callable:
    """A reward of `jaxrl_llm.rewards`, or the function that "package.module:function" names."""
    if ":" not in name:
        if name not in rewards.NAMED:
            known = sorted([*rewards.NAMED, *FACTORIES, REWARD_MODEL])
            told = f"reward {name!r} is unknown{near(name, known)}"
            raise ValueError(f"{told}; give 'package.module:function' or one of {known}")
        return rewards.NAMED[name]
    return reading.imported(name, "reward")


def load_reward_model(directory: str, mesh: jax.sharding.Mesh | None = None) -> Callable:
    """The reward of the network in any folder that `load_policy` reads, see `rewards.reward_model`.

    Raises ValueError: there is none, or it has no value head of one output.
    """
    network, tokenizer = load_policy(directory, mesh=mesh)
    return rewards.reward_model(network, functools.partial(_encode, tokenizer))


def _encode(tokenizer: Tokenizer, prompt, completion: str) -> list[int]:
    prompt_ids, completion_ids = encode_answer(tokenizer, prompt, completion)
    return prompt_ids + completion_ids
