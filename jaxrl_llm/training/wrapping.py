"""What a configuration lays over the optimizer of a phase: `config.PHASE.optimizer.wrap = {name: options}`.

"extrapolate_every", "online_dare" and "online_ties" are transforms behind AdamW, "slow_fast" wraps the whole update; see
`jaxrl_llm.optimizers`. The direction of the merges is the task vector from the parameters with which the run began, or
those of the folder `base`, to those with which the phase begins.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxrl_llm.optimizers import extrapolate_every, online_dare, online_ties, slow_fast, task_vector

MERGES = {"online_dare": online_dare, "online_ties": online_ties}
TRANSFORMS = {"extrapolate_every": extrapolate_every} | MERGES
WRAPPERS = {"slow_fast": slow_fast}
# Options of a merge that are those of its task vector.
_OF_DIRECTION = {"direction_density": "density", "direction_bound": "bound"}


def check_wrap(config: ConfigDict, phase: str) -> None:
    """Refuses wrappers that do not exist, that have no direction, or whose options are not theirs.

    Raises:
      ValueError: as said; the message names the key.
    """
    wrap, name = config[phase].optimizer.wrap.to_dict(), f"config.{phase}.optimizer.wrap"
    if wrap and not config[phase].steps:
        raise ValueError(f"{name} would change nothing: config.{phase}.steps is 0")
    for chosen, options in wrap.items():
        if chosen not in TRANSFORMS | WRAPPERS:
            raise ValueError(f"{name} has {chosen!r}; it must be one of {sorted(TRANSFORMS | WRAPPERS)}")
        earlier = {"sft": 0, "preference": config.sft.steps, "rl": config.sft.steps + config.preference.steps}[phase]
        if chosen in MERGES and not options.get("base") and not earlier:
            raise ValueError(
                f"{name}.{chosen} has no direction: no phase comes before; set its `base` to the folder of the checkpoint from "
                "which the network was trained"
            )
        zero = jnp.zeros(1)
        try:
            if chosen in WRAPPERS:
                WRAPPERS[chosen](lambda *_: None, **options)
            elif chosen in MERGES:
                own, of_direction = _split(options)
                task_vector(zero, zero, **of_direction)
                MERGES[chosen](zero, **own)
            else:
                TRANSFORMS[chosen](**options)
        except TypeError as error:
            raise ValueError(f"{name}.{chosen} is {options}: {error}") from error


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    own = {name: value for name, value in options.items() if name not in _OF_DIRECTION and name != "base"}
    return own, {_OF_DIRECTION[name]: value for name, value in options.items() if name in _OF_DIRECTION}


def wrapped_optimizer(
    optimizer: optax.GradientTransformation, settings: ConfigDict, params=None, base: Callable[[str], Any] | None = None
) -> optax.GradientTransformation:
    """The optimizer with the transforms of its section behind it.

    Args:
      optimizer: of the phase.
      settings: its section "optimizer".
      params: with which the phase begins; only `init` looks at them.
      base: folder, or "" for the beginning of the run -> parameters of the same structure.
    """
    chained = [optimizer]
    for name, options in settings.wrap.to_dict().items():
        if name in MERGES:
            own, of_direction = _split(options)
            start = params if base is None else base(options.get("base", ""))
            direction = None if params is None else task_vector(params, start, **of_direction)
            chained.append(MERGES[name](direction, **own))
        elif name in TRANSFORMS:
            chained.append(TRANSFORMS[name](**options))
    return optax.chain(*chained) if len(chained) > 1 else optimizer


def wrapped_update(update: Callable, settings: ConfigDict) -> Callable:
    """The update with the wrappers of its section around it."""
    for name, options in settings.wrap.to_dict().items():
        if name in WRAPPERS:
            update = WRAPPERS[name](update, **options)
    return update
