"""The configuration of a run: every key with its default, and the checks across keys.

A file under `configs/` calls `default_config()` and changes what it wants. The result is locked: a key that does not
exist here cannot be set, neither in a file nor by `--config.a.b=c`.
"""

import difflib
import functools
import json
import math
import operator
import pathlib
from typing import Any

from ml_collections import ConfigDict

from jaxrl_llm import methods, reading
from jaxrl_llm.compose import require
from jaxrl_llm.networks.config import CACHE_DTYPES
from jaxrl_llm.rewards import FACTORIES, LARGEST_REWARD
from jaxrl_llm.rollouts.asking import ASKING
from jaxrl_llm.rollouts.episodes import GIVEN_BY_EPISODES
from jaxrl_llm.rollouts.facts import TOKEN_REWARDS
from jaxrl_llm.rollouts.harness import GIVEN_BY_AGENTS
from jaxrl_llm.sampling import make_sampling
from jaxrl_llm.training import sections
from jaxrl_llm.training.combining import check_combination
from jaxrl_llm.training.methods_of import (
    REVISES,
    asked_policies,
    method_options,
    preference_method,
    refuse_missing,
    reinforcement_method,
    supervised_method,
)
from jaxrl_llm.training.metrics import DEFINITIONS, defined
from jaxrl_llm.training.modules import check_modules
from jaxrl_llm.training.trackers import check_trackers
from jaxrl_llm.training.wrapping import check_wrap

# Their keys are the options of what is named beside them, which knows its own options and refuses others.
FREE_SECTIONS = (
    "method.options", "method.strategy_options", "sft.options", "preference.options", "task.options", "task.test_options",
    "task.template_options", "rewards.options", "rewards.facts", "modules", "environment.options", "critic.options",
    "critic.head_options", "given", "sft.optimizer.wrap", "preference.optimizer.wrap", "rl.optimizer.wrap",
)  # fmt: skip

# Numbers that may be None.
NULLABLE = ("network.combined.weight", "critic.warmup_steps", "rewards.timeout_value", "rl.top_k", "rl.top_p", "rl.min_p")

# The reward whose network lies in `rewards.model`.
REWARD_MODEL = "reward_model"
DECAYS = ("constant", "linear", "cosine")
# Evaluation adds an offset of a million to it, and the sum must fit into 32 bits.
LARGEST_SEED = 2**31


def default_config() -> sections.Config:
    """All keys with their defaults; lengths are in tokens."""
    config = ConfigDict(
        {
            "seed": 0,
            "network": sections.network(),
            # A directory, a tokenizer file, "bytes" or "characters:..."; "" takes the checkpoint's directory, or, without one,
            # `network.tokenizer`.
            "tokenizer": "",
            "task": sections.task(),
            "sft": sections.sft(),
            "preference": sections.preference(),
            # What is sampled may be another strategy than the method's own, of `jaxrl_llm.rollouts`, with options of its own.
            "method": {"name": "grpo", "options": {}, "strategy": "", "strategy_options": {}},
            "rl": sections.rl(),
            # A shared critic is a value head on the policy; otherwise it is a network of its own.
            "critic": sections.critic(),
            # Folder of the policy that a method distils: of a run, from Hugging Face, or a converted one.
            "teacher": {"directory": ""},
            "rewards": sections.rewards(),
            "environment": sections.environment(),
            # Networks that learn beside the policy, by name: {"opponent": {"method": "dr_grpo"}}; see `sections.module`.
            "modules": {},
            "evaluation": sections.evaluation(),
            "checkpoint": {"every": 50, "keep": 2, "best_metric": ""},
            # Who is told of each step beside the folder: names of `training.trackers.TRACKERS`.
            "log": {"completions_every": 1, "trackers": ("tensorboard",), "live": True, "compilation_cache": True},
            # Devices along each axis; one of the first five may be -1 for all that are left. In sampling `sampling_tensor`
            # devices share out a copy of the parameters, 0 for as many as `tensor`; the last `actors` of all only sample.
            "mesh": {"data": 1, "fsdp": 1, "tensor": 1, "expert": 1, "context": 1, "sampling_tensor": 0, "actors": 0},
            # Runs that feed each other, see `training.rounds`; none for one run of all phases.
            "rounds": (),
            # Names of what `train` was given in Python; it fills them itself.
            "given": {},
        }
    )
    config.lock()
    for section in FREE_SECTIONS:
        free_section(config, section).unlock()
    return config


def free_section(config: ConfigDict, path: str) -> ConfigDict:
    """The section at a dotted path, such as "method.options"."""
    return functools.reduce(operator.getitem, path.split("."), config)


def flat_config(config: ConfigDict) -> dict[str, Any]:
    """The configuration by dotted keys, as its file has it."""
    return flat(json.loads(json.dumps(config.to_dict())))


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of dictionaries within dictionaries by dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    prefix = prefix and f"{prefix}."
    return {key: leaf for name, value in tree.items() for key, leaf in flat(value, prefix + name).items()}


def read_config(path: str | pathlib.Path) -> ConfigDict:
    """The configuration in the `config.json` of a run; keys that are newer than the run have their defaults.

    Raises ValueError: the file is damaged, or a key is unknown or of another type; the message names file and key.
    """
    checked = _checked(_defaults(), reading.read_object(path), f"{path}: ", "")
    config = default_config()
    config.update(checked)
    return config


_defaults = functools.cache(default_config)


def _checked(config: ConfigDict, stored: dict[str, Any], before: str, section: str) -> dict[str, Any]:
    """What `stored` has for a section of `config`, each value of the type that it has there."""
    if section.removesuffix(".") in FREE_SECTIONS:
        return stored
    found = {}
    for name, value in stored.items():
        path = f"{section}{name}"
        if name not in config:
            raise ValueError(f"{reading.line(before + path)} is unknown; the file is damaged, or of another version")
        if isinstance(config[name], ConfigDict):
            found[name] = _checked(config[name], reading.mapping()(value, before + path), before, f"{path}.")
        elif value is not None:
            found[name] = _AS_STORED.get(config.get_type(name), reading.anything)(value, before + path)
    return found


# Type of a default -> what may stand for it in JSON.
_AS_STORED = {
    bool: reading.flag,
    int: reading.whole(-(2**53)),
    float: reading.real(),
    str: reading.text,
    tuple: reading.listed(reading.anything),
}


def check_config(config: ConfigDict) -> None:
    """Checks what no single key can tell.

    Raises ValueError: an impossible value or combination; the message names the keys and the mend.
    """
    _check_sections(config)
    _check_positive(config)
    _check_names(config)
    _check_optimizers(config)
    _check_inert(config)
    _check_sampling(config)
    require(0 <= config.seed < LARGEST_SEED, "config.seed", config.seed, f"from 0 to {LARGEST_SEED - 1}")
    require(config.rewards.deadline_seconds > 0, "config.rewards.deadline_seconds", config.rewards.deadline_seconds, "above 0")
    memory, late = config.rewards.memory_gb, config.rewards.timeout_value
    require(memory >= 0, "config.rewards.memory_gb", memory, "0 for no limit, or more")
    require(abs(late or 0.0) <= LARGEST_REWARD, "config.rewards.timeout_value", late, f"within +-{LARGEST_REWARD:g}")
    require(math.isfinite(config.evaluation.success), "config.evaluation.success", config.evaluation.success, "a finite number")
    if not config.rewards.names and (config.rl.steps or config.evaluation.reward):
        raise ValueError("config.rewards.names is empty; name at least one reward")
    _check_methods(config)
    check_combination(config)
    check_modules(config)
    _check_preference(config)
    if config.evaluation.temperature == 0 and config.evaluation.samples > 1:
        raise ValueError(
            f"config.evaluation.samples is {config.evaluation.samples} at temperature 0, where all samples are equal; "
            "raise config.evaluation.temperature or set config.evaluation.samples=1"
        )
    if config.rl.steps and config.rl.temperature <= 0:
        raise ValueError(f"config.rl.temperature is {config.rl.temperature}; learning needs samples: set it above 0")
    weights, names = config.rewards.weights, config.rewards.names
    if weights and len(weights) != len(names):
        raise ValueError(f"config.rewards.weights has {len(weights)} entries for {len(names)} names; give one for each")
    needed = config.task.max_prompt_tokens + config.rl.max_new_tokens
    if config.rl.row_tokens and config.rl.row_tokens < needed:
        raise ValueError(
            f"config.rl.row_tokens is {config.rl.row_tokens}; the longest rollout has {needed} tokens "
            "(task.max_prompt_tokens + rl.max_new_tokens): raise it, or 0 for just that"
        )
    if config.sft.steps + config.preference.steps + config.rl.steps < 1:
        raise ValueError("config.sft.steps, config.preference.steps and config.rl.steps are all 0; there is nothing to train")


_AT_LEAST_ONE = (
    "sft.batch", "sft.row_tokens", "preference.batch", "preference.row_tokens", "rl.prompts", "rl.epochs", "rl.minibatches",
    "rl.max_new_tokens", "task.max_prompt_tokens", "evaluation.prompts", "evaluation.batch", "evaluation.samples",
    "environment.turns", "checkpoint.every", "checkpoint.keep", "rewards.workers",
)  # fmt: skip
_AT_LEAST_ZERO = (
    "sft.steps", "sft.examples", "sft.micro_batches", "preference.steps", "preference.micro_batches", "rl.steps",
    "rl.row_tokens", "rl.micro_batches", "rl.slots", "rl.staleness", "rl.in_flight", "environment.turn_tokens",
    "environment.overlap", "mesh.actors", "evaluation.every", "log.completions_every",
)  # fmt: skip


def _check_sections(config: ConfigDict) -> None:
    """A section that was replaced as a whole may lack keys."""
    stack = [("config", default_config(), config)]
    while stack:
        place, wanted, found = stack.pop()
        missing = [name for name in wanted if name not in found]
        if missing:
            raise ValueError(f"{place}.{missing[0]} is missing; set single keys, such as --{place}.{missing[0]}=VALUE")
        for name, section in wanted.items():
            if not isinstance(section, ConfigDict) or f"{place}.{name}".removeprefix("config.") in FREE_SECTIONS:
                continue
            if not isinstance(found[name], ConfigDict):
                raise ValueError(f"{place}.{name} is {found[name]!r}; it is a section with the keys {sorted(section)}")
            stack.append((f"{place}.{name}", section, found[name]))


def _check_names(config: ConfigDict) -> None:
    """What is chosen by its name is there, and once."""
    best = config.checkpoint.best_metric
    module, _, of_module = best.partition("/")
    if best and not defined(of_module if module in config.modules else best):
        near = difflib.get_close_matches(best, DEFINITIONS, 3, 0.4)
        raise ValueError(f"config.checkpoint.best_metric is {best!r}, which nothing measures; did you mean one of {near}?")
    names = list(config.rewards.names)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"config.rewards.names has {twice!r} twice; name it once, and weigh it by config.rewards.weights")
    cache = config.network.cache_dtype
    require(cache in CACHE_DTYPES, "config.network.cache_dtype", cache, f"one of {', '.join(map(repr, CACHE_DTYPES))}")
    check_trackers(config.log.trackers)
    if "" in config.rl.stop_strings:
        raise ValueError("config.rl.stop_strings has an empty text, which stops nothing; leave it out")


def _check_positive(config: ConfigDict) -> None:
    for names, least in ((_AT_LEAST_ONE, 1), (_AT_LEAST_ZERO, 0)):
        for name in names:
            section, key = name.split(".")
            require(config[section][key] >= least, f"config.{name}", config[section][key], f"at least {least}")


def _check_other_policies(config: ConfigDict) -> None:
    """A teacher or a moving reference is there when a method needs it, and only then."""
    phases = {config.method.name: config.rl, config.preference.method: config.preference, config.sft.method: config.sft}
    used = [name for name, phase in phases.items() if phase.steps]
    trained = [methods.get(name) for name in used if name in methods.names()]
    asked = "teacher" in asked_policies(config)
    taught, directory = asked or any(method.needs_teacher for method in trained), config.teacher.directory
    if taught and not directory:
        raise ValueError(
            f"{' and '.join(used)}: a method or reward needs a teacher; set config.teacher.directory to the folder of a policy"
        )
    if directory and trained and not taught:
        raise ValueError(f"config.teacher.directory would change nothing: {' and '.join(used)} needs no teacher; leave it out")
    for name, phase in (("rl", config.rl), ("preference", config.preference)):
        _check_reference(f"config.{name}.reference", phase.reference)
    moving = config.preference.reference.every
    if moving and not (config.preference.steps and methods.get(config.preference.method).needs_reference):
        raise ValueError("config.preference.reference would change nothing: no method of that phase needs a reference")


def _check_reference(name: str, reference: ConfigDict) -> None:
    if reference.every < 0 or not 0 < reference.share <= 1:
        raise ValueError(f"{name} is {reference.to_dict()}; every must be 0 or more, share above 0 and at most 1")
    if reference.share != 1 and not reference.every:
        raise ValueError(f"{name}.share would change nothing: {name}.every is 0")


def _check_inert(config: ConfigDict) -> None:
    """Options that would change nothing are errors."""
    has_critic = config.method.name not in methods.names() or methods.get(config.method.name).needs_critic
    if not has_critic and config.critic.to_dict() != _defaults().critic.to_dict():
        raise ValueError(f"config.critic would change nothing: {config.method.name} has no critic; leave it as it is")
    if config.critic.shared and has_critic and getattr(methods.get(config.method.name).critic, "frozen", False):
        raise ValueError(f"config.critic.shared is True, but {config.method.name!r} keeps its critic as it is; set it to False")
    if config.critic.shared and config.critic.learning_rate_factor != 1.0:
        raise ValueError("config.critic.learning_rate_factor would change nothing: config.critic.shared is True")
    if config.rl.in_flight and not config.rl.staleness:
        raise ValueError("config.rl.in_flight would change nothing: config.rl.staleness is 0; set that to at least 1")
    _check_other_policies(config)
    network = config.network
    if network.quantization and not network.adapter.pattern and not network.trains:
        raise ValueError(
            f"config.network.quantization is {network.quantization!r}, but codes cannot train; set "
            "config.network.adapter.pattern, or config.network.trains to what shall"
        )
    if config.network.name and config.network.directory:
        raise ValueError("config.network.name would change nothing: config.network.directory is given; set one of them to ''")
    rewarded = (*config.rewards.names, config.evaluation.reward)
    named = REWARD_MODEL in rewarded
    if config.rewards.model and not named:
        raise ValueError(f"config.rewards.model would change nothing: config.rewards.names has no {REWARD_MODEL!r}; add it")
    if named and not config.rewards.model:
        raise ValueError(f"config.rewards.names has {REWARD_MODEL!r}; set config.rewards.model to its folder")
    for section in ("preference", "sft"):
        if config[section].options and not config[section].steps:
            raise ValueError(f"config.{section}.options would change nothing: config.{section}.steps is 0")
    options = config.rewards.options.to_dict()
    facts = config.rewards.facts.values()
    used = [
        *config.rewards.names,
        *facts,
        config.evaluation.reward,
        *(chosen.get("reward") or "" for chosen in options.values()),
    ]
    for name in sorted(options.keys() - set(map(sections.short_name, used))):
        raise ValueError(f"config.rewards.options.{name} would change nothing: config.rewards.names has no {name!r}; add it")
    _check_facts(config)
    measured = config.evaluation.reward or (*config.rewards.names, "")[0]
    if measured in ASKING and (measured != "policy_judge" or options.get(measured, {}).get("labels")):
        place = "config.evaluation.reward" if config.evaluation.reward else "config.rewards.names[0]"
        raise ValueError(f"{place} is {measured!r}, which scores rows, and evaluations do not; set config.evaluation.reward")
    if not config.environment.name and config.environment.to_dict() != _defaults().environment.to_dict():
        raise ValueError("config.environment would change nothing: its name is ''; name an environment")
    if "environment" in rewarded and not config.environment.name:
        raise ValueError("config.rewards.names has 'environment'; set config.environment.name to the one that gives it")
    if not network.router.pooled and not network.router.load_balancing:
        raise ValueError("config.network.router.pooled would change nothing: config.network.router.load_balancing is 0")


def _check_facts(config: ConfigDict) -> None:
    """Facts are functions of a module that something of the RL phase reads."""
    needed = reinforcement_method(config).needs if config.rl.steps else frozenset()
    for name, function in config.rewards.facts.items():
        if not isinstance(function, str) or (":" not in function and function not in FACTORIES | ASKING):
            known = f"'package.module:function', or one of {sorted(FACTORIES | ASKING)}"
            raise ValueError(f"config.rewards.facts.{name} is {function!r}; it must be {known}")
        if name not in needed | {TOKEN_REWARDS}:
            raise ValueError(f"config.rewards.facts.{name} would change nothing: {config.method.name} needs {sorted(needed)}")


def _check_optimizers(config: ConfigDict) -> None:
    for phase in ("sft", "preference", "rl"):
        name = config.method.name if phase == "rl" else config[phase].method
        check_wrap(config, phase, methods.get(name) if name in methods.names() and config[phase].steps else None)
        decay = config[phase].optimizer.decay
        require(decay in DECAYS, f"config.{phase}.optimizer.decay", decay, f"one of {DECAYS}")


def _check_sampling(config: ConfigDict) -> None:
    rl = config.rl
    try:
        make_sampling(
            1, 1, max_new_tokens=rl.max_new_tokens, temperature=rl.temperature, top_k=rl.top_k, top_p=rl.top_p, min_p=rl.min_p
        )
        make_sampling(1, 1, max_new_tokens=rl.max_new_tokens, temperature=config.evaluation.temperature)
    except ValueError as error:
        raise ValueError(f"config.rl or config.evaluation: {error}") from error


def _check_methods(config: ConfigDict) -> None:
    """The methods that are trained by exist, and their phases can give what they need."""
    method_options(config)
    if config.rl.steps:
        method = reinforcement_method(config)
        played = GIVEN_BY_EPISODES | GIVEN_BY_AGENTS if config.environment.name else ()
        refuse_missing(method, {*config.rewards.facts, *played})
        inert = {"epochs": 1, "minibatches": 1, "micro_batches": 0, "staleness": 0, "measure_gap": False}
        changed = [key for key, usual in inert.items() if method.evolution and config.rl[key] != usual]
        if changed:
            raise ValueError(f"config.rl.{changed[0]} would change nothing: {method.name!r} takes no gradient; leave it out")
    if config.sft.steps:
        refuse_missing(supervised_method(config))
    if config.preference.steps:
        refuse_missing(preference_method(config), {REVISES} if config.task.revision else ())
    if config.task.revision and not (config.preference.steps and REVISES in preference_method(config).needs):
        raise ValueError("config.task.revision would change nothing: no preference phase learns from revisions; leave it ''")


def _check_preference(config: ConfigDict) -> None:
    method, _ = preference_method(config), supervised_method(config)
    if config.preference.steps and config.rl.steps and method.is_reward_model:
        raise ValueError(
            f"config.rl.steps is {config.rl.steps} behind {method.name!r}, which makes no policy; set config.rl.steps=0, and "
            "train a policy in another run with config.rewards.names=('reward_model',) and config.rewards.model=WORKDIR"
        )
