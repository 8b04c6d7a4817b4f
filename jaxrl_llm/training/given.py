"""What `train` is given in Python, which no file can hold: `config.json` names it by what it is."""

import collections
import copy
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxrl_llm.data import Source
from jaxrl_llm.data.columns import require_prompt, select_columns
from jaxrl_llm.data.preference_sources import as_preference
from jaxrl_llm.networks import Network

_SAMPLED = 64  # numbers of a parameter that its digest looks at


@dataclasses.dataclass(frozen=True)
class Given:
    """Python objects of a run; see `loop.train`."""

    rewards: tuple[Callable | str, ...] = ()
    data: Sequence[Mapping[str, Any]] | None = None
    held_out: Sequence[Mapping[str, Any]] | None = None
    network: Network | None = None
    callbacks: tuple[Callable[..., None], ...] = ()

    @property
    def functions(self) -> dict[str, Callable]:
        """The rewards that are functions, by name."""
        return {qualified_name(reward): reward for reward in self.rewards if not isinstance(reward, str)}

    def names(self) -> dict[str, Any]:
        """What stands for the objects in a configuration, by argument."""
        rows = {
            name: describe_rows(getattr(self, name), name) for name in ("data", "held_out") if getattr(self, name) is not None
        }
        network = {} if self.network is None else {"network": describe_network(self.network)}
        functions = {"rewards": list(self.functions), "callbacks": list(map(qualified_name, self.callbacks))}
        return rows | network | {name: names for name, names in functions.items() if names}


NOTHING = Given()


def named(config: ConfigDict, given: Given) -> ConfigDict:
    """The configuration with the names of what is given, in `config.given` and, of rewards, in `config.rewards.names`.

    Raises ValueError: two rewards have one name, there are no rows or no parameters, or the configuration names objects that
      are not given.
    """
    names = [reward if isinstance(reward, str) else qualified_name(reward) for reward in given.rewards]
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"rewards has two of the name {repeated[0]!r}; give each a name of its own, as `def` does")
    if given.network is not None and (config.network.directory or config.network.name):
        own = config.network.directory or config.network.name
        raise ValueError(f"config.network names {own!r}, but network=... is given; leave one of them out")
    found = given.names()
    for name, value in config.given.to_dict().items():
        if name not in found:
            raise ValueError(f"config.given.{name} is {value}, an object of Python; give it to train() again as {name}=...")
    config = copy.deepcopy(config)
    for name, value in found.items():
        config.given[name] = value
    if names:
        config.rewards.names = tuple(names)
    return config


def qualified_name(function: Callable) -> str:
    """Module and qualified name, "package.module:function"; of objects that have none, those of their class."""
    if isinstance(function, functools.partial):
        return qualified_name(function.func)
    owner = function if hasattr(function, "__qualname__") else type(function)
    return f"{owner.__module__}:{owner.__qualname__}"


def describe_rows(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Number of the rows, and a digest of what is in them."""
    if not len(rows):
        raise ValueError(f"{name} has no rows; give a list of dicts with a 'prompt' each")
    digest = hashlib.sha256()
    for index in range(len(rows)):
        digest.update(json.dumps(rows[index], sort_keys=True, default=repr).encode())
    return {"rows": len(rows), "sha256": digest.hexdigest()}


def describe_network(network: Network) -> dict[str, Any]:
    """Number of the parameters, a digest of their names, shapes and some of their values, and the configuration.

    Raises ValueError: the network has no parameters.
    """
    if network.params is None:
        raise ValueError("network has no parameters; give network.with_params(params)")
    digest, leaves = hashlib.sha256(), flax.traverse_util.flatten_dict(network.params, sep="/")
    for name, leaf in sorted(leaves.items()):
        some = np.asarray(jnp.ravel(leaf)[:: max(1, leaf.size // _SAMPLED)].astype(jnp.float32))
        digest.update(f"{name} {leaf.shape} {leaf.dtype}".encode() + some.tobytes())
    config = dataclasses.asdict(network.config) if dataclasses.is_dataclass(network.config) else qualified_name(network.apply)
    found = {"parameters": sum(leaf.size for leaf in leaves.values()), "sha256": digest.hexdigest(), "config": config}
    return json.loads(json.dumps(found))


def own_copy(network: Network) -> Network:
    """The network with arrays of the run's own: updates are given the buffers of those that they replace."""
    return network.with_params(jax.tree.map(jnp.copy, network.params))


def as_source(rows: Sequence[Mapping[str, Any]], name: str, *, pairs: bool) -> Source:
    """The rows as examples, checked at once as those of a file are.

    Args:
      rows: dicts with the columns that a file would have.
      name: what messages call them.
      pairs: whether they are preferences, see `data.preference_source`.

    Raises ValueError: a row is none; the message has its number, from 0.
    """
    examples = []
    for index in range(len(rows)):
        row, place = rows[index], f"{name}, row {index}"
        if not isinstance(row, Mapping):
            raise ValueError(f"{place}: it is {type(row).__name__}; give dicts such as {{'prompt': ..., 'answer': ...}}")
        example = select_columns(row, None, place)
        examples.append(as_preference(example, place) if pairs else require_prompt(example, row, place))
    return Source(name, len(examples), lambda index: dict(examples[index]), lambda index: f"{name}, row {index}")
