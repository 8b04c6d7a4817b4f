"""The training loop: phases that learn from examples, from preferences and from rewards, resumable at any moment."""

import contextlib
import dataclasses
import functools
import logging
import math
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from jaxrl_llm import distributed
from jaxrl_llm.networks import Network
from jaxrl_llm.progress import lasting, shown
from jaxrl_llm.training import checkpoint, metrics
from jaxrl_llm.training.ahead import Sampled, from_saved, looking_ahead, to_saved
from jaxrl_llm.training.bucket import Folder
from jaxrl_llm.training.compiling import use_compilation_cache
from jaxrl_llm.training.config import flat_config
from jaxrl_llm.training.evaluation import consequence, gap_bound, warn_of_gap
from jaxrl_llm.training.given import Given
from jaxrl_llm.training.phases import Params, Phase, all_phases, following
from jaxrl_llm.training.report import live_report, say
from jaxrl_llm.training.run import Run, open_run
from jaxrl_llm.training.state import REINFORCEMENT, SUPERVISED, Progress, TrainState
from jaxrl_llm.training.summary import summarise
from jaxrl_llm.training.timing import timed_step
from jaxrl_llm.training.trackers import ROWS, Told, Tracker, open_trackers

_LOGGER = logging.getLogger(__name__)


class Stopped(Exception):
    """The run was asked to stop, and has saved its state."""


@dataclasses.dataclass(frozen=True)
class Files:
    """What a run writes while it goes on."""

    manager: ocp.CheckpointManager
    trackers: list[Tracker]
    stop: list[str]  # the signal that asked for it
    started: float
    told: set[str] = dataclasses.field(default_factory=set)  # kinds of warnings that were given


def train(
    config: ConfigDict, workdir: str | pathlib.Path, *, rewards: Sequence[Callable[..., Any] | str] = (),
    data: Sequence[Mapping[str, Any]] | None = None, held_out: Sequence[Mapping[str, Any]] | None = None,
    network: Network | None = None, callbacks: Sequence[Callable[..., None]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Runs, or resumes, the run in `workdir` to its end.

    Resuming gives the very bits of an uninterrupted run (on CPU, with the same number of cores): parameters, optimizer,
    sampled tokens, `metrics.jsonl`. Python objects stand in `config.json` by what they are, functions by their names and rows
    and networks by a digest, and a run that was given some is resumed with the same ones.

    Args:
      config: see `config.default_config`.
      workdir: folder of the run, of this machine or in a bucket, `gs://BUCKET/FOLDER`.
      rewards: in place of `config.rewards.names`: functions, see docs/tasks.md, and names of others.
      data: in place of the task's source: dicts with the columns that a file would have.
      held_out: the same for the held-out examples; without them, those of `data` are measured.
      network: with its parameters, in place of what `config.network` describes; `config.tokenizer` names its tokenizer.
      callbacks: called after each step with its number, its metrics (a dict) and its records of completions (a list of
        dicts), of several processes in the first one; they must not change either.

    Returns: The summary that stands in `workdir/summary.json`.

    Raises:
      ValueError: the configuration is impossible or is not that of the run in `workdir`.
      Stopped: SIGTERM or SIGINT came; the state is saved. A second SIGINT is a KeyboardInterrupt.
    """
    if config.rounds:
        raise ValueError("config.rounds is set; `jaxrl-llm train` and `training.rounds.train_in_rounds` run rounds")
    use_compilation_cache(config.log.compilation_cache)
    given = Given(tuple(rewards), data, held_out, network, tuple(callbacks))
    speaks = shown(config.log.live and distributed.is_first())
    with speaks, open_run(config, workdir, given) as run, _open_files(run) as files:
        phases = all_phases(run)
        state, progress, kept = _resume(run, files, phases)
        phase = phases[progress.phase]
        state, progress, measured = _run_phase(run, files, phase, state, progress, kept)
        while (after := following(phases, phase.name)) is not None:
            state, progress = _enter(run, files, after, phase.params(state), progress, measured)
            phase = after
            state, progress, measured = _run_phase(run, files, phase, state, progress)
        _save(run, files, state, progress, measured)
        told = summarise(run, phase, progress, time.monotonic() - files.started)
        for tracker in files.trackers:
            tracker.summary(told)
        return told


@contextlib.contextmanager
def _open_files(run: Run) -> Iterator[Files]:
    settings = run.config.checkpoint
    manager = checkpoint.open_manager(run.store / "checkpoints", keep=settings.keep, best_metric=settings.best_metric)
    told = Told(run.workdir, flat_config(run.config), manager.latest_step() or 0)
    stop: list[str] = []
    with contextlib.ExitStack() as ending:
        trackers = ending.enter_context(open_trackers(run.config.log.trackers if distributed.is_first() else (), told))
        ending.callback(manager.close)
        ending.callback(manager.wait_until_finished)
        in_main = threading.current_thread() is threading.main_thread()
        for number, handler in (_listen(stop) if in_main else {}).items():
            ending.callback(signal.signal, number, handler)
        yield Files(manager, trackers, stop, time.monotonic() - _elapsed(run))


def _listen(stop: list[str]) -> dict[int, Any]:
    """SIGTERM and SIGINT ask for an end after the current step, a second SIGINT for one at once; the handlers before.

    What the program was started to ignore, such as SIGINT in the background of a script, is ignored.
    """

    def handle(number, _) -> None:
        if number == signal.SIGINT and stop:
            raise KeyboardInterrupt
        stop.append(signal.Signals(number).name)
        if number == signal.SIGINT:
            print("stopping after the current step, and saving; once more to stop at once", file=sys.stderr)

    heard = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handle) for number in heard}


def _elapsed(run: Run) -> float:
    """Seconds that earlier processes of this run took."""
    records = metrics.read_jsonl(run.workdir / "timing.jsonl")
    elapsed = records[-1].get("elapsed") if records else 0.0
    if not isinstance(elapsed, float | int):
        raise ValueError(f"line {len(records)} of {run.workdir / 'timing.jsonl'} has no 'elapsed'; remove the line")
    return elapsed


def _resume(run: Run, files: Files, phases: dict[str, Phase]) -> tuple[TrainState, Progress, list[Sampled]]:
    """The latest checkpoint, with the files of the run brought back to its step, or the beginning of the first phase."""
    number, told = checkpoint.latest_progress(files.manager) or (None, {})
    plain = told.pop("samples", [])
    progress = Progress.from_json(told) if told else None
    last = 0 if progress is None else progress.step
    _keep_history(run.workdir / "metrics.jsonl", last)
    for name in ("timing.jsonl", "warnings.jsonl", "reward_failures.jsonl"):
        metrics.keep_until(run.workdir / name, last)
    if progress is None:
        first = following(phases, None)
        if first.name == SUPERVISED:
            return first.initial_state(run.network.params), Progress(SUPERVISED), []
        return *_enter(run, files, first, run.network.params, Progress(SUPERVISED), {}), []
    like = phases[progress.phase].initial_state(run.network.params)
    state = checkpoint.restore_arrays(files.manager, number, like)
    arrays = checkpoint.restore_samples(files.manager, number) if plain else {}
    kept = from_saved(arrays, plain, state.method_state["strategy"] if plain else ())
    for step, sampled in enumerate(kept, progress.step + 1):  # of which the lines were taken off with their steps
        for failure in sampled.failures:
            metrics.append_jsonl(run.workdir / "reward_failures.jsonl", {"step": step} | failure._asdict())
    return state, progress, kept


def _keep_history(path: pathlib.Path, last: int) -> None:
    """Brings the history back to the last step, with a warning of steps up to it that are lost, or of a new beginning."""
    before = len(metrics.read_jsonl(path))
    lost = sorted(set(range(1, last + 1)) - set(metrics.keep_until(path, last)))
    if lost:
        _LOGGER.warning(
            "%s has lost %d of the %d steps up to the checkpoint, from step %d on; the run goes on without them",
            path, len(lost), last, lost[0],
        )  # fmt: skip
    if before and not last:
        _LOGGER.warning("there is no checkpoint of a step yet: the %d steps in %s are made again", before, path)


def _enter(
    run: Run, files: Files, phase: Phase, params: Params, progress: Progress, measured: dict[str, Any]
) -> tuple[TrainState, Progress]:
    """Measures and saves the beginning of a phase behind the supervised one, with the reference policy that it needs.

    Args:
      files: its files.
      phase: that begins.
      params: with which it does.
      progress: before it.
      measured: of these parameters by the supervised phase, which is measured as what comes after it.
    """
    if progress.phase != SUPERVISED or measured.get(phase.measure) is None:
        measured = phase.make_evaluation(None)(params, progress.step)
    accuracy = _known(measured, phase.measure)
    progress = dataclasses.replace(progress.entered(phase.name), accuracy_before=accuracy, accuracy=accuracy)
    if phase.needs_reference:
        checkpoint.save_params(_reference_folder(run, phase), params)
    state = phase.initial_state(params)
    _save(run, files, state, progress, measured)
    return state, progress


def _known(measured: dict[str, Any], name: str) -> float | None:
    """A measured value; None where it is missing or not a number, as where all rewards were missing."""
    value = measured.get(name)
    return None if value is None or math.isnan(value) else value


def _reference_folder(run: Run, phase: Phase) -> Folder:
    # Apart for each phase: a run that is killed while it enters one goes on with the reference of the phase before.
    return run.store / ("reference" if phase.name == REINFORCEMENT else f"reference_{phase.name}")


def _reference(run: Run, phase: Phase) -> Params:
    if not phase.needs_reference:
        return None
    return checkpoint.load_params(_reference_folder(run, phase), run.network.params)


def _run_phase(
    run: Run, files: Files, phase: Phase, state: TrainState, progress: Progress, kept: Sequence[Sampled] = ()
) -> tuple[TrainState, Progress, dict[str, Any]]:
    """Steps, with the samples `kept` for them, measurements and checkpoints to the phase's end; what was measured last."""
    if progress.phase_step >= phase.steps:
        return state, progress, {phase.measure: progress.accuracy}
    reference = _reference(run, phase)
    end, overlap = progress.step + phase.steps - progress.phase_step, run.config.rl.staleness > 0 and run.config.rl.overlap
    evaluate = phase.make_evaluation(reference)
    tell = functools.partial(say, enabled=run.config.log.live)
    tell(f"{phase.name}: {phase.steps} steps of {phase.method.name}; the first compiles{_compiled_before(run, phase)}")
    with (
        looking_ahead(kept, end, overlap=overlap and phase.name == REINFORCEMENT) as ahead,
        live_report(progress.phase, progress.phase_step, phase.steps, enabled=run.config.log.live) as show,
    ):
        step = phase.make_step(reference, ahead)
        while progress.phase_step < phase.steps:
            with timed_step() as timing:
                state, cursor, measured, records = step(state, progress.cursor, progress.step)
            progress = progress.advanced(cursor)
            last = progress.phase_step == phase.steps
            if last or _due(run.config.evaluation.every, progress):
                began = time.monotonic()
                measured |= evaluate(phase.params(state), progress.step, state)
                timing["evaluate"] = time.monotonic() - began
                progress = dataclasses.replace(progress, accuracy=_known(measured, phase.measure))
            _log(run, files, progress, measured, records, timing)
            for callback in run.given.callbacks if distributed.is_first() else ():
                callback(progress.step, measured, records)
            show(measured | {"tokens_per_second": measured["tokens"] / timing["seconds"]}, records)
            # Of several hosts one may be told alone: all stop after the same step.
            if told := [signal for stop in distributed.gathered(files.stop) for signal in stop]:
                _save(run, files, state, progress, measured, ahead.finished())
                raise Stopped(f"stopped by {told[0]} after step {progress.step}; the same command resumes the run")
            if not last and progress.phase_step % run.config.checkpoint.every == 0:
                _save(run, files, state, progress, measured, ahead.finished())
    return state, progress, measured


def _compiled_before(run: Run, phase: Phase) -> str:
    """How long a step of this run has compiled, where one has for long."""
    records = metrics.read_jsonl(run.workdir / "timing.jsonl")
    seconds = max((record.get("compile_seconds", 0.0) for record in records if record["phase"] == phase.name), default=0.0)
    return f", which took {lasting(seconds)} before" if seconds >= 1.0 else ""


def _due(every: int, progress: Progress) -> bool:
    return progress.phase != SUPERVISED and every > 0 and progress.phase_step % every == 0


def _log(run: Run, files: Files, progress: Progress, measured, records, timing) -> None:
    head = {"step": progress.step, "phase": progress.phase}
    metrics.append_jsonl(run.workdir / "metrics.jsonl", head | measured)
    elapsed = time.monotonic() - files.started
    metrics.append_jsonl(run.workdir / "timing.jsonl", head | timing | {"elapsed": elapsed})
    every = run.config.log.completions_every
    kept = records and every and progress.phase_step % every == 0
    if kept:
        metrics.write_table(run.workdir / "completions" / f"step_{progress.step:06d}.jsonl", records)
    for tracker in files.trackers:
        tracker.log(progress.step, {name: value for name, value in (measured | timing).items() if value is not None})
        if kept:
            tracker.completions(progress.step, records[:ROWS])
    bound = gap_bound(run.config.rl.max_logp_gap, run.network)
    # Other phases learn from texts that the policy did not sample, but their evaluations sample.
    gaps = {name: measured.get(name, 0.0) for name in ("logp_gap", "evaluation/logp_gap")}
    if progress.phase != REINFORCEMENT or run.config.rl.staleness:  # what was learned since sampling is no gap
        gaps.pop("logp_gap")
    share = measured.get("evaluation/greedy_mismatch", 0.0)
    mismatch = {"evaluation/greedy_mismatch": share} if share > 0 else {}
    for name, gap in gaps.items():
        if gap > bound:
            metrics.append_jsonl(run.workdir / "warnings.jsonl", {"step": progress.step, name: gap, "bound": bound})
    _warn_once(files, {name: gap for name, gap in gaps.items() if gap > bound} | mismatch, bound, progress.step)


def _warn_once(files: Files, found: dict[str, float], bound: float, step: int) -> None:
    """One warning of each kind in the life of a process; every one of them stands in `warnings.jsonl`."""
    new = {name: value for name, value in found.items() if name not in files.told}
    files.told.update(new)
    if "logp_gap" in new:
        text = "sampler and learner differ by %.3g nat at step %d, %s"
        logging.getLogger(__name__).warning(text, new["logp_gap"], step, consequence(bound))
    warn_of_gap(new, bound, step)


def _save(
    run: Run, files: Files, state: TrainState, progress: Progress, measured: dict[str, Any], samples: Sequence[Sampled] = ()
) -> None:
    """Begins to save; `measured` has what a best checkpoint is chosen by, where that was measured.

    `samples` are those that no step has learned from yet.
    """
    if files.manager.latest_step() == progress.step:
        return
    # Only what was measured at this very step: the last measurement says nothing of other parameters.
    best = _known(measured, run.config.checkpoint.best_metric)
    metrics_of_best = {} if best is None else {run.config.checkpoint.best_metric: best}
    arrays, plain = to_saved(samples)
    told = progress.to_json() | ({"samples": plain} if plain else {})
    run.copy()
    checkpoint.save(files.manager, progress.step, state, told, metrics_of_best, arrays)
