"""Rewards with deadlines: a hanging, raising or malformed reward costs its own rows and never the run.

Workers are fresh interpreters rather than forks, since the threads of JAX do not survive a fork, and they import
neither JAX nor the main script.
"""

import collections
import dataclasses
import logging
import os
import pickle
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.rewards import worker as protocol
from jaxrl_llm.rewards.processes import Guard, Worker, process_worker, thread_worker

LOAD_SECONDS = 60.0  # for starting an interpreter and importing what a reward needs; no deadline runs meanwhile
RECEIVE_SECONDS = 5.0  # for an idle worker to say that it received something
# A row that had less time alone than this, or than the slowest of the others took, was not given a chance.
LEAST_SECONDS = 0.5
_log = logging.getLogger(__name__)


class RewardFailure(NamedTuple):
    """`row` of the reward `name` failed with `reason`: its value is missing, or that of rows that were `timed_out`."""

    name: str
    row: int
    reason: str
    timed_out: bool = False


@dataclasses.dataclass(frozen=True)
class _Job:
    """Rows of one reward, tried together or one by one, for `seconds` in all.

    `fresh` wants a fresh process, `suspect` is the row that ended the process before it, and `slowest` the seconds that
    the slowest row took so far.
    """

    name: str
    reward: Callable
    rows: tuple[int, ...]
    by_row: bool
    seconds: float
    in_thread: bool
    row_seconds: float  # for a row that is tried alone
    fresh: bool = False
    suspect: int | None = None
    slowest: float = 0.0

    def one_by_one(self, seconds: float) -> "_Job":
        return dataclasses.replace(self, by_row=True, seconds=seconds, fresh=False)


@dataclasses.dataclass(eq=False)
class _Task:
    """A job under way; `done` rows have a result; `expires` and `ends` bound the next and the whole."""

    job: _Job
    worker: Worker
    expires: float
    slowest: float
    ends: float = 0.0
    allowed: float = 0.0
    began: float = 0.0
    done: int = 0
    received: bool = False
    loaded: bool = False
    over: bool = False

    def awaited(self) -> int:
        """Number of results that come next."""
        left = len(self.job.rows) - self.done
        return min(1, left) if self.job.by_row else left

    def start_clock(self) -> None:
        self.loaded = True
        self.ends = time.monotonic() + self.job.seconds
        self.start_row()

    def end_row(self) -> None:
        self.slowest = max(self.slowest, time.monotonic() - self.began)
        self.start_row()

    def start_row(self) -> None:
        self.began = time.monotonic()
        left = self.ends - self.began
        # Of the time that is left one row may use a quarter, so that a few hanging rows leave some for the others.
        share = left / max(1, min(4, len(self.job.rows) - self.done))
        self.allowed = min(self.job.row_seconds, share) if self.job.by_row else left
        self.expires = self.ends - left + self.allowed

    def had_a_chance(self) -> bool:
        """Whether the row that is late took too long, rather than the rows before it."""
        return not self.job.by_row or self.allowed >= min(self.job.row_seconds, max(LEAST_SECONDS, self.slowest))

    def late(self) -> str:
        if not self.loaded:
            return f"could not be loaded within {LOAD_SECONDS:g} s"
        return f"no result within {self.allowed:.3g} s"


class _Sheet:
    """Values and failures as they come in."""

    def __init__(self, names: list[str], rows: int):
        self.names = names
        self.values = np.full((rows, len(names)), np.nan, object)
        self.failures: list[RewardFailure] = []

    def record_missing(self, job: _Job, start: int, reason: str) -> None:
        for row in job.rows[start:]:
            self.record(job.name, row, protocol.Result(protocol.MISSING, reason))

    def record(self, name: str, row: int, result: protocol.Result, timed_out: bool = False) -> None:
        self.values[row, self.names.index(name)] = result.value
        if result.reason:
            self.failures.append(RewardFailure(name, row, protocol.shorten(result.reason), timed_out))


class RewardPool:
    """Worker processes that evaluate rewards; a context manager. Threads take turns.

    A reward is any callable `reward(prompts, completions, **columns) -> list[float | None]`, or an async one. It is
    called by keyword: with `prompts`, `completions` and the columns of the data, as far as its signature names them, and
    with all columns where it has `**columns`. Rewards lie within +-1e6 (`LARGEST_REWARD`); a larger one is missing.

    * It is called once with all rows, in a worker process that is killed and replaced when the deadline has passed.
      When that call fails, its rows are tried one by one, so that one bad row does not lose the others.
    * A row that takes too long alone is wrong rather than missing, so that answers that hang a verifier are discouraged.
      A row that ends its worker is tried once more in a fresh one.
    * With an attribute `rowwise = True` it promises that rows do not depend on each other: its rows are tried one by
      one from the start, spread over all workers.
    * With an attribute `row_seconds` that is the longest time for a row that is tried alone.
    * With an attribute `whole_groups = True` it is called once for each group, with all of its rows.
    * With an attribute `in_process = True` it is called here, by the thread that scores, without a deadline: our own
      computations on the accelerator, which neither hang nor can be had elsewhere.
    * With an attribute `unguarded`, a callable without arguments, the pool evaluates what that returns instead.
    * One that cannot be pickled or imported elsewhere (lambdas, closures, functions of a notebook or of the main
      script) runs in a daemon thread of this process: after the deadline its result is ignored, but a thread cannot
      be killed. Put rewards that may hang into a module.
    """

    def __init__(
        self, workers: int | None = None, *, row_seconds: float = 10.0, timeout_value: float | None = 0.0,
        memory_gb: float = 0.0,
    ):  # fmt: skip
        """Workers start when they are first needed.

        Args:
          workers: number of processes; by default one for each core but one, at most 8.
          row_seconds: longest time for a row that is tried alone; less where the deadline is near.
          timeout_value: reward of a row that took longer; None for a missing one.
          memory_gb: address space that a worker process may have, in 1e9 bytes; 0 for no limit.
        """
        self._size = max(1, min(8, (os.cpu_count() or 2) - 1)) if workers is None else workers
        self._row_seconds = row_seconds
        self._timeout = protocol.MISSING if timeout_value is None else timeout_value
        self._memory_bytes = int(memory_gb * 1e9)
        self._idle: list[Worker] = []
        self._turn = threading.Lock()
        self._guard = Guard()
        self._warned: set[str] = set()
        if self._size < 1 or row_seconds <= 0:
            raise ValueError(f"workers is {workers} and row_seconds {row_seconds}; both must be positive")
        if abs(timeout_value or 0.0) > protocol.LARGEST_REWARD:
            raise ValueError(f"timeout_value is {timeout_value}; rewards lie within +-{protocol.LARGEST_REWARD:g}")

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers; the next `score` starts new ones."""
        while self._idle:
            self._idle.pop().stop()
        self._guard.close()

    def score(
        self, rewards: Mapping[str, Callable[..., Any]], prompts: Sequence[Any], completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None, deadline_seconds: float = 60.0,
        groups: Sequence[tuple[int, int]] = (),
    ) -> tuple[np.ndarray, list[RewardFailure]]:  # fmt: skip
        """Evaluates every reward on every row.

        Args:
          rewards: K rewards by name.
          prompts: N prompts, text or chat messages.
          completions: N texts.
          columns: further columns of the examples, N values each, handed to the rewards by name.
          deadline_seconds: longest time for a call on all rows, and again for trying its rows one by one.
          groups: of each row the number and the size of its group, for rewards of whole groups.

        Returns: [N, K], float64, or objects for `Fact` and `Told`, NaN where a reward is missing, and the
          failures, by reward and row, which `timed_out` says of rows that took too long alone. None from a reward is missing
          without being a failure. Apart from time-outs the result does not depend on timing.
        Raises ValueError: the columns differ in length.
        """
        _check_lengths(call := protocol.Call(prompts, completions, dict(columns or {}), groups))
        sheet = _Sheet(list(rewards), len(completions))
        waiting: collections.deque[_Job] = collections.deque()
        for name, reward in rewards.items():
            if getattr(reward, "in_process", False):
                for row, result in enumerate(_evaluate_here(reward, call)):
                    sheet.record(name, row, result)
            else:
                waiting.extend(self._first_jobs(name, reward, call, deadline_seconds))
        running: list[_Task] = []
        with self._turn:
            try:
                while waiting or running:
                    self._start(waiting, running, call)
                    for task in self._ready(running):
                        waiting.extend(self._advance(task, sheet, deadline_seconds))
                    running = [task for task in running if not task.over]
            finally:
                for task in running:
                    task.worker.stop()
        others = {protocol.Fact, protocol.Told} & set(map(type, rewards.values()))
        values = sheet.values if others else sheet.values.astype(float)
        return values, sorted(sheet.failures, key=lambda failure: (sheet.names.index(failure.name), failure.row))

    def _first_jobs(self, name: str, reward: Callable, call: protocol.Call, seconds: float) -> list[_Job]:
        reward = reward.unguarded() if hasattr(reward, "unguarded") else reward
        rows = tuple(range(len(call.completions)))
        own = getattr(reward, "function", reward)
        by_row, row_seconds = getattr(own, "rowwise", False), getattr(own, "row_seconds", self._row_seconds)
        in_thread = not _picklable((reward, call))
        if in_thread:
            self._warn_of_thread(name, "it or its columns cannot be pickled")
        return self._split(_Job(name, reward, rows, by_row, seconds, in_thread, row_seconds))

    def _split(self, job: _Job) -> list[_Job]:
        """A job for each worker where rows are tried one by one in processes."""
        parts = self._size if job.by_row and not job.in_thread else 1
        chunks = [job.rows[part::parts] for part in range(parts)]
        return [dataclasses.replace(job, rows=chunk) for chunk in chunks if chunk]

    def _start(self, waiting: collections.deque, running: list[_Task], call: protocol.Call) -> None:
        for _ in range(len(waiting)):
            job = waiting.popleft()
            if not job.in_thread and sum(not task.job.in_thread for task in running) >= self._size:
                waiting.append(job)
                continue
            idle, part = None if job.in_thread else self._idle_worker(), call.at(job.rows)
            if idle is not None and job.fresh:
                idle.stop()
                idle = None
            if job.in_thread:
                worker = thread_worker(job.name, job.reward, part, job.by_row)
            else:
                worker = idle or process_worker(self._guard, self._memory_bytes)
                limit = min(job.row_seconds, job.seconds) if job.by_row else job.seconds
                worker.channel.send(pickle.dumps((job.reward, part, job.by_row, limit)))
            seconds = LOAD_SECONDS if idle is None else RECEIVE_SECONDS
            running.append(_Task(job, worker, expires=time.monotonic() + seconds, slowest=job.slowest))

    def _idle_worker(self) -> Worker | None:
        while self._idle:
            worker = self._idle.pop()
            if not connection.wait([worker.channel], 0) and not worker.channel.has_line():
                return worker
            worker.stop()  # all that an idle worker can say is that it died, or what no worker says
        return None

    def _ready(self, running: list[_Task]) -> list[_Task]:
        """Tasks that sent something or whose time is over; waits for the first."""
        timeout = max(0.0, min(task.expires for task in running) - time.monotonic())
        speaking = [task.worker.channel for task in running if task.worker.channel.has_line()]
        speaking += connection.wait([task.worker.channel for task in running], 0.0 if speaking else timeout)
        now = time.monotonic()
        return [task for task in running if task.worker.channel in speaking or task.expires <= now]

    def _advance(self, task: _Task, sheet: _Sheet, deadline: float) -> list[_Job]:
        """Takes one message of `task` or its expiry into account; returns the jobs that follow from it."""
        try:
            line = task.worker.channel.line(protocol.longest_line(len(task.job.rows), task.job.reward))
            message = None if line is None else protocol.decode(line, isinstance(task.job.reward, protocol.Told))
        except EOFError:
            return self._lost(task, sheet, deadline, "the worker process died", died=True)
        except ValueError as error:
            return self._lost(task, sheet, deadline, f"wrote into the pipe of its worker: {error}")
        if message is None:
            late = task.expires <= time.monotonic()
            return self._lost(task, sheet, deadline, task.late(), late=True) if late else []
        match message:
            case protocol.Received() if not task.received:
                task.received, task.expires = True, time.monotonic() + LOAD_SECONDS
            case protocol.Loaded() if not task.loaded:
                task.start_clock()
            case protocol.Unloadable(reason) if not task.loaded:
                self._release(task)
                self._warn_of_thread(task.job.name, reason)
                return [dataclasses.replace(task.job, in_thread=True)]
            case protocol.Finished() if task.loaded and task.done == len(task.job.rows):
                self._release(task)
            case list() if task.loaded and len(message) == task.awaited():
                return self._record(task, message, sheet, deadline)
            case _:
                return self._lost(task, sheet, deadline, "wrote into the pipe of its worker")
        return []

    def _release(self, task: _Task) -> None:
        task.over = True
        if task.job.in_thread:
            task.worker.stop()
        else:
            self._idle.append(task.worker)

    def _record(self, task: _Task, results: list[protocol.Result], sheet: _Sheet, deadline: float) -> list[_Job]:
        if results[0].fatal and len(results) > 1:
            task.done = len(results)
            return self._split(task.job.one_by_one(deadline))
        for result in results:
            sheet.record(task.job.name, task.job.rows[task.done], result)
            task.done += 1
        task.end_row()
        return []

    def _lost(
        self, task: _Task, sheet: _Sheet, deadline: float, reason: str, *, died: bool = False, late: bool = False
    ) -> list[_Job]:
        """After a death, a time-out or nonsense: what to try again, everything else being missing."""
        task.over = True
        task.worker.stop()
        job, rest, left = task.job, task.job.rows[task.done :], task.ends - time.monotonic()
        if not task.loaded:
            # An idle worker may be broken by what it did before, and any may be killed from outside.
            if (died or not task.received) and not job.fresh:
                return [dataclasses.replace(job, fresh=True)]
            sheet.record_missing(job, task.done, reason)
            return []
        if not job.by_row and len(rest) > 1:
            return self._split(job.one_by_one(deadline))
        if not rest:
            return []
        following = dataclasses.replace(job, by_row=True, seconds=left, slowest=task.slowest, fresh=False)
        if died and not job.in_thread and left > 0 and job.suspect != rest[0]:
            return [dataclasses.replace(following, rows=rest, fresh=True, suspect=rest[0])]
        wrong = late and task.had_a_chance()
        of_late = protocol.MISSING if isinstance(job.reward, protocol.Fact | protocol.Told) else self._timeout
        sheet.record(job.name, rest[0], protocol.Result(of_late if wrong else protocol.MISSING, reason), wrong)
        if left > 0 and rest[1:]:
            return [dataclasses.replace(following, rows=rest[1:])]
        sheet.record_missing(job, task.done + 1, reason)
        return []

    def _warn_of_thread(self, name: str, reason: str) -> None:
        if name not in self._warned:
            _log.warning("reward %r runs in a thread (%s), which cannot be killed: move it into a module", name, reason)
        self._warned.add(name)


def _evaluate_here(reward: Callable, call: protocol.Call) -> list[protocol.Result]:
    results = protocol.evaluate(reward, call)
    if len(results) > 1 and results[0].fatal:
        return [protocol.evaluate(reward, call.at([row]))[0] for row in range(len(results))]
    return results


def _picklable(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # pickling runs code of the value, which may raise anything; the answer is no
        return False
    return True


def _check_lengths(call: protocol.Call) -> None:
    lengths = {"prompts": len(call.prompts), **{name: len(values) for name, values in call.columns.items()}}
    for name, length in lengths.items():
        if length != len(call.completions):
            raise ValueError(f"column {name!r} has {length} values for {len(call.completions)} completions; give one each")
