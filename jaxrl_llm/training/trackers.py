"""Where curves, completions and the summary of a run go beside its folder: TensorBoard, Weights & Biases, MLflow, Trackio.

Each is told the same, step by step. What a resumed run makes again has the same values, and goes to the same remote run, whose
name there stands in `trackers.json`. Projects and servers are said by the environment variables of each, such as WANDB_PROJECT,
MLFLOW_TRACKING_URI or TRACKIO_PROJECT.
"""

import contextlib
import importlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxrl_llm import reading
from jaxrl_llm.compose import near
from jaxrl_llm.training.metrics import write_atomically

ROWS = 32  # completions of a step that are told
COLUMNS = ("prompt", "completion", "rewards", "length", "finish_reason")
PROJECT = "jaxrl_llm"

Records = Sequence[Mapping[str, Any]]


class Tracker(NamedTuple):
    """What one of them is told."""

    log: Callable[[int, Mapping[str, float]], None]  # measures of a step
    completions: Callable[[int, Records], None]  # records of a step, the first `ROWS`
    summary: Callable[[Mapping[str, Any]], None]  # of the whole run, at its end
    close: Callable[[], None]  # the process ends, or the run


class Told(NamedTuple):
    """A run, as trackers are opened for it."""

    workdir: pathlib.Path
    config: dict[str, Any]  # by dotted keys
    step: int  # the last one that is saved


@contextlib.contextmanager
def open_trackers(names: Sequence[str], told: Told) -> Iterator[list[Tracker]]:
    """The trackers of these names, open.

    Raises ValueError: one that is unknown, or whose package is not there.
    """
    with contextlib.ExitStack() as ending:
        found = [TRACKERS[name](told) for name in map(_known, names)]
        for tracker in found:
            ending.callback(tracker.close)
        yield found


def _known(name: str) -> str:
    """Raises ValueError: as `open_trackers` says."""
    if name not in TRACKERS:
        raise ValueError(f"config.log.trackers has {name!r}{near(name, TRACKERS)}; there are {', '.join(TRACKERS)}")
    module = {"tensorboard": "tensorboardX"}.get(name, name)
    if importlib.util.find_spec(module) is None:
        package = {"mlflow": "mlflow-skinny"}.get(name, name)
        raise ValueError(f"config.log.trackers has {name!r}, which is not installed: pip install {package}")
    return name


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError: as `open_trackers` says, or a name is there twice."""
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice:
        raise ValueError(f"config.log.trackers has {twice!r} twice; name it once")
    list(map(_known, names))


def _remembered(told: Told, name: str, make: Callable[[], str]) -> str:
    """What a remote run is called, made once in the life of a run."""
    path = told.workdir / "trackers.json"
    known = reading.read_object(path) if path.is_file() else {}
    if name not in known:
        known[name] = make()
        write_atomically(path, [json.dumps(known) + "\n"])
    return str(known[name])


def _cells(records: Records) -> list[list[str]]:
    return [[str(record.get(name)) for name in COLUMNS] for record in records]


def _tensorboard(told: Told) -> Tracker:
    from tensorboardX import SummaryWriter

    # Hides what an interrupted process wrote after the latest checkpoint.
    writer = SummaryWriter(str(told.workdir / "tensorboard"), purge_step=told.step + 1)

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def completions(step: int, records: Records) -> None:
        rows = [[cell.replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in _cells(records)]
        table = ["| " + " | ".join(row) + " |" for row in [list(COLUMNS), ["---"] * len(COLUMNS), *rows]]
        writer.add_text("completions", "\n".join(table), step)

    def summary(values: Mapping[str, Any]) -> None:
        writer.add_text("summary", f"```\n{json.dumps(values, indent=2, default=str)}\n```", values.get("steps"))

    return Tracker(log, completions, summary, writer.close)


def _wandb(told: Told) -> Tracker:
    import wandb

    name = _remembered(told, "wandb", lambda: os.urandom(4).hex())
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    run = wandb.init(
        project=project, id=name, name=told.workdir.name, resume="allow", dir=str(told.workdir), config=told.config,
        settings=wandb.Settings(silent=True),
    )  # fmt: skip

    def completions(step: int, records: Records) -> None:
        run.log({"completions": wandb.Table(columns=list(COLUMNS), data=_cells(records))}, step=step)

    return Tracker(lambda step, values: run.log(dict(values), step=step), completions, run.summary.update, run.finish)


def _mlflow(told: Told) -> Tracker:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient()

    def make() -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = client.get_experiment_by_name(name)
        experiment = client.create_experiment(name) if known is None else known.experiment_id
        run = client.create_run(experiment, run_name=told.workdir.name).info.run_id
        params = [Param(key, str(value)[:5000]) for key, value in told.config.items()]
        for start in range(0, len(params), 100):  # as many as one call takes
            client.log_batch(run, params=params[start : start + 100])
        return run

    own = _remembered(told, "mlflow", make)
    client.set_terminated(own, status="RUNNING")

    def log(step: int, values: Mapping[str, float]) -> None:
        # A name may be a folder to it, or a measure, and not both: "loss" and "loss/policy".
        named = {name.replace("/", ".").replace("@", "_at_"): value for name, value in values.items()}
        client.log_batch(own, metrics=[Metric(name, float(value), step, step) for name, value in named.items()])

    def completions(step: int, records: Records) -> None:
        client.log_dict(own, {"columns": list(COLUMNS), "data": _cells(records)}, f"completions/step_{step:06d}.json")

    return Tracker(
        log, completions, lambda values: client.log_dict(own, dict(values), "summary.json"),
        lambda: client.set_terminated(own),
    )  # fmt: skip


def _trackio(told: Told) -> Tracker:
    import trackio

    name = _remembered(told, "trackio", lambda: f"{told.workdir.name}-{os.urandom(3).hex()}")
    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    run = trackio.init(project=project, name=name, resume="allow", config=told.config, embed=False)

    def completions(step: int, records: Records) -> None:
        run.log({"completions": trackio.Table(columns=list(COLUMNS), data=_cells(records))}, step=step)

    def summary(values: Mapping[str, Any]) -> None:
        numbers = {f"summary/{name}": value for name, value in values.items() if isinstance(value, float | int)}
        run.log(numbers, step=values.get("steps"))

    return Tracker(lambda step, values: run.log(dict(values), step=step), completions, summary, run.finish)


TRACKERS: dict[str, Callable[[Told], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
