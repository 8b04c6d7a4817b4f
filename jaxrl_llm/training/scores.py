"""Scoring by rewards that may fail: what is logged, what is warned of, and what stops a run."""

import contextlib
import functools
import logging
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures

import numpy as np

from jaxrl_llm import distributed
from jaxrl_llm.environments.base import Agent, Environment, Transition, read_transition, resetting, running, stepping
from jaxrl_llm.rewards import RewardFailure, RewardPool
from jaxrl_llm.rewards.worker import Call, Fact, Told
from jaxrl_llm.rollouts.collect import Score
from jaxrl_llm.rollouts.episodes import Played
from jaxrl_llm.rollouts.harness import Agents
from jaxrl_llm.rollouts.io import Ahead
from jaxrl_llm.training import metrics
from jaxrl_llm.training.timing import timed

MANY = 0.1  # share of the values of a reward above which missing ones are warned of
_LOGGER = logging.getLogger(__name__)


def make_score(
    pool: RewardPool, rewards: Mapping[str, Callable], deadline_seconds: float, *, told: set, failures: list[RewardFailure],
    log: pathlib.Path | None = None, step: int = 0,
) -> tuple[Score, Ahead | None]:  # fmt: skip
    """Builds `score(*call, ask=None) -> rewards [N, K]`, NaN where missing, of the fields of a `Call`; the same ahead of time.

    `ask(rewards so far [N, K])` gives those of networks of the run by name, see `rollouts.asking`.

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

    names, pooled = list(rewards), _in_workers(rewards)

    def concluded(values: np.ndarray, found: Sequence[RewardFailure], ask: Callable | None) -> np.ndarray:
        whole = np.full((len(values), len(names)), np.nan)
        whole[:, [names.index(name) for name in pooled]] = values
        for name, own in ask(whole).items() if ask is not None else ():
            whole[:, names.index(name)] = [np.nan if value is None else value for value in own]
        _note(found, failures, log, step)
        _tell(names, whole, found, told)
        return whole

    def score(*call, ask: Callable | None = None) -> np.ndarray:
        call = Call(*call)
        own = _own_rows(pooled, len(call.prompts))
        with timed("reward"):
            *asked, groups = call.at(own)
            found = pool.score(pooled, *asked, deadline_seconds, groups) if len(own) else (np.empty((0, len(pooled))), [])
            return concluded(*_joined([(own, *found)], list(pooled), len(call.prompts)), ask)

    @contextlib.contextmanager
    def ahead():
        parts, thread, ends = [], futures.ThreadPoolExecutor(1), math.inf

        def part_score(*call):
            *asked, _ = call
            return pool.score(pooled, *asked, min(deadline_seconds, max(ends - time.monotonic(), 0.0)))

        def submit(rows, *asked) -> None:
            places = [place for place, row in enumerate(rows) if distributed.is_own(row)]
            if places:
                parts.append(([rows[place] for place in places], thread.submit(part_score, *Call(*asked).at(places))))

        def rest(*call, ask: Callable | None = None) -> np.ndarray:
            nonlocal ends
            call = Call(*call)
            # From now on the run waits: what has not begun shares one deadline, however many parts there are.
            ends = time.monotonic() + deadline_seconds
            submitted = {int(row) for rows, _ in parts for row in rows}
            missing = [row for row in range(len(call.prompts)) if row not in submitted and distributed.is_own(row)]
            if missing:
                submit(missing, *call.at(missing))
            with timed("reward"):
                found = [(rows, *part.result()) for rows, part in parts]
                return concluded(*_joined(found, list(pooled), len(call.prompts)), ask)

        try:
            yield submit, rest
        finally:
            thread.shutdown(cancel_futures=True)

    return score, ahead if pooled and all(map(_by_row, pooled.values())) else None


def _in_workers(functions: Mapping[str, Callable]) -> dict[str, Callable]:
    """Those that the pool is asked for, and not networks of the run."""
    return {name: function for name, function in functions.items() if not hasattr(function, "asks")}


def make_facts(
    pool: RewardPool, functions: Mapping[str, Callable], deadline_seconds: float, *, told: set, failures: list[RewardFailure],
    log: pathlib.Path | None = None, step: int = 0,
) -> Callable[..., dict[str, list]]:  # fmt: skip
    """Builds `facts(*call) -> values of N rows by name`, NaN where missing: what functions say of rows beside rewards.

    The first process asks for all. The arguments are those of `make_score`.
    """
    asked = {name: Fact(function) for name, function in _in_workers(functions).items()}

    def facts(*call, ask: Callable | None = None) -> dict[str, list]:
        *given, groups = Call(*call)
        with timed("reward"):
            own = pool.score(asked, *given, deadline_seconds, groups) if distributed.is_first() else None
            values, found = distributed.gathered(own)[0]
        _note(found, failures, log, step)
        told_of = dict(zip(asked, values.T.tolist(), strict=True))
        for name, own in ask().items() if ask is not None else ():
            told_of[name] = own if isinstance(own, np.ndarray) else [np.nan if value is None else value for value in own]
        lost = [[np.nan if isinstance(value, float) and value != value else 0.0 for value in own] for own in told_of.values()]
        _tell(list(told_of), np.array(lost).T, found, told, "fact")
        return told_of

    return facts


def make_environment(
    pool: RewardPool, environment: Environment | Agent, deadline_seconds: float, *, told: set, failures: list[RewardFailure],
    log: pathlib.Path | None = None, step: int = 0, **settings,
) -> Played | Agents:  # fmt: skip
    """The environment as `rollouts.Io` wants it, in the workers of the pool; the first process asks for all rows.

    Args:
      pool: with its workers.
      environment: of them.
      deadline_seconds: for all rows that are asked at a time, or for all agents.
      told, failures, log, step: as in `make_score`.
      **settings: fields of `Played`: `by`, `turns`, `turn_tokens`, `overlap`; of no use to agents.
    """

    # What is asked goes on while others are sampled; the thread that asks takes part where processes wait for each other.
    thread = futures.ThreadPoolExecutor(1, thread_name_prefix="environment")

    def asked(name: str, call: Callable, texts: list[str], columns: dict[str, list]) -> Callable[[], list[Transition | str]]:
        question, own = {name: Told(call)}, None
        if distributed.is_first():
            own = thread.submit(pool.score, question, texts, texts, columns, deadline_seconds)
        return functools.partial(answered, name, own)

    def answered(name: str, own: futures.Future | None) -> list[Transition | str]:
        with timed("reward"):
            values, found = distributed.gathered(own and own.result())[0]
        answers = [_transition(value) for (value,) in values]
        reasons = {failure.row: failure.reason for failure in found}
        failed = {row: reasons.get(row, answer) for row, answer in enumerate(answers) if isinstance(answer, str)}
        found = [RewardFailure(name, row, reason) for row, reason in failed.items()]
        _note(found, failures, log, step)
        values = np.array([[np.nan if row in failed else 0.0] for row in range(len(answers))])
        _tell([name], values, found, told, "environment")
        return [failed.get(row, answer) for row, answer in enumerate(answers)]

    def reset(examples: list, seeds: list[int]) -> list[Transition | str]:
        columns = {"example": examples, "seed": seeds}
        return asked("environment.reset", resetting(environment), [""] * len(seeds), columns)()

    def step_of(states: list[bytes], said: list[str]) -> Callable[[], list[Transition | str]]:
        return asked("environment.step", stepping(environment), said, {"state": states})

    def run(addresses: list[str], examples: list) -> list[Transition | str]:
        columns = {"address": addresses, "example": examples}
        return asked("environment.run", running(environment), [""] * len(addresses), columns)()

    if isinstance(environment, Agent):
        return Agents(run)
    return Played(reset, step_of, environment.tools, environment.stop, environment.roles, **settings)


def _note(found: Sequence[RewardFailure], failures: list[RewardFailure], log: pathlib.Path | None, step: int) -> None:
    """Adds failures to those that there are, and to the log where there is one."""
    failures.extend(found)
    for failure in found if log is not None else ():
        metrics.append_jsonl(log, {"step": step} | failure._asdict())


def _transition(value: str | float) -> Transition | str:
    """The transition that a worker wrote, or why there is none."""
    if not isinstance(value, str):
        return "no answer"
    try:
        return read_transition(value)
    except ValueError as error:
        return str(error)


def _by_row(reward: Callable) -> bool:
    """Whether a reward looks at one row at a time, in a process of its own."""
    return getattr(reward, "rowwise", False) and not getattr(reward, "in_process", False)


def _own_rows(rewards: Mapping[str, Callable], count: int) -> Sequence[int]:
    """Of the rows that all processes have, those that this one scores.

    A reward that looks at one row at a time is asked where the row's number falls, another one in the first process. What
    runs on the devices of all of them is asked by all.
    """
    if all(map(_by_row, rewards.values())):
        return list(filter(distributed.is_own, range(count)))
    everywhere = any(getattr(reward, "in_process", False) for reward in rewards.values())
    return range(count if everywhere or distributed.is_first() else 0)


def _joined(parts: Sequence[tuple], names: list[str], count: int) -> tuple[np.ndarray, list[RewardFailure]]:
    """The values [N, K] and failures of the parts `(rows, values, failures)` of all processes, as if they had been one."""
    parts = {tuple(rows): part for own in reversed(distributed.gathered(parts)) for rows, *part in own}
    values = np.empty((count, len(names)))
    for rows, (own, _) in parts.items():
        values[list(rows)] = own
    found = [failure._replace(row=int(rows[failure.row])) for rows, (_, failures) in parts.items() for failure in failures]
    return values, sorted(found, key=lambda failure: (names.index(failure.name), failure.row))


def timeouts(failures: Sequence[RewardFailure]) -> float:
    """Number of rows that took too long alone."""
    return float(sum(failure.timed_out for failure in failures))


def _tell(names: list[str], values: np.ndarray, failures: Sequence[RewardFailure], told: set, kind: str = "reward") -> None:
    if not values.size:
        return
    reasons = {failure.name: failure.reason for failure in reversed(failures)}
    first, rows = tuple(names) not in told, len(values)
    told.add(tuple(names))
    if first and np.isnan(values).all():
        reason = reasons.get(names[0], "it returned None")
        which = f"the {kind} {names[0]!r} is" if len(names) == 1 else f"all {kind}s, {names}, are"
        raise ValueError(
            f"{which} missing for all {rows} rows of the first scoring; the first reason: {reason}; mend the {kind} or the data"
        )
    lost = np.isnan(values)
    for failure in failures:
        lost[failure.row, names.index(failure.name)] = True
    for name, share in zip(names, lost.mean(axis=0), strict=True):
        if share > MANY and name not in told:
            told.add(name)
            reason = reasons.get(name, "it returned None")
            message = "the %s %r failed on %.0f%% of %d rows; the first reason: %s"
            _LOGGER.warning(message, kind, name, 100 * share, rows, reason)
