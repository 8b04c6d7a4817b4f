"""Rewards with deadlines: a hanging, raising or malformed reward costs its own rows and never the run.

This is the one place of the package that owns processes. Workers are fresh interpreters rather than forks, since the
threads of JAX do not survive a fork, and they import neither JAX nor the main script.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.rewards import worker as protocol

LOAD_SECONDS = 60.0  # for starting an interpreter and importing what a reward needs; no deadline runs meanwhile
_SERVE = "import sys; from jaxrl_llm.rewards.worker import serve; serve(int(sys.argv[1]))"
_log = logging.getLogger(__name__)


class RewardFailure(NamedTuple):
    """Why a reward is missing: `row` of the reward `name` failed with `reason`."""

    name: str
    row: int
    reason: str


class RewardPool:
    """Worker processes that evaluate rewards; a context manager, used by one thread at a time.

    A reward is any callable `reward(prompts, completions, **columns) -> list[float | None]`, or an async one.

    * It is called once with all rows, in a worker process that is killed and replaced when the deadline has passed.
      When that call fails, its rows are tried one by one, so that one bad row does not lose the others.
    * With an attribute `rowwise = True` it promises that rows do not depend on each other: its rows are tried one by
      one from the start, spread over all workers.
    * With an attribute `in_process = True` it is called here, by the thread that scores, without a deadline: our own
      computations on the accelerator, which neither hang nor can be had elsewhere.
    * With an attribute `unguarded`, a callable without arguments, the pool evaluates what that returns instead.
    * One that cannot be pickled or imported elsewhere (lambdas, closures, functions of a notebook or of the main
      script) runs in a daemon thread of this process: after the deadline its result is ignored, but a thread cannot
      be killed. Put rewards that may hang into a module.
    """

    def __init__(self, workers: int | None = None, *, row_seconds: float = 10.0):
        """Workers start when they are first needed.

        Args:
          workers: number of processes; by default one for each core but one, at most 8.
          row_seconds: longest time for a row that is tried alone; less where the deadline is near.
        """
        self._size = max(1, min(8, (os.cpu_count() or 2) - 1)) if workers is None else workers
        self._row_seconds = row_seconds
        self._idle: list[_Worker] = []
        self._warned: set[str] = set()
        if self._size < 1 or row_seconds <= 0:
            raise ValueError(f"workers is {workers} and row_seconds {row_seconds}; both must be positive")

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers; the next `score` starts new ones."""
        while self._idle:
            self._idle.pop().stop()

    def score(
        self,
        rewards: Mapping[str, Callable],
        prompts: Sequence[Any],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        deadline_seconds: float = 60.0,
    ) -> tuple[np.ndarray, list[RewardFailure]]:
        """Evaluates every reward on every row.

        Args:
          rewards: K rewards by name.
          prompts: N prompts, text or chat messages.
          completions: N texts.
          columns: further columns of the examples, N values each, handed to the rewards by name.
          deadline_seconds: longest time for a call on all rows, and again for trying its rows one by one.

        Returns:
          float64 [N, K], NaN where a reward is missing, and the failures, by reward and row. None from a reward is
          missing without being a failure. Apart from time-outs the result does not depend on timing.

        Raises:
          ValueError: the columns differ in length.
        """
        call = protocol.Call(prompts, completions, dict(columns or {}))
        _check_lengths(call)
        sheet = _Sheet(list(rewards), len(completions))
        waiting: collections.deque[_Job] = collections.deque()
        for name, reward in rewards.items():
            if getattr(reward, "in_process", False):
                sheet.record_all(name, _evaluate_here(reward, call))
            else:
                waiting.extend(self._first_jobs(name, reward, call, deadline_seconds))
        running: list[_Task] = []
        try:
            while waiting or running:
                self._start(waiting, running, call)
                for task in self._ready(running):
                    waiting.extend(self._advance(task, sheet, deadline_seconds))
                running = [task for task in running if not task.over]
        finally:
            for task in running:
                task.worker.stop()
        return sheet.values, sorted(sheet.failures, key=lambda failure: (sheet.names.index(failure.name), failure.row))

    def _first_jobs(self, name: str, reward: Callable, call: protocol.Call, seconds: float) -> list[_Job]:
        reward = reward.unguarded() if hasattr(reward, "unguarded") else reward
        rows = tuple(range(len(call.completions)))
        by_row = getattr(reward, "rowwise", False)
        in_thread = not _picklable((reward, call))
        if in_thread:
            self._warn_of_thread(name, "it or its columns cannot be pickled")
        return self._split(_Job(name, reward, rows, by_row, seconds, in_thread))

    def _split(self, job: _Job) -> list[_Job]:
        """A job for each worker where rows are tried one by one in processes."""
        parts = self._size if job.by_row and not job.in_thread else 1
        chunks = [job.rows[part::parts] for part in range(parts)]
        return [dataclasses.replace(job, rows=chunk) for chunk in chunks if chunk]

    def _start(self, waiting: collections.deque, running: list[_Task], call: protocol.Call) -> None:
        for _ in range(len(waiting)):
            job = waiting.popleft()
            if job.in_thread:
                worker = _thread_worker(job, call.at(job.rows))
            elif sum(not task.job.in_thread for task in running) < self._size:
                worker = self._idle_worker() or _process_worker()
                limit = self._row_seconds if job.by_row else job.seconds
                worker.send(pickle.dumps((job.reward, call.at(job.rows), job.by_row, limit)))
            else:
                waiting.append(job)
                continue
            running.append(_Task(job, worker, expires=time.monotonic() + LOAD_SECONDS))

    def _idle_worker(self) -> _Worker | None:
        while self._idle:
            worker = self._idle.pop()
            if not worker.channel.poll():  # all that an idle worker can say is that it died
                return worker
            worker.stop()
        return None

    def _ready(self, running: list[_Task]) -> list[_Task]:
        """Tasks that sent a message or whose time is over; waits for the first."""
        timeout = max(0.0, min(task.expires for task in running) - time.monotonic())
        speaking = multiprocessing.connection.wait([task.worker.channel for task in running], timeout)
        now = time.monotonic()
        return [task for task in running if task.worker.channel in speaking or task.expires <= now]

    def _advance(self, task: _Task, sheet: _Sheet, deadline: float) -> list[_Job]:
        """Takes one message of `task` or its expiry into account; returns the jobs that follow from it."""
        try:
            if not task.worker.channel.poll():
                return self._lost(task, sheet, deadline, task.late())
            message = task.worker.channel.recv()
        except (EOFError, ConnectionError):
            return self._lost(task, sheet, deadline, "the worker process died")
        match message:
            case protocol.Loaded():
                task.start_clock(self._row_seconds)
            case protocol.Unloadable(reason):
                self._release(task)
                self._warn_of_thread(task.job.name, reason)
                return [dataclasses.replace(task.job, in_thread=True)]
            case protocol.Finished():
                self._release(task)
            case results:
                return self._record(task, results, sheet, deadline)
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
            return self._split(dataclasses.replace(task.job, by_row=True, seconds=deadline))
        for result in results:
            sheet.record(task.job, task.done, result)
            task.done += 1
        task.restart_row(self._row_seconds)
        return []

    def _lost(self, task: _Task, sheet: _Sheet, deadline: float, reason: str) -> list[_Job]:
        """After a death or a time-out: what to try again, everything else being missing."""
        task.over = True
        task.worker.stop()
        rest, left = task.job.rows[task.done :], task.ends - time.monotonic()
        if task.loaded and not task.job.by_row and len(rest) > 1:
            return self._split(dataclasses.replace(task.job, by_row=True, seconds=deadline))
        again = task.loaded and task.job.by_row and left > 0
        for offset in range(1 if again else len(rest)):
            sheet.record(task.job, task.done + offset, protocol.Result(protocol.MISSING, reason))
        return [dataclasses.replace(task.job, rows=rest[1:], seconds=left)] if again and rest[1:] else []

    def _warn_of_thread(self, name: str, reason: str) -> None:
        if name not in self._warned:
            _log.warning("reward %r runs in a thread (%s), which cannot be killed: move it into a module", name, reason)
        self._warned.add(name)


@dataclasses.dataclass(frozen=True)
class _Job:
    """Rows of one reward, tried together or one by one, for `seconds` in all."""

    name: str
    reward: Callable
    rows: tuple[int, ...]
    by_row: bool
    seconds: float
    in_thread: bool


@dataclasses.dataclass(frozen=True)
class _Worker:
    """A process or a thread: where its messages arrive, and how to be rid of it."""

    channel: multiprocessing.connection.Connection
    end: Callable[[], None]

    def send(self, request: bytes) -> None:
        # A worker that dies at this moment shows at the next read, where deaths are handled.
        with contextlib.suppress(ConnectionError):
            self.channel.send_bytes(request)

    def stop(self) -> None:
        self.channel.close()
        self.end()


@dataclasses.dataclass(eq=False)
class _Task:
    """A job under way; `done` rows have a result; `expires` and `ends` bound the next and the whole."""

    job: _Job
    worker: _Worker
    expires: float
    ends: float = 0.0
    allowed: float = 0.0
    done: int = 0
    loaded: bool = False
    over: bool = False

    def start_clock(self, row_seconds: float) -> None:
        self.loaded = True
        self.ends = time.monotonic() + self.job.seconds
        self.restart_row(row_seconds)

    def restart_row(self, row_seconds: float) -> None:
        left = self.ends - time.monotonic()
        # Of the time that is left one row may use a quarter, so that a few hanging rows leave some for the others.
        share = left / max(1, min(4, len(self.job.rows) - self.done))
        self.allowed = min(row_seconds, share) if self.job.by_row else left
        self.expires = self.ends - left + self.allowed

    def late(self) -> str:
        if not self.loaded:
            return f"could not be loaded within {LOAD_SECONDS:g} s"
        return f"no result within {self.allowed:.3g} s"


class _Sheet:
    """Values and failures as they come in."""

    def __init__(self, names: list[str], rows: int):
        self.names = names
        self.values = np.full((rows, len(names)), np.nan)
        self.failures: list[RewardFailure] = []

    def record(self, job: _Job, place: int, result: protocol.Result) -> None:
        self._note(job.name, job.rows[place], result)

    def record_all(self, name: str, results: Sequence[protocol.Result]) -> None:
        for row, result in enumerate(results):
            self._note(name, row, result)

    def _note(self, name: str, row: int, result: protocol.Result) -> None:
        self.values[row, self.names.index(name)] = result.value
        if result.reason:
            self.failures.append(RewardFailure(name, row, result.reason))


def _evaluate_here(reward: Callable, call: protocol.Call) -> list[protocol.Result]:
    results = protocol.evaluate(reward, call)
    if len(results) > 1 and results[0].fatal:
        return [protocol.evaluate(reward, call.at([row]))[0] for row in range(len(results))]
    return results


def _process_worker() -> _Worker:
    ours, theirs = multiprocessing.Pipe()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),
        "JAX_PLATFORMS": "cpu",  # should a reward import JAX, it must not take the accelerator
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _SERVE, str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        env=environment,
        start_new_session=True,  # Ctrl-C is ours to handle, and a kill takes the children of a reward along
    )
    theirs.close()
    return _Worker(ours, lambda: _kill(process))


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _thread_worker(job: _Job, call: protocol.Call) -> _Worker:
    ours, theirs = multiprocessing.Pipe()

    def run() -> None:
        # The pool closes its end when it gives a late thread up; what that thread sends then is of no interest.
        with contextlib.suppress(ConnectionError), theirs:
            protocol.work(job.reward, call, job.by_row, theirs.send, lambda: None)

    threading.Thread(target=run, name=f"reward {job.name}", daemon=True).start()
    return _Worker(ours, lambda: None)


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
