"""The methods that a configuration names for its phases."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from jaxrl_llm import methods, rollouts
from jaxrl_llm.compose import Composable, keyword_defaults, require
from jaxrl_llm.rollouts import choosing, forks
from jaxrl_llm.training.critics import with_settings


def reinforcement_method(config: ConfigDict) -> methods.Method:
    """The method of the RL phase, with the critic and the strategy that the configuration gives it.

    Raises ValueError: what `method_options`, `critics.with_settings` and `strategy_of` refuse.
    """
    method = with_settings(methods.get(config.method.name, **method_options(config)), config.critic)
    if config.method.strategy:
        return dataclasses.replace(method, strategy=strategy_of(config, method))
    if config.method.strategy_options:
        raise ValueError("config.method.strategy_options would change nothing: config.method.strategy is ''; set it")
    return method


def strategy_of(config: ConfigDict, method: methods.Method) -> rollouts.Strategy:
    """The strategy of `config.method.strategy`, a name of `jaxrl_llm.rollouts`; without `samples` of its own with the method's.

    An option that is a rule, of `rollouts.choosing` or `rollouts.forks`, is given by its name and options, {"knapsack":
    {"most": 32}}.

    Raises ValueError: there is no such strategy, rule or option, or the method needs what only its own strategy provides.
    """
    name, place = config.method.strategy, "config.method.strategy"
    make = getattr(rollouts, name, None)
    options = {key: _rule(f"{place}_options.{key}", value) for key, value in config.method.strategy_options.to_dict().items()}
    usual = {"samples": method.strategy.options["samples"]} | of_run(config)
    if not hasattr(make, "function"):
        raise ValueError(f"{place} is {name!r}, which is no strategy of jaxrl_llm.rollouts")
    known = keyword_defaults(make.function)
    try:
        strategy = make(**({key: value for key, value in usual.items() if key in known} | options))
    except TypeError as error:
        raise ValueError(f"{place} is {name!r}: {error}; set config.method.strategy_options") from error
    if not isinstance(strategy, rollouts.Strategy):
        raise ValueError(f"{place} is {name!r}, which is no strategy of jaxrl_llm.rollouts")
    if lost := sorted(method.strategy.provides - strategy.provides):
        raise ValueError(f"{place} is {name!r}, which does not provide {lost[0]!r}, and {method.name!r} needs it")
    return strategy


def _rule(place: str, value: Any) -> Any:
    """A rule out of its name and options; anything else as it is, lists as tuples."""
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError(f"{place} is {value}; give one rule with its options, such as {{'knapsack': {{}}}}")
    ((name, options),) = value.items()
    make = getattr(choosing, name, None) or getattr(forks, name, None)
    found = make(**options) if callable(make) and hasattr(make, "function") else None
    if not isinstance(found, Composable):
        raise ValueError(f"{place} is {value}; there is no rule {name!r} in rollouts.choosing or rollouts.forks")
    return found


def preference_method(config: ConfigDict) -> methods.Method:
    """The method of the preference phase.

    Raises ValueError: it does not exist, does not have an option, or does not learn from pairs.
    """
    return _method_from("preference", config, "pairs")


def supervised_method(config: ConfigDict) -> methods.Method:
    """The method of the supervised phase.

    Raises ValueError: it does not exist, does not have an option, or does not learn from completions.
    """
    return _method_from("sft", config, "completions")


def _method_from(section: str, config: ConfigDict, material: str) -> methods.Method:
    chosen = config[section]
    method = methods.get(chosen.method, **chosen.options.to_dict())
    if method.learns_from != material:
        known = [name for name in methods.names() if methods.get(name).learns_from == material]
        fault = f"config.{section}.method is {method.name!r}, which learns from {method.learns_from}"
        raise ValueError(f"{fault}; take one of {known}")
    return method


def method_options(config: ConfigDict) -> dict:
    """Options of the method of the RL phase; where it has a `max_length` that is not set, the longest completion of the run.

    A `row_width` is that of the rollouts, `components` the number of rewards.

    Raises ValueError: the method does not exist, or does not have an option.
    """
    named = methods.get(config.method.name)
    if named.learns_from != "samples":
        phase = {"completions": "sft", "pairs": "preference"}[named.learns_from]
        raise ValueError(
            f"config.method.name is {named.name!r}, which samples nothing; set config.{phase}.steps and config.rl.steps=0"
        )
    options = dict(config.method.options.items())
    options = {name: value for name, value in of_run(config).items() if name in methods.options_of(named.name)} | options
    try:
        method = methods.get(config.method.name, **options)
    except ValueError as error:
        hint = "config.method.options come from the file; --config.method.options='{}' drops them all"
        raise ValueError(f"{error} ({hint})") from error
    samples = method.strategy.options["samples"]
    require(isinstance(samples, int) and samples >= 1, "config.method.options.samples", samples, "an integer of at least 1")
    return options


def of_run(config: ConfigDict) -> dict[str, int]:
    """Options that follow from the rest of the configuration, wherever they are not set."""
    width = config.task.max_prompt_tokens + config.rl.max_new_tokens
    return {"max_length": config.rl.max_new_tokens, "row_width": width, "components": len(config.rewards.names)}
