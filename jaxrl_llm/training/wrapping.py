"""What a configuration or a method lays over the optimizer of a phase: `config.PHASE.optimizer.wrap = {name: options}`.

Of `jaxrl_llm.optimizers`, "recursive_momentum" and "objective_weights" stand in front of all and ask for further gradients,
"polyak_step" and "implicit_transport" stand in the place of clipping and AdamW, with the schedule of the learning rate as
the bound of their steps or their size, "extrapolate_every", "online_dare" and "online_ties" stand behind, "soft_reset" goes
around these, and "slow_fast" wraps the whole update. The direction of the merges is the task vector from the parameters with
which the run began, or those of the folder `base`, to those with which the phase begins.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxrl_llm.methods import Method
from jaxrl_llm.optimizers import (
    extrapolate_every, implicit_transport, objective_weights, online_dare, online_ties, polyak_step, recursive_momentum,
    slow_fast, soft_reset, task_vector,
)  # fmt: skip

FRONT = {"recursive_momentum": recursive_momentum, "objective_weights": objective_weights}
RULES = {"polyak_step": polyak_step, "implicit_transport": implicit_transport}
MERGES = {"online_dare": online_dare, "online_ties": online_ties}
BEHIND = {"extrapolate_every": extrapolate_every} | MERGES
AROUND = {"soft_reset": soft_reset}
WRAPPERS = {"slow_fast": slow_fast}
KINDS = FRONT | RULES | BEHIND | AROUND | WRAPPERS
# Options of a merge that are those of its task vector.
_OF_DIRECTION = {"direction_density": "density", "direction_bound": "bound"}
Wrap = Mapping[str, dict[str, Any]]


def wrap_of(settings: ConfigDict, method: Method | None = None) -> Wrap:
    """What is laid over: what the method brings, under what the section "optimizer" says of it or beside it."""
    return (method.wrap.layers if method else {}) | settings.wrap.to_dict()


def check_wrap(config: ConfigDict, phase: str, method: Method | None = None) -> None:
    """Refuses wrappers that do not exist, that have no direction, or whose options are not theirs.

    Raises ValueError: as said; the message names the key.
    """
    settings, name = config[phase].optimizer, f"config.{phase}.optimizer.wrap"
    if settings.wrap and not config[phase].steps:
        raise ValueError(f"{name} would change nothing: config.{phase}.steps is 0")
    wrap = wrap_of(settings, method)
    for chosen, options in wrap.items():
        if chosen not in KINDS:
            raise ValueError(f"{name} has {chosen!r}; it must be one of {sorted(KINDS)}")
        earlier = {"sft": 0, "preference": config.sft.steps, "rl": config.sft.steps + config.preference.steps}[phase]
        if chosen in MERGES and not options.get("base") and not earlier:
            raise ValueError(
                f"{name}.{chosen} has no direction: no phase comes before; set its `base` to the folder of the checkpoint from "
                "which the network was trained"
            )
        if chosen == "polyak_step" and phase != "rl":
            raise ValueError(f"{name} has 'polyak_step', but only steps of the RL phase have a reward; leave it out")
        try:
            _try(chosen, options)
        except TypeError as error:
            raise ValueError(f"{name}.{chosen} is {options}: {error}") from error
    rules = [chosen for chosen in wrap if chosen in RULES]
    if len(rules) > 1:
        raise ValueError(f"{name} has {rules}; each stands in the place of AdamW, so give one")
    usual = {"weight_decay": 0.0, "beta1": 0.9, "beta2": 0.95, "clip_norm": 1.0}
    changed = [key for key, value in usual.items() if settings[key] != value]
    if rules and changed:
        raise ValueError(f"config.{phase}.optimizer.{changed[0]} would change nothing: {rules[0]} is in the place of AdamW")


def _try(chosen: str, options: dict[str, Any]) -> None:
    """Makes the transform once, for what it refuses."""
    zero = jnp.zeros(1)
    if chosen in MERGES:
        own, of_direction = _split(options)
        task_vector(zero, zero, **of_direction)
        MERGES[chosen](zero, **own)
    else:
        given = {**dict.fromkeys(WRAPPERS, (lambda *_: None,)), **dict.fromkeys(AROUND, (optax.identity(),))}
        given |= dict.fromkeys(RULES, (optax.constant_schedule(0.0),))
        KINDS[chosen](*given.get(chosen, ()), **options)


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    own = {name: value for name, value in options.items() if name not in _OF_DIRECTION and name != "base"}
    return own, {_OF_DIRECTION[name]: value for name, value in options.items() if name in _OF_DIRECTION}


def rule_of(wrap: Wrap, schedule: optax.Schedule) -> optax.GradientTransformation | None:
    """What stands in the place of clipping and AdamW; None for nothing."""
    return next((RULES[name](schedule, **options) for name, options in wrap.items() if name in RULES), None)


def wrapped_optimizer(
    optimizer: optax.GradientTransformation, wrap: Wrap, params=None, base: Callable[[str], Any] | None = None
) -> optax.GradientTransformation:
    """The optimizer with the transforms behind and around it.

    Args:
      optimizer: of the phase.
      wrap: see `wrap_of`.
      params: with which the phase begins; only `init` looks at them.
      base: folder, or "" for the beginning of the run -> parameters of the same structure.
    """
    chained = [optimizer]
    for name, options in wrap.items():
        if name in MERGES:
            own, of_direction = _split(options)
            start = params if base is None else base(options.get("base", ""))
            direction = None if params is None else task_vector(params, start, **of_direction)
            chained.append(MERGES[name](direction, **own))
        elif name in BEHIND:
            chained.append(BEHIND[name](**options))
    found = optax.chain(*chained) if len(chained) > 1 else optimizer
    for name, options in wrap.items():
        found = AROUND[name](found, **options) if name in AROUND else found
    return found


def with_front(optimizer: optax.GradientTransformation, wrap: Wrap) -> optax.GradientTransformation:
    """The optimizer of all parameters with the transforms in front of it."""
    front = [FRONT[name](**options) for name, options in wrap.items() if name in FRONT]
    return optax.chain(*front, optimizer) if front else optimizer


def wrapped_update(update: Callable, wrap: Wrap) -> Callable:
    """The update with its wrappers around it."""
    for name, options in wrap.items():
        if name in WRAPPERS:
            update = WRAPPERS[name](update, **options)
    return update
