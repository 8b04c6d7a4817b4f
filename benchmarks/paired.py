"""Runs that are compared pair by pair: from one start each, a line of a file for each that is finished, none made twice."""

import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from scipy import stats

from jaxrl_llm.training import loop, metrics
from jaxrl_llm.training.lock import locked
from jaxrl_llm.training.policies import load_policy

SEEDS = 3  # of a complete cell
LEVEL = 0.95
Case = tuple[str, int, str]  # method, seed, regime


class Cell(NamedTuple):
    """One thing against another: what is measured of both, seed by seed."""

    seeds: int  # that both have
    difference: float  # its mean over them
    half: float  # half width of its interval; NaN with fewer than two seeds

    @property
    def complete(self) -> bool:
        """Whether all seeds are there."""
        return self.seeds >= SEEDS

    @property
    def distinguishable(self) -> bool:
        """Whether the interval of a complete cell leaves zero out."""
        return self.complete and abs(self.difference) > self.half


def interval(differences: Sequence[float]) -> Cell:
    """Mean of paired differences and Student's t interval over them, whose seeds are independent and few."""
    count = len(differences)
    if count < 2:
        return Cell(count, float(np.mean(differences)) if count else float("nan"), float("nan"))
    error = float(np.std(differences, ddof=1)) / count**0.5
    return Cell(count, float(np.mean(differences)), float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * error)


def mend(path: pathlib.Path) -> None:
    """Cuts off what a kill left of a last line, so that the next begins one; only who alone writes may do so."""
    if path.exists():
        whole, end, cut = path.read_bytes().rpartition(b"\n")
        if cut:
            path.write_bytes(whole + end)


def known_results(path: pathlib.Path, setting: Callable[[str, str], int | None]) -> list[dict]:
    """The whole lines of earlier calls.

    Args:
      path: of the file; there may be none.
      setting: digest of a regime and a method as they are now, which their results carry; None where there is no such thing.

    Raises:
      ValueError: a line is of a regime that was another one then.
    """
    rows = metrics.read_jsonl(path)
    for number, row in enumerate(rows, 1):
        if row["setting"] != setting(row["regime"], row["method"]):
            raise ValueError(f"{path}: line {number} is of another regime {row['regime']!r}; give another --out")
    return rows


def missing(known: Iterable[dict], cases: Iterable[Case]) -> list[Case]:
    """The cases without a result."""
    done = {(row["method"], row["seed"], row["regime"]) for row in known}
    return [case for case in cases if case not in done]


def finish(
    out: pathlib.Path, cases: Sequence[Case], setting: Callable[[str, str], int | None],
    compete: Callable[[str, int, str, pathlib.Path], dict], minutes: float,
) -> None:  # fmt: skip
    """Makes the results that are missing, one line of `out`/results.jsonl each; what is there of a run that was killed goes on.

    Args:
      out: folder of the results.
      cases: that are wanted, in their order.
      setting: see `known_results`.
      compete: `(method, seed, regime, folder of the run) -> result`, JSON without the three and the setting.
      minutes: after which no further run begins; 0 for none.
    """
    began, results = time.monotonic(), out / "results.jsonl"
    logging.set_verbosity(logging.WARNING)
    # The programs are small and each method has its own: to compile them well would be nearly all of the work.
    jax.config.update("jax_disable_most_optimizations", True)
    with locked(out):
        mend(results)
        last = None
        for method, seed, regime in missing(known_results(results, setting), cases):
            if last not in (None, (method, regime)):
                jax.clear_caches()  # Programs of runs that are over; the next ones read what is equal from the disk.
            last = method, regime
            if minutes and time.monotonic() - began > 60 * minutes:
                print("the time is up; the same command goes on")
                break
            folder = out / f"{regime}_{method}_{seed}"
            result = {"regime": regime, "method": method, "seed": seed, "setting": setting(regime, method)}
            result |= compete(method, seed, regime, folder)
            metrics.append_jsonl(results, result)
            print(json.dumps(result), flush=True)
            shutil.rmtree(folder, ignore_errors=True)


def run(
    folder: pathlib.Path, config: ConfigDict, data: dict[str, list], start: pathlib.Path, beginning: ConfigDict,
    shown: list[dict] | None = None,
) -> tuple[dict, list[dict]]:  # fmt: skip
    """A run from a start that others share, and that is made where it is not there yet.

    Args:
      folder: of the run.
      config: of the run.
      data: the rows "data" and "held_out", see `loop.train`.
      start: folder of the supervised run that makes the policy of the beginning.
      beginning: its configuration.
      shown: rows that it learns from; None for those of `data`.

    Returns: The summary and the metrics of the steps, or {"failed": why} and none.
    """
    if not (start / "summary.json").exists():
        loop.train(beginning, start, **(data if shown is None else data | {"data": shown}))
    try:
        summary = loop.train(config, folder, network=load_policy(str(start))[0], **data)
    except (ValueError, TypeError, FloatingPointError) as error:
        return {"failed": f"{type(error).__name__}: {error}"}, []
    return summary, metrics.read_jsonl(folder / "metrics.jsonl")
