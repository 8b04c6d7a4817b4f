"""The methods that a configuration names, what each phase can give a method, and the refusal of those that need more."""

import dataclasses
import inspect
from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from jaxrl_llm import methods, rollouts
from jaxrl_llm.compose import Composable, keyword_defaults, require
from jaxrl_llm.data import PAIR
from jaxrl_llm.rollouts import choosing, forks
from jaxrl_llm.rollouts.asking import ASKING
from jaxrl_llm.training.critics import with_settings
from jaxrl_llm.types import ROWS_OF, Rollouts

# What a strategy asks for that has the reference policy, or the teacher, answer or score.
SAMPLES = frozenset({"reference_samples", "teacher_samples"})
# Whose statistics an annotation may be: "proximal_logp", "reference_candidate_logp", "teacher_entropy"...
POLICIES = ("proximal", "reference", "teacher")
GOLD_TEXTS, MISMATCHED, REVISES = "rows_of_gold_texts", "mismatched_ratio", "revises"
# What the loop itself adds to rollouts, by what a method learns from: from samples, answers, a critic, and pairs.
GIVEN = {
    "samples": frozenset({"behavior_logp", "answer", "candidates", "behavior_entropy"})
    | {f"{who}_{statistic}" for who in ("behavior", "target") for statistic in ("value", "value_outputs")},
    "pairs": frozenset({"preference", "margin", "candidates", GOLD_TEXTS, MISMATCHED}),
    "completions": frozenset({"candidates"}),
}
# In the preference phase each batch makes one update, so that the policy before it is the one that trains.
_ABSENT = {"pairs": ("proximal_",), "completions": ("reference_",)}


def reinforcement_method(config: ConfigDict) -> methods.Method:
    """The method of the RL phase, with the critic and the strategy that the configuration gives it.

    Raises ValueError: what `method_options`, `critics.with_settings` and `strategy_of` refuse.
    """
    method = with_settings(methods.get(config.method.name, **method_options(config)), config.critic)
    method = dataclasses.replace(method, beside=frozenset(f"{who}_samples" for who in asked_policies(config)) & SAMPLES)
    if config.method.strategy:
        return dataclasses.replace(method, strategy=strategy_of(config, method))
    if config.method.strategy_options:
        raise ValueError("config.method.strategy_options would change nothing: config.method.strategy is ''; set it")
    return method


def asked_policies(config: ConfigDict) -> set[str]:
    """Whom rewards, facts and roles of the configuration ask: policies of the run, or folders, see `rollouts.asking`."""
    names = {*config.rewards.names, config.evaluation.reward, *config.rewards.facts.values()} & ASKING.keys()
    usual = {name: {key: own.default for key, own in inspect.signature(ASKING[name]).parameters.items()} for name in names}
    told = [usual[name] | dict(config.rewards.options.get(name, {})) for name in names]
    asked = {own[key] for own in told for key in ("by", "against") if own.get(key)} - {"difference", "ratio"}
    return asked | set(config.environment.by)


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


def refuse_missing(method: methods.Method, facts: Collection[str] = ()) -> None:
    """Refuses a method whose inputs nobody gives, rather than run it as another one; `facts` are names that a run has.

    Raises ValueError: the method needs something that its phase cannot make; the message names it.
    """
    material = method.learns_from
    policies = tuple(f"{who}_" for who in POLICIES if f"{who}_" not in _ABSENT.get(material, ()))
    own = {name for name in method.needs if name.startswith(policies)}
    foreign = sorted(method.needs - GIVEN[material] - own - method.objective.needs - set(facts))
    if foreign:
        field = foreign[0].startswith(ROWS_OF) or foreign[0] in Rollouts.__dataclass_fields__
        place = "the rollouts" if field else "the rollouts' extras"
        given = material == "samples" and not foreign[0].startswith(ROWS_OF)
        mend = f"name a function that does in config.rewards.facts.{foreign[0]}" if given else "fill it in a loop of your own"
        mend = "set config.task.revision" if foreign[0] == REVISES else mend
        raise ValueError(
            f"{method.name!r} needs {foreign[0]!r} in {place}, which this loop cannot make from {material}; "
            f"{mend}, or choose another method"
        )


def texts_of(method: methods.Method) -> tuple[str, ...]:
    """Texts that each example must have for a method of the preference phase: both of a pair, and perhaps a gold one."""
    pair = () if method.takes_single_answers else PAIR
    return pair + (("gold",) if GOLD_TEXTS in method.needs else ())
