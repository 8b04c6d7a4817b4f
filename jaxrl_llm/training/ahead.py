"""Samples of coming steps, made while the steps before them learn.

With `rl.staleness` S the samples of step k are drawn by the parameters that k - S steps have changed, with `rl.in_flight` from
a column on by those that one step more has. That is fixed beforehand and does not depend on who is faster: the same run with
`rl.overlap` off, one thing after the other, gives the same bits. What was sampled and not yet learned from stands in the
checkpoint. One process has a thread for it. Several would dispatch their programs in orders of their own, so that each makes
the samples where the updates of a step have been dispatched and nobody has looked at their results.
"""

import collections
import contextlib
import dataclasses
import functools
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


# `sample(before, newer)`: functions that wait for the samples of the step before, None where there are none, and for what
# answers under newer parameters
Sample = Callable[[Callable[[], Sampled | None], Callable[[], Any]], Sampled]


class Ahead:
    """The samples of the coming steps in their order; those at its end may still be being made."""

    def __init__(
        self, kept: Sequence[Sampled] = (), end: float = math.inf, thread: futures.Executor | None = None, at_once: bool = True
    ):
        """Args:
        kept: of a checkpoint.
        end: number of the step at which no more are needed.
        thread: that makes them, one after the other; None for the one that asks.
        at_once: whether that one makes them when they can be made, rather than when somebody asks or goes on.
        """
        self._end, self._thread, self._at_once = end, thread, at_once
        self._waiting = collections.deque(_done(sampled) for sampled in kept)
        self._unmade: collections.deque[tuple[futures.Future, futures.Future, Callable[[], Sampled]]] = collections.deque()
        self._newer = _done(None)  # what the last ones go on with

    def missing(self, number: int, staleness: int) -> range:
        """The steps whose samples are to be begun now, before step `number` learns."""
        return range(number + len(self._waiting), int(min(number + staleness + 1, self._end)))

    def begin(self, sample: Sample, changing: bool = False) -> None:
        """Makes the samples of the next step, those that change parameters once `renew` is told of newer ones."""
        last = self._waiting[-1] if self._waiting else _done(None)
        self._newer = futures.Future() if changing else self._newer
        job = functools.partial(sample, last.result, self._newer.result)
        self._waiting.append(futures.Future() if self._thread is None else self._thread.submit(job))
        if self._thread is None:
            self._unmade.append((self._waiting[-1], self._newer, job))
            self.go_on(self._at_once)

    @property
    def waits(self) -> bool:
        """Whether samples wait for newer parameters, or will."""
        return not self._newer.done()

    def renew(self, newer: Any) -> None:
        """Gives what answers under the parameters of the moment to samples that wait for it."""
        self._newer.set_result(newer)
        self._newer = _done(None)
        self.go_on(self._at_once)

    def go_on(self, now: bool = True) -> None:
        """Makes what can be made and no thread makes."""
        while now and self._unmade and self._unmade[0][1].done():
            self._make()

    def _make(self) -> None:
        made, _, sample = self._unmade.popleft()
        made.set_result(sample())

    def take(self) -> Sampled:
        """The samples of the step that learns now, once they are there."""
        made = self._waiting.popleft()
        while self._unmade and not made.done():
            self._make()
        return made.result()

    def finished(self) -> list[Sampled]:
        """All that no step has learned from, once they are there."""
        self.go_on()
        return [made.result() for made in self._waiting]

    def stop(self) -> None:
        """Lets nobody wait any longer."""
        self._newer.cancel()


def _done(sampled: Sampled | None) -> futures.Future:
    made: futures.Future = futures.Future()
    made.set_result(sampled)
    return made


@contextlib.contextmanager
def looking_ahead(kept: Sequence[Sampled], end: int, *, overlap: bool) -> Iterator[Ahead]:
    """An `Ahead`, on one process with a thread of its own, where there is something to overlap."""
    if not overlap or jax.process_count() > 1:
        yield Ahead(kept, end, at_once=not overlap)
        return
    thread = futures.ThreadPoolExecutor(1, thread_name_prefix="samples")
    ahead = Ahead(kept, end, thread)
    try:
        yield ahead
    finally:
        ahead.stop()
        thread.shutdown(cancel_futures=True)


def snapshot(state: Any, *, copied: bool) -> Any:
    """The state as sampling may see it; a copy where an update will be given the buffers of the state meanwhile."""
    others = {name: own.replace(opt_state=()) for name, own in state.modules.items()}
    state = state.replace(opt_state=(), modules=others)
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
        told = {"records": one.collection.records, "metrics": one.metrics, "cursor": list(one.cursor)}
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
        found.append(Sampled(collection, told["metrics"], Cursor(*told["cursor"]), remembered, failures))
    return found
