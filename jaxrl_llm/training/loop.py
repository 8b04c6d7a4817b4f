"""The training loop: a supervised phase, then an RL phase, resumable at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from jaxrl_llm import rewards
from jaxrl_llm.training import checkpoint, metrics, reinforcement, supervised
from jaxrl_llm.training.evaluation import evaluate
from jaxrl_llm.training.progress import REINFORCEMENT, SUPERVISED, Progress
from jaxrl_llm.training.report import live_report
from jaxrl_llm.training.run import Run, open_run
from jaxrl_llm.training.state import TrainState

Step = Callable[..., tuple[TrainState, Any, dict[str, float], list[dict[str, Any]]]]


class Stopped(Exception):
    """The run was asked to stop, and has saved its state."""


@dataclasses.dataclass(frozen=True)
class Files:
    """What a run writes while it goes on."""

    manager: ocp.CheckpointManager
    writer: Any
    stop: threading.Event
    started: float


def train(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Runs, or resumes, the run in `workdir` to its end.

    Resuming gives the very bits of an uninterrupted run (on CPU, with the same number of cores): parameters, optimizer,
    sampled tokens, `metrics.jsonl`.

    Args:
      config: see `config.default_config`.
      workdir: folder of the run.

    Returns:
      The summary that stands in `workdir/summary.json`.

    Raises:
      ValueError: the configuration is impossible or is not that of the run in `workdir`.
      Stopped: SIGTERM came; the state is saved.
    """
    with open_run(config, workdir) as run, _open_files(run) as files:
        state, progress = _resume(run, files)
        if progress.phase == SUPERVISED:
            step = supervised.make_supervised_step(run)
            state, progress = _run_phase(run, files, step, state, progress, run.config.sft.steps)
            state, progress = _enter_reinforcement(run, files, state.params, progress)
        if progress.phase_step < run.config.rl.steps:
            step = reinforcement.make_reinforcement_step(run, _reference(run))
            state, progress = _run_phase(run, files, step, state, progress, run.config.rl.steps)
            _save(run, files, state, progress)
        return _summary(run, files, progress)


@contextlib.contextmanager
def _open_files(run: Run) -> Iterator[Files]:
    settings = run.config.checkpoint
    manager = checkpoint.open_manager(run.workdir / "checkpoints", keep=settings.keep, best_metric=settings.best_metric)
    writer = _tensorboard(run, manager) if run.config.log.tensorboard else None
    stop = threading.Event()
    earlier = signal.signal(signal.SIGTERM, lambda *_: stop.set()) if _in_main_thread() else None
    try:
        yield Files(manager, writer, stop, time.monotonic() - _elapsed(run))
    finally:
        manager.wait_until_finished()
        manager.close()
        if writer is not None:
            writer.close()
        if earlier is not None:
            signal.signal(signal.SIGTERM, earlier)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _tensorboard(run: Run, manager: ocp.CheckpointManager):
    """Writer that hides what an interrupted process wrote after the latest checkpoint."""
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(run.workdir / "tensorboard"), purge_step=(manager.latest_step() or 0) + 1)


def _elapsed(run: Run) -> float:
    """Seconds that earlier processes of this run took."""
    records = metrics.read_jsonl(run.workdir / "timing.jsonl")
    return records[-1]["elapsed"] if records else 0.0


def _resume(run: Run, files: Files) -> tuple[TrainState, Progress]:
    """State and progress of the latest checkpoint, or of a new run."""
    found = checkpoint.latest_progress(files.manager)
    number, progress = (None, None) if found is None else (found[0], Progress.from_json(found[1]))
    for name in ("metrics.jsonl", "timing.jsonl", "warnings.jsonl", "reward_failures.jsonl"):
        metrics.keep_until(run.workdir / name, 0 if progress is None else progress.step)
    if progress is None:
        if run.config.sft.steps:
            return supervised.initial_state(run), Progress(SUPERVISED)
        return _enter_reinforcement(run, files, run.network.params, Progress(SUPERVISED))
    if progress.phase == SUPERVISED:
        like = supervised.initial_state(run)
    else:
        like = reinforcement.initial_state(run, run.network.params)
    return checkpoint.restore_arrays(files.manager, number, like), progress


def _enter_reinforcement(run: Run, files: Files, params, progress: Progress) -> tuple[TrainState, Progress]:
    """Saves the reference policy and the beginning of the RL phase."""
    if progress.accuracy is None:
        measured, _ = _evaluate(run, params, progress.step)
        progress = dataclasses.replace(progress, accuracy=measured["evaluation/accuracy"])
    progress = dataclasses.replace(progress.entered(REINFORCEMENT), accuracy_before=progress.accuracy)
    if run.method.needs_reference and run.config.rl.steps:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(run.workdir / "reference", params, force=True)
    state = reinforcement.initial_state(run, params)
    _save(run, files, state, progress)
    return state, progress


def _reference(run: Run):
    if not run.method.needs_reference:
        return None
    with ocp.StandardCheckpointer() as checkpointer:
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, run.network.params)
        return checkpointer.restore(run.workdir / "reference", like)


def _run_phase(run: Run, files: Files, step: Step, state, progress: Progress, total: int):
    """Steps, measurements and checkpoints until `total` steps of the phase are done."""
    with live_report(progress.phase, progress.phase_step, total, enabled=run.config.log.live) as show:
        while progress.phase_step < total:
            began = time.monotonic()
            state, cursor, measured, records = step(state, progress.cursor, progress.step)
            progress = progress.advanced(cursor)
            timing = {"seconds": time.monotonic() - began}
            last = progress.phase_step == total
            if last or _due(run.config.evaluation.every, progress):
                params = state.params if progress.phase == SUPERVISED else reinforcement.policy_params(run, state)
                held_out, _ = _evaluate(run, params, progress.step)
                measured |= held_out
                progress = dataclasses.replace(progress, accuracy=held_out["evaluation/accuracy"])
            _log(run, files, progress, measured, records, timing)
            show(measured | {"tokens_per_second": measured["tokens"] / timing["seconds"]}, records)
            if files.stop.is_set():
                _save(run, files, state, progress)
                raise Stopped(f"stopped by SIGTERM after step {progress.step}; the same command resumes the run")
            if not last and progress.phase_step % run.config.checkpoint.every == 0:
                _save(run, files, state, progress, measured)
    return state, progress


def _due(every: int, progress: Progress) -> bool:
    return progress.phase == REINFORCEMENT and every > 0 and progress.phase_step % every == 0


def _evaluate(run: Run, params, step: int):
    settings = run.config.evaluation
    count = min(settings.prompts, len(run.test_source))
    examples = [run.test_source[index] for index in range(count)]
    collect = run.evaluation_collector(params, step)
    return evaluate(
        collect,
        examples,
        samples=settings.samples,
        batch=min(settings.batch, count),
        final_answer=rewards.final_number,
    )


def _log(run: Run, files: Files, progress: Progress, measured, records, timing) -> None:
    head = {"step": progress.step, "phase": progress.phase}
    metrics.append_jsonl(run.workdir / "metrics.jsonl", head | measured)
    elapsed = time.monotonic() - files.started
    metrics.append_jsonl(run.workdir / "timing.jsonl", head | timing | {"elapsed": elapsed})
    every = run.config.log.completions_every
    if records and every and progress.phase_step % every == 0:
        metrics.write_table(run.workdir / "completions" / f"step_{progress.step:06d}.jsonl", records)
    if files.writer is not None:
        for name, value in (measured | timing).items():
            files.writer.add_scalar(name, value, progress.step)
    gap = measured.get("logp_gap", 0.0)
    if progress.phase == REINFORCEMENT and gap > run.config.rl.max_logp_gap:
        warning = {"step": progress.step, "logp_gap": gap, "bound": run.config.rl.max_logp_gap}
        metrics.append_jsonl(run.workdir / "warnings.jsonl", warning)
        logging.getLogger(__name__).warning("sampler and learner differ by %.3g nat at step %d", gap, progress.step)


def _save(run: Run, files: Files, state: TrainState, progress: Progress, measured: dict[str, float] | None = None) -> None:
    """Begins to save; without `measured`, the last held-out accuracy is what a best checkpoint is chosen by."""
    if files.manager.latest_step() == progress.step:
        return
    measured = {"evaluation/accuracy": progress.accuracy} if measured is None else measured
    best = measured.get(run.config.checkpoint.best_metric)
    metrics_of_best = {} if best is None else {run.config.checkpoint.best_metric: best}
    checkpoint.save(files.manager, progress.step, state, progress.to_json(), metrics_of_best)


def _summary(run: Run, files: Files, progress: Progress) -> dict[str, Any]:
    learns_by_reward = run.config.rl.steps > 0
    summary = {
        # Without an RL phase there is one measurement, after the supervised phase.
        "accuracy_before": progress.accuracy_before if learns_by_reward else None,
        "accuracy_after": progress.accuracy,
        "steps": progress.step,
        "wall_seconds": time.monotonic() - files.started,
        "method": run.config.method.name if learns_by_reward else "sft",
        "seed": run.config.seed,
        "workdir": str(run.workdir),
    }
    metrics.write_atomically(run.workdir / "summary.json", [json.dumps(summary, indent=2) + "\n"])
    return summary
