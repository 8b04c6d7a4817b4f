"""The working side of the pool: evaluates one reward and reports what comes of it. Imports neither JAX nor NumPy."""

from __future__ import annotations

import asyncio
import functools
import inspect
import multiprocessing.connection
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

MISSING = float("nan")
# The pool kills a worker that is late. Should the pool itself have been killed, this many seconds later the kernel does.
ORPHAN_SECONDS = 5.0


class Call(NamedTuple):
    """Arguments of a reward; lists of equal length, a list a column."""

    prompts: Sequence[Any]
    completions: Sequence[str]
    columns: dict[str, Sequence[Any]]

    def at(self, rows: Sequence[int]) -> Call:
        """The same call on some of the rows."""
        prompts, completions = ([values[row] for row in rows] for values in (self.prompts, self.completions))
        return Call(prompts, completions, {name: [values[row] for row in rows] for name, values in self.columns.items()})


class Result(NamedTuple):
    """The value of a row; NaN if there is none, with the reason where that is a failure. `fatal` failed for all rows."""

    value: float
    reason: str = ""
    fatal: bool = False


class Loaded(NamedTuple):
    """The reward was loaded and begins to work."""


class Unloadable(NamedTuple):
    """A worker process cannot import the reward."""

    reason: str


class Finished(NamedTuple):
    """Every result was sent."""


def serve(descriptor: int) -> None:
    """Life of a worker process: works on pickled `(reward, call, by_row, seconds)` until the pool closes the pipe."""
    os.dup2(2, 1)  # what rewards print goes to standard error: standard output belongs to the program
    channel = multiprocessing.connection.Connection(descriptor)
    while True:
        try:
            request = channel.recv_bytes()
        except EOFError:
            return
        try:
            reward, call, by_row, seconds = pickle.loads(request)
        except Exception as error:  # unpickling runs whatever the module of the reward does when imported
            channel.send(Unloadable(describe(error)))
            continue
        set_alarm = functools.partial(signal.setitimer, signal.ITIMER_REAL, seconds + ORPHAN_SECONDS)
        work(reward, call, by_row, channel.send, set_alarm)
        signal.setitimer(signal.ITIMER_REAL, 0)


def work(reward: Callable, call: Call, by_row: bool, send: Callable[[Any], None], start_clock: Callable[[], Any]) -> None:
    """Evaluates `reward` on the whole call or row by row; sends `Loaded`, a list of results each time, then `Finished`."""
    send(Loaded())
    rows = range(len(call.completions))
    for part in [[row] for row in rows] if by_row else [list(rows)]:
        start_clock()
        send(evaluate(reward, call.at(part)))
    send(Finished())


def evaluate(reward: Callable, call: Call) -> list[Result]:
    """A result for each row. An exception or an answer of the wrong form is a missing value with its reason."""
    count = len(call.completions)
    try:
        answer = reward(call.prompts, call.completions, **call.columns)
        if inspect.isawaitable(answer):
            answer = asyncio.run(_awaited(answer))
    except (Exception, SystemExit) as error:  # a reward is somebody else's code: whatever it raises is data here
        return [Result(MISSING, describe(error), fatal=True)] * count
    if hasattr(answer, "tolist"):  # arrays
        answer = answer.tolist()
    if not isinstance(answer, list | tuple):
        return [Result(MISSING, f"returned {answer!r:.80}; a reward returns a list of float or None")] * count
    if len(answer) != count:
        fault = f"returned {len(answer)} values for {count} completions; return one each, None if missing"
        return [Result(MISSING, fault)] * count
    return [_as_result(value) for value in answer]


def describe(error: BaseException) -> str:
    """Kind and message of an error, on one line of a log."""
    return f"{type(error).__name__}: {error}"


async def _awaited(answer):
    return await answer


def _as_result(value: Any) -> Result:
    if value is None:
        return Result(MISSING)
    fault = f"returned {value!r:.80} for a row; give a finite float, or None if missing"
    if not hasattr(type(value), "__float__"):
        return Result(MISSING, fault)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return Result(MISSING, fault)
    return Result(number) if abs(number) < float("inf") else Result(MISSING, fault)
