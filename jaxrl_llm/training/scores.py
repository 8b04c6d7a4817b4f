"""Scoring by rewards that may fail: what is logged, what is warned of, and what stops a run."""

from __future__ import annotations

import contextlib
import logging
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures

import numpy as np

from jaxrl_llm.rewards import RewardFailure, RewardPool
from jaxrl_llm.rewards.worker import Call
from jaxrl_llm.rollouts.collect import Score
from jaxrl_llm.rollouts.io import Ahead
from jaxrl_llm.training import metrics
from jaxrl_llm.training.timing import timed

MANY = 0.1  # share of the values of a reward above which missing ones are warned of
_LOGGER = logging.getLogger(__name__)


def make_score(
    pool: RewardPool,
    rewards: Mapping[str, Callable],
    deadline_seconds: float,
    *,
    told: set,
    failures: list[RewardFailure],
    log: pathlib.Path | None = None,
    step: int = 0,
) -> tuple[Score, Ahead | None]:
    """Builds `score(prompts, completions, columns) -> rewards [N, K]`, NaN where missing, and the same ahead of time.

    The second is a context of `(submit, score)`, see `rollouts.Io`, of rewards that promise to look at one row at a time;
    None where one of them does not. Parts that are scored while others are sampled have the deadline each; once all are
    sampled, what has not begun has it in common.

    The first scoring with these rewards raises ValueError where every value is missing, since they would be so until the
    end; of a reward of which many are missing or timed out there is one warning.

    Args:
      pool: evaluates them.
      rewards: by name.
      deadline_seconds: as in `RewardPool.score`.
      told: what this process was told already; added to.
      failures: added to.
      log: JSONL file of all failures; None for none.
      step: of training, for the log.
    """

    def concluded(values: np.ndarray, found: Sequence[RewardFailure]) -> np.ndarray:
        failures.extend(found)
        for failure in found if log is not None else ():
            metrics.append_jsonl(log, {"step": step} | failure._asdict())
        _tell(list(rewards), values, found, told)
        return values

    def score(prompts, completions, columns) -> np.ndarray:
        with timed("reward"):
            scored = pool.score(rewards, prompts, completions, columns, deadline_seconds)
        return concluded(*scored)

    @contextlib.contextmanager
    def ahead():
        parts, thread, ends = [], futures.ThreadPoolExecutor(1), math.inf

        def part_score(*asked):
            return pool.score(rewards, *asked, min(deadline_seconds, max(ends - time.monotonic(), 0.0)))

        def submit(rows, *asked) -> None:
            parts.append((np.asarray(rows), thread.submit(part_score, *asked)))

        def rest(prompts, completions, columns) -> np.ndarray:
            nonlocal ends
            # From now on the run waits: what has not begun shares one deadline, however many parts there are.
            ends = time.monotonic() + deadline_seconds
            submitted = {int(row) for rows, _ in parts for row in rows}
            missing = [row for row in range(len(prompts)) if row not in submitted]
            if missing:
                submit(missing, *Call(prompts, completions, columns).at(missing))
            with timed("reward"):
                return concluded(*_joined([(rows, *part.result()) for rows, part in parts], list(rewards)))

        try:
            yield submit, rest
        finally:
            thread.shutdown(cancel_futures=True)

    return score, ahead if all(map(_by_row, rewards.values())) else None


def _by_row(reward: Callable) -> bool:
    """Whether a reward looks at one row at a time, in a process of its own."""
    return getattr(reward, "rowwise", False) and not getattr(reward, "in_process", False)


def _joined(parts: Sequence[tuple], names: list[str]) -> tuple[np.ndarray, list[RewardFailure]]:
    """The values [N, K] and failures of parts of `(rows, values, failures)`, as if they had been one."""
    values = np.empty((sum(len(rows) for rows, _, _ in parts), len(names)))
    for rows, own, _ in parts:
        values[rows] = own
    found = [failure._replace(row=int(rows[failure.row])) for rows, _, failures in parts for failure in failures]
    return values, sorted(found, key=lambda failure: (names.index(failure.name), failure.row))


def timeouts(failures: Sequence[RewardFailure]) -> float:
    """Number of rows that took too long alone."""
    return float(sum(failure.timed_out for failure in failures))


def _tell(names: list[str], values: np.ndarray, failures: Sequence[RewardFailure], told: set) -> None:
    if not values.size:
        return
    reasons = {failure.name: failure.reason for failure in reversed(failures)}
    first, rows = tuple(names) not in told, len(values)
    told.add(tuple(names))
    if first and np.isnan(values).all():
        reason = reasons.get(names[0], "it returned None")
        which = f"the reward {names[0]!r} is" if len(names) == 1 else f"all rewards, {names}, are"
        raise ValueError(
            f"{which} missing for all {rows} rows of the first scoring; the first reason: {reason}; mend the reward or the data"
        )
    lost = np.isnan(values)
    for failure in failures:
        lost[failure.row, names.index(failure.name)] = True
    for name, share in zip(names, lost.mean(axis=0), strict=True):
        if share > MANY and name not in told:
            told.add(name)
            reason = reasons.get(name, "it returned None")
            _LOGGER.warning("the reward %r failed on %.0f%% of %d rows; the first reason: %s", name, 100 * share, rows, reason)
