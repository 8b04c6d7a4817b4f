"""Samples of coming steps, made while the steps before them learn.

With `rl.staleness` S the samples of step k are drawn by the parameters that k - S steps have changed. That is fixed beforehand
and does not depend on who is faster: the same run with `rl.overlap` off, one thing after the other, gives the same bits.
What was sampled and not yet learned from stands in the checkpoint.
"""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_llm.data import Cursor
from jaxrl_llm.rewards import RewardFailure
from jaxrl_llm.rollouts import Collection
from jaxrl_llm.types import Rollouts


class Sampled(NamedTuple):
    """What a step learns from."""

    collection: Collection  # rollouts and records
    metrics: dict[str, float]  # of the strategy
    cursor: Cursor  # in the data, behind the step's examples
    remembered: Any  # state of the strategy after it, host arrays
    failures: list[RewardFailure]  # of rewards
    version: int  # steps that had changed the parameters that sampled


class Ahead:
    """The samples of the coming steps in their order; those at its end may still be being made."""

    def __init__(self, kept: Sequence[Sampled] = (), end: float = math.inf, thread: futures.Executor | None = None):
        """Args:
        kept: of a checkpoint.
        end: number of the step at which no more are needed.
        thread: that makes them, one after the other; None for the one that asks.
        """
        self._end, self._thread = end, thread
        self._waiting = collections.deque(_done(sampled) for sampled in kept)

    def missing(self, number: int, staleness: int) -> range:
        """The steps whose samples are to be begun now, before step `number` learns."""
        return range(number + len(self._waiting), int(min(number + staleness + 1, self._end)))

    def begin(self, sample: Callable[[Callable[[], Sampled | None]], Sampled]) -> None:
        """Makes the samples of the next step; `sample` is given a function that waits for those of the step before it."""
        last = self._waiting[-1] if self._waiting else _done(None)
        inline = self._thread is None
        self._waiting.append(_done(sample(last.result)) if inline else self._thread.submit(sample, last.result))

    def take(self) -> Sampled:
        """The samples of the step that learns now, once they are there."""
        return self._waiting.popleft().result()

    def finished(self) -> list[Sampled]:
        """All that no step has learned from, once they are there."""
        return [made.result() for made in self._waiting]


def _done(sampled: Sampled | None) -> futures.Future:
    made: futures.Future = futures.Future()
    made.set_result(sampled)
    return made


@contextlib.contextmanager
def looking_ahead(kept: Sequence[Sampled], end: int, *, overlap: bool) -> Iterator[Ahead]:
    """An `Ahead` with a thread of its own, where there is something to overlap."""
    if not overlap:
        yield Ahead(kept, end)
        return
    thread = futures.ThreadPoolExecutor(1, thread_name_prefix="samples")
    try:
        yield Ahead(kept, end, thread)
    finally:
        thread.shutdown(cancel_futures=True)


def snapshot(state: Any, *, copied: bool) -> Any:
    """The state as sampling may see it; a copy where an update will be given the buffers of the state meanwhile."""
    state = state.replace(opt_state=())
    return jax.tree.map(lambda leaf: leaf.copy(), state) if copied else state


def to_saved(samples: Sequence[Sampled]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Arrays by name, and plain values, of which `from_saved` makes the samples again; requests are left out."""
    arrays, plain = {}, []
    for number, one in enumerate(samples):
        fields = {field.name: getattr(one.collection.rollouts, field.name) for field in dataclasses.fields(Rollouts)}
        extras = {f"extras.{name}": value for name, value in fields.pop("extras").items()}
        remembered = {f"remembered.{place}": leaf for place, leaf in enumerate(jax.tree.leaves(one.remembered))}
        own = {"prompt_length": one.collection.prompt_length} | fields | extras | remembered
        arrays |= {f"{number}/{name}": np.asarray(value) for name, value in own.items() if value is not None}
        told = {"records": one.collection.records, "metrics": one.metrics, "cursor": list(one.cursor), "version": one.version}
        plain.append(told | {"failures": [failure._asdict() for failure in one.failures]})
    return arrays, plain


def from_saved(arrays: dict[str, Any], plain: Sequence[dict[str, Any]], remembered_like: Any) -> list[Sampled]:
    """The samples of `to_saved`; the state of the strategy has the structure of `remembered_like`."""
    found = []
    for number, told in enumerate(plain):
        own = {name.partition("/")[2]: np.asarray(value) for name, value in arrays.items() if name.startswith(f"{number}/")}
        lengths = own.pop("prompt_length")
        leaves = [own.pop(f"remembered.{place}") for place in range(len(jax.tree.leaves(remembered_like)))]
        extras = {name.removeprefix("extras."): own.pop(name) for name in list(own) if name.startswith("extras.")}
        collection = Collection(Rollouts(**own, extras=extras), told["records"], (), lengths)
        remembered = jax.tree.unflatten(jax.tree.structure(remembered_like), leaves)
        failures = [RewardFailure(**failure) for failure in told["failures"]]
        found.append(Sampled(collection, told["metrics"], Cursor(*told["cursor"]), remembered, failures, told["version"]))
    return found
