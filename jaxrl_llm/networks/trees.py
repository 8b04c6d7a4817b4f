"""Nested dicts of parameters in two parts: what trains and what is frozen."""

import re
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax.numpy as jnp

Params = dict[str, Any]


def split_params(params: Params, trains: str | Callable[[str], bool]) -> tuple[Params, Params]:
    """Splits a nested dict of arrays, of any network, into (trained, frozen); no array is copied.

    Args:
      params: nested dict.
      trains: a regular expression, searched in the path of each leaf, whose keys are joined by dots such as
        "layers.mlp.up.kernel"; or a function of the path. `adapters.ADAPTER` is that of all adapters, `r"norm\\.scale"` of
        all norms, `r"^(?!embedding)"` of all but the embedding table.

    Raises ValueError: no leaf trains, or one that does not hold real numbers.
    """
    chosen = trains if callable(trains) else lambda path: re.search(trains, path) is not None
    leaves = flax.traverse_util.flatten_dict(params)
    names = {path: ".".join(map(str, path)) for path in leaves}
    trained = {path: leaf for path, leaf in leaves.items() if chosen(names[path])}
    if not trained:
        raise ValueError(f"trains={trains!r} is found in no path of the parameters; they are {', '.join(names.values())}")
    for path, leaf in trained.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"trains={trains!r} is found in {names[path]}, which is {leaf.dtype} and can only be frozen")
    frozen = {path: leaf for path, leaf in leaves.items() if path not in trained}
    return flax.traverse_util.unflatten_dict(trained), flax.traverse_util.unflatten_dict(frozen)


def join_params(trained: Params, frozen: Params) -> Params:
    """Undoes `split_params`: the nested dict of the leaves of both.

    Raises ValueError: both have a leaf of the same path, or one has a leaf where the other has a dict.
    """
    joined = dict(frozen)
    for name, value in trained.items():
        if name not in frozen:
            joined[name] = value
        elif isinstance(value, dict) and isinstance(frozen[name], dict):
            joined[name] = join_params(value, frozen[name])
        else:
            raise ValueError(f"{name!r} is both in the trained and in the frozen parameters; each leaf must be in one of them")
    return joined
