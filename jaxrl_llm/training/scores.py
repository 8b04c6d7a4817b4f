"""Scoring by rewards that may fail: what is logged, what is warned of, and what stops a run."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxrl_llm.rewards import RewardFailure, RewardPool
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
) -> Callable[..., np.ndarray]:
    """Builds `(prompts, completions, columns) -> rewards [N, K]`, NaN where missing.

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

    def score(prompts, completions, columns) -> np.ndarray:
        with timed("reward"):
            values, found = pool.score(rewards, prompts, completions, columns, deadline_seconds)
        failures.extend(found)
        for failure in found if log is not None else ():
            metrics.append_jsonl(log, {"step": step} | failure._asdict())
        _tell(list(rewards), values, found, told)
        return values

    return score


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
