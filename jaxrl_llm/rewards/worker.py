"""The working side of the pool: evaluates one reward and reports what comes of it. Imports neither JAX nor NumPy.

Requests come as pickles of the pool. What goes back is lines of JSON, which the pool checks: a reward can write to any
descriptor of its process, and whatever it writes there must not become code.
"""

import asyncio
import contextlib
import functools
import inspect
import json
import math
import os
import pickle
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

MISSING = float("nan")
# Rewards are used as float32, whose squares and fourth powers of this size stay finite in sums over any step, and which
# still tells apart two such rewards that differ by 0.1.
LARGEST_REWARD = 1e6
# The pool kills a worker that is late. Should the pool itself have been killed, this many seconds later the kernel does.
ORPHAN_SECONDS = 5.0
REASON_CHARACTERS = 300
LARGEST_FACT = 4096  # entries of a vector, or spans
LARGEST_TEXT = 1 << 24  # characters
HEADER_BYTES = 8


class MissingColumn(ValueError):
    """A reward needs a column that there is not."""


class Call(NamedTuple):
    """Arguments of a reward; lists of equal length, a list a column; for rewards of whole groups each row's (number, size)."""

    prompts: Sequence[Any]
    completions: Sequence[str]
    columns: dict[str, Sequence[Any]]
    groups: Sequence[tuple[int, int]] = ()

    def at(self, rows: Sequence[int]) -> "Call":
        """The same call on some of the rows."""
        prompts, completions = ([values[row] for row in rows] for values in (self.prompts, self.completions))
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        return Call(prompts, completions, columns, [self.groups[row] for row in rows] if len(self.groups) else ())


class Fact(NamedTuple):
    """A function with a reward's arguments that says something else of each row, see `docs/tasks.md`."""

    function: Callable


class Told(NamedTuple):
    """A function with a reward's arguments that answers each row with a text, as an environment does."""

    function: Callable


# A number, a vector, or spans of characters as [first, behind the last, value]; of `Told` a text.
Value = int | float | list[float] | list[list[float]] | str


class Result(NamedTuple):
    """The value of a row; NaN if there is none, with the reason where that is a failure. `fatal` failed for all rows."""

    value: Value
    reason: str = ""
    fatal: bool = False


class Received(NamedTuple):
    """A request begins to arrive: the worker lives."""


class Loaded(NamedTuple):
    """The reward was loaded and begins to work."""


class Unloadable(NamedTuple):
    """A worker process cannot import the reward."""

    reason: str


class Finished(NamedTuple):
    """Every result was sent."""


_KINDS = {kind.__name__: kind for kind in (Received, Loaded, Unloadable, Finished)}
Message = Received | Loaded | Unloadable | Finished | list[Result]


def encode(message: Message) -> bytes:
    """The message as a line."""
    if isinstance(message, list):
        content = ["results", *([None if value != value else value, *rest] for value, *rest in message)]
    else:
        content = [type(message).__name__, *message]
    return json.dumps(content).encode() + b"\n"


def decode(line: bytes, told: bool = False) -> Message:
    """The message of a line; whether its values are texts, or numbers as all others.

    Raises ValueError: it is none.
    """
    try:
        kind, *content = json.loads(line)
        if kind == "results":
            return [_decode_result(told, *row) for row in content]
        message = _KINDS[kind](*content)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"no message of a worker: {line!r:.80}") from error
    if not all(isinstance(text, str) for text in content):
        raise ValueError(f"no message of a worker: {line!r:.80}")
    return message


def _decode_result(told: bool, value: Value | None, reason: str, fatal: bool) -> Result:
    known = _is_text if told else _is_value
    if not ((value is None or known(value)) and isinstance(reason, str) and isinstance(fatal, bool)):
        raise ValueError("no result")
    return Result(MISSING if value is None else value, shorten(reason), fatal)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LARGEST_TEXT


def _is_value(value: Any) -> bool:
    if not isinstance(value, list):
        return _in_range(value)
    spans = all(isinstance(span, list) and len(span) == 3 and 0 <= span[0] <= span[1] for span in value)
    numbers = [number for span in value for number in span] if spans else value
    return len(value) <= LARGEST_FACT and all(map(_in_range, numbers))


def _in_range(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= (LARGEST_REWARD if isinstance(value, float) else 2**31 - 1)


def longest_line(rows: int, reward: Callable | Fact | Told) -> int:
    """Bytes that no message about so many rows exceeds: a character may become twelve, a number has up to 25."""
    value = {Fact: 100 * LARGEST_FACT, Told: 12 * LARGEST_TEXT}.get(type(reward), 0)
    return (rows + 1) * (12 * REASON_CHARACTERS + 100 + value)


def serve(descriptor: int, memory_bytes: int = 0) -> None:
    """Life of a worker process: works on pickled `(reward, call, by_row, seconds)` until the pool closes the pipe."""
    os.dup2(2, 1)  # what rewards print goes to standard error: standard output belongs to the program
    if memory_bytes:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    pipe = socket.socket(fileno=descriptor)

    def send(message: Message) -> None:
        pipe.sendall(encode(message))

    with contextlib.suppress(ConnectionError):  # the pool is gone
        while header := _receive(pipe, HEADER_BYTES):
            send(Received())
            _answer(_receive(pipe, int.from_bytes(header, "big")), send)


def _receive(pipe: socket.socket, size: int) -> bytearray:
    """So many bytes, or none at the end."""
    found = bytearray()
    while len(found) < size:
        piece = pipe.recv(min(size - len(found), 1 << 20))
        if not piece:
            return bytearray()
        found += piece
    return found


def _answer(request: bytearray, send: Callable[[Message], None]) -> None:
    try:
        reward, call, by_row, seconds = pickle.loads(request)
    except MemoryError:  # no reason to take the reward into a process without a limit
        os._exit(1)
    except Exception as error:  # unpickling runs whatever the module of the reward does when imported
        send(Unloadable(describe(error)))
        return
    set_alarm = functools.partial(signal.setitimer, signal.ITIMER_REAL, seconds + ORPHAN_SECONDS)
    work(reward, call, by_row, send, set_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0)


def work(reward: Callable, call: Call, by_row: bool, send: Callable[[Message], None], start_clock: Callable[[], Any]) -> None:
    """Evaluates `reward` on the whole call or row by row; sends `Loaded`, a list of results each time, then `Finished`."""
    send(Loaded())
    rows = range(len(call.completions))
    for part in [[row] for row in rows] if by_row else [list(rows)]:
        start_clock()
        send(evaluate(reward, call.at(part)))
    send(Finished())


def evaluate(reward: Callable | Fact | Told, call: Call) -> list[Result]:
    """A result for each row. An exception or an answer of the wrong form is a missing value with its reason."""
    read = {Fact: _as_fact, Told: _as_told}.get(type(reward), _as_result)
    function = reward if read is _as_result else reward.function
    if not getattr(function, "whole_groups", False):
        return _evaluate(function, read, call)
    rows_of: dict[int, list[int]] = {}
    for row, (number, _) in enumerate(call.groups):
        rows_of.setdefault(number, []).append(row)
    results = [Result(MISSING, "it is asked for whole groups, and here are none")] * len(call.completions)
    for rows in rows_of.values():
        size = call.groups[rows[0]][1]
        found = _evaluate(function, read, call.at(rows)) if len(rows) == size else None
        for place, row in enumerate(rows):
            lost = Result(MISSING, "it is asked for whole groups, and that of this row took too long or ended its worker")
            results[row] = lost if found is None else found[place]._replace(fatal=False)
    return results


def _evaluate(reward: Callable, read: Callable[[Any], Result], call: Call) -> list[Result]:
    count = len(call.completions)
    try:
        answer = call_reward(reward, *call[:3])
        if inspect.isawaitable(answer):
            answer = asyncio.run(_awaited(answer))
        if hasattr(answer, "tolist"):  # arrays
            answer = answer.tolist()
        return _as_results(answer, count, read)
    except MissingColumn as error:
        return [Result(MISSING, shorten(str(error)))] * count
    except (Exception, SystemExit) as error:  # a reward is somebody else's code: whatever it raises is data here
        return [Result(MISSING, describe(error), fatal=True)] * count


def call_reward(reward: Callable, prompts: Sequence[Any], completions: Sequence[str], columns: Mapping[str, Any]) -> Any:
    """What the reward returns; it is given by keyword what its signature names, and all columns where it has `**columns`.

    Raises MissingColumn: it needs a column that there is not.
    """
    # Whatever data call their columns: these two are what the sampler wrote and was asked.
    given = {**columns, "prompts": prompts, "completions": completions}
    if isinstance(reward, functools.partial):  # its options are no columns
        given = {name: value for name, value in given.items() if name not in reward.keywords}
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have none
        return reward(**given)
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters)
    single = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    for each in single:
        if each.default is each.empty and each.name not in given:
            raise MissingColumn(f"needs the column {each.name!r}, there are {sorted(columns)}")
    by_place = [each.name for each in single if each.kind is each.POSITIONAL_ONLY and each.name in given]
    wanted = given.keys() if takes_all else {each.name for each in single}
    named = {name: value for name, value in given.items() if name in wanted and name not in by_place}
    return reward(*(given[name] for name in by_place), **named)


def describe(error: BaseException) -> str:
    """Kind and message of an error, on one line of a log."""
    try:
        return shorten(f"{type(error).__name__}: {error}")
    except Exception:  # a message that cannot be written either
        return type(error).__name__


def shorten(text: str) -> str:
    """The beginning of a text on one line of bounded length."""
    line = " ".join(text[: 2 * REASON_CHARACTERS].split())
    return line if len(line) <= REASON_CHARACTERS else line[: REASON_CHARACTERS - 3] + "..."


async def _awaited(answer):
    return await answer


def _as_results(answer: Any, count: int, read: Callable[[Any], Result]) -> list[Result]:
    if not isinstance(answer, list | tuple):
        what = "a reward returns a list of float or None" if read is _as_result else "return a list, a value for each row"
        fault = f"returned {shorten(repr(answer)):.80}; {what}"
        return [Result(MISSING, fault)] * count
    if len(answer) != count:
        fault = f"returned {len(answer)} values for {count} completions; return one each, None if missing"
        return [Result(MISSING, fault)] * count
    return [read(value) for value in answer]


def _as_fact(value: Any) -> Result:
    """A number (whole ones stay whole), a vector of numbers, or spans; None is missing."""
    if value is None:
        return Result(MISSING)
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, list | tuple):
        plain = [list(entry) if isinstance(entry, tuple) else entry for entry in plain]
    plain = int(plain) if isinstance(plain, bool) else plain
    if _is_value(plain):
        return Result(plain)
    told, spans = shorten(repr(value))[:80], "spans [first character, the one behind the last, value]"
    wanted = f"a number within +-{LARGEST_REWARD:g}, a list of up to {LARGEST_FACT} of them, or {spans}"
    return Result(MISSING, f"returned {told} for a row; give {wanted}")


def _as_told(value: Any) -> Result:
    if _is_text(value):
        return Result(value)
    return Result(MISSING, f"returned {shorten(repr(value))[:80]} for a row; give a text of up to {LARGEST_TEXT} characters")


def _as_result(value: Any) -> Result:
    if value is None:
        return Result(MISSING)
    try:
        number = float(value) if hasattr(type(value), "__float__") else MISSING
    except (TypeError, ValueError, OverflowError):
        number = MISSING
    if abs(number) <= LARGEST_REWARD:
        return Result(number)
    told = shorten(repr(value))[:80]
    if math.isfinite(number):
        return Result(MISSING, f"returned {told} for a row; rewards lie within +-{LARGEST_REWARD:g}: scale it")
    return Result(MISSING, f"returned {told} for a row; give a finite float, or None if missing")
