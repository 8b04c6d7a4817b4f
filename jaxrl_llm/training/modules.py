"""Networks that a run trains beside its policy: a second player, a verifier, a reward model. Each is a run of its own within.

A module is what the configuration says under its name in `config.modules`. To whatever trains it, it is the policy of a run:
the same configuration with another method, optimizer and network (`module_config`).
"""

import copy
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxrl_llm import methods, reading
from jaxrl_llm.compose import require
from jaxrl_llm.rollouts.episodes import GIVEN_BY_EPISODES
from jaxrl_llm.rollouts.requests import GIVEN, POLICY, Example
from jaxrl_llm.training import methods_of, sections

# Names that mean somebody else.
_TAKEN = (POLICY, GIVEN, "critic", *methods_of.POLICIES)
_CHECKS = {
    "directory": reading.text,
    "method": reading.text,
    "options": reading.mapping(),
    "optimizer": reading.mapping(),
    "every": reading.whole(1),
    "first": reading.whole(0),
    "reward": reading.text,
}


def settings_of(config: ConfigDict, name: str) -> dict[str, Any]:
    """The section of a module, whole.

    Raises ValueError: an unknown key, or a value that it cannot have.
    """
    place, given = f"config.modules.{name}", config.modules[name]
    given = given.to_dict() if isinstance(given, ConfigDict) else reading.mapping()(given, place)
    known = sections.module()
    for key, value in given.items():
        require(key in known, f"a key of {place}", key, f"one of {sorted(known)}")
        _CHECKS[key](value, f"{place}.{key}")
    return known | given


def learns_from_pairs(config: ConfigDict, name: str) -> bool:
    """Whether a module learns from pairs of the policy's answers, as a reward model does, rather than from its own."""
    return methods.get(settings_of(config, name)["method"]).learns_from == "pairs"


def module_config(config: ConfigDict, name: str) -> ConfigDict:
    """The configuration of a run whose policy the module is; `rl` is the section of its learning, or `preference`."""
    chosen, own, usual = settings_of(config, name), copy.deepcopy(config), sections
    pairs = learns_from_pairs(config, name)
    with own.unlocked():
        own.modules = ConfigDict()
        own.critic = ConfigDict(usual.critic())
        own.method = ConfigDict({"name": "grpo", "options": {}, "strategy": "", "strategy_options": {}})
        own.sft.steps, own.preference.steps = 0, config.rl.steps if pairs else 0
        own.rl.steps = 0 if pairs else config.rl.steps
        if pairs:
            own.preference.method, own.preference.options = chosen["method"], ConfigDict(chosen["options"])
            own.preference.row_tokens = config.task.max_prompt_tokens + config.rl.max_new_tokens
            own.preference.micro_batches = config.rl.micro_batches
        else:
            own.method.name, own.method.options = chosen["method"], ConfigDict(chosen["options"])
        section = own.preference if pairs else own.rl
        section.optimizer = ConfigDict(usual.optimizer(config.rl.optimizer.learning_rate) | chosen["optimizer"])
    return own


def check_modules(config: ConfigDict) -> None:
    """Checks the section `modules`.

    Raises ValueError: a name that is taken, a method that cannot train a module, or a module that nobody would hear of.
    """
    for name in config.modules:
        place, chosen = f"config.modules.{name}", settings_of(config, name)
        if name in _TAKEN or not name.isidentifier():
            raise ValueError(f"{place}: the name is taken, or no identifier; choose another than {', '.join(_TAKEN)}")
        for key in chosen["optimizer"]:
            require(key in sections.optimizer(0.0), f"a key of {place}.optimizer", key, f"one of {[*sections.optimizer(0.0)]}")
        _check_method(config, name)
        if config.network.combined.mode or config.network.grammar.behind or methods.get(config.method.name).evolution:
            raise ValueError(f"{place}: modules learn beside a policy of one network that learns by gradients; leave them out")


def _check_method(config: ConfigDict, name: str) -> None:
    place, chosen = f"config.modules.{name}", settings_of(config, name)
    own = module_config(config, name)
    if learns_from_pairs(config, name):
        methods_of.refuse_missing(methods_of.preference_method(own))
        require(chosen["reward"] in config.rewards.names, f"{place}.reward", chosen["reward"], f"one of {config.rewards.names}")
        return
    method = methods_of.reinforcement_method(own)
    if chosen["reward"]:
        raise ValueError(f"{place}.reward would change nothing: {method.name!r} learns from what the module says; leave it ''")
    told = {*config.rewards.facts, *(GIVEN_BY_EPISODES if config.environment.name else ())}
    methods_of.refuse_missing(method, told | methods_of.reinforcement_method(config).strategy.provides)
    if method.needs_teacher or method.evolution:
        raise ValueError(f"{place}.method is {method.name!r}, which has a teacher, or takes no gradient; choose another")
    by = methods_of.reinforcement_method(config).strategy.options.get("by")
    if config.rl.steps and name not in (*config.environment.by, by):
        mend = "name it in config.environment.by, or as an option `by` of the strategy"
        raise ValueError(f"{place} would learn nothing: nobody asks it; {mend}")


def made_pairs(
    records: Sequence[dict[str, Any]], groups: Sequence[int], component: int, success: float, source: Sequence[Example]
) -> tuple[list[Example], list[int]]:
    """Pairs of a right and a wrong answer to one prompt, one for each group that has both; and the numbers of their prompts.

    The right one is the policy's own; a wrong one that somebody else wrote for it goes before the policy's.

    Args:
      records: of the rows, with rewards.
      groups: [rows] numbers.
      component: which reward decides.
      success: from what value on it says right.
      source: examples by their numbers, for prompts.
    """
    pairs, numbers = [], []
    for group in dict.fromkeys(groups):
        rows = [record for record, own in zip(records, groups, strict=True) if own == group]
        known = [record for record in rows if record["rewards"][component] is not None]
        right = [record for record in known if record["rewards"][component] >= success and record.get("by", POLICY) == POLICY]
        wrong = [record for record in known if record["rewards"][component] < success]
        wrong.sort(key=lambda record: record.get("by", POLICY) == POLICY)
        if right and wrong:
            numbers.append(right[0]["prompt_id"])
            texts = {"chosen": right[0]["completion"], "rejected": wrong[0]["completion"]}
            pairs.append({"prompt": source[numbers[-1]]["prompt"]} | texts)
    return pairs, numbers
