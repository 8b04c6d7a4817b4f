"""What a run shows while it runs: a live panel on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from jaxrl_llm import distributed

SHOWN = (
    "loss", "reward", "evaluation/accuracy", "evaluation/loss", "pair_accuracy", "pair_margin",
    "evaluation/pair_accuracy", "label_accuracy", "evaluation/label_accuracy",
    "entropy", "reference_kl", "behavior_kl", "length/mean", "truncated",
    "uniform_groups", "surrogate/positive_advantage", "surrogate/negative_advantage", "gradient_norm", "logp_gap",
    "tokens_per_second",
)  # fmt: skip
SECONDS_BETWEEN_LINES = 5.0

# One for all that is said: its panel moves aside for a line, into which another console would write.
_CONSOLE = Console()

Show = Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]]], None]


def say(text: str, *, enabled: bool = True) -> None:
    """One line on the console, above the panel where there is one; of several processes the first speaks."""
    if enabled and distributed.is_first():
        _CONSOLE.print(Text(text), soft_wrap=True)


@contextlib.contextmanager
def live_report(title: str, done: int, total: int, *, enabled: bool = True) -> Iterator[Show]:
    """Context with `show(metrics, records)`, to be called after each step.

    Args:
      title: name of the phase.
      done: steps done before.
      total: steps of the phase.
      enabled: False shows nothing.
    """
    enabled = enabled and distributed.is_first()
    if not enabled:
        yield lambda metrics, records: None
    elif _CONSOLE.is_terminal:
        with _live_panel(_CONSOLE, title, done, total) as show:
            yield show
    else:
        yield _plain_lines(_CONSOLE, title, done, total)


@contextlib.contextmanager
def _live_panel(console: Console, title: str, done: int, total: int) -> Iterator[Show]:
    progress = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    task = progress.add_task(title, completed=done, total=total)
    seen: dict[str, Any] = {}
    with Live(console=console, refresh_per_second=4) as live:

        def show(metrics, records):
            seen.update(metrics)
            progress.advance(task)
            samples = map(_sample_panel, records[:2])
            live.update(Group(progress, _metrics_table(seen, console.width), *samples))

        yield show


def _plain_lines(console: Console, title: str, done: int, total: int) -> Show:
    steps, last = done, float("-inf")

    def show(metrics, records):
        nonlocal steps, last
        steps += 1
        if steps in (done + 1, total) or time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            values = "  ".join(f"{name} {metrics[name]:.4g}" for name in SHOWN if metrics.get(name) is not None)
            console.print(Text(f"{title} {steps}/{total}  {values}"), soft_wrap=True)

    return show


def _metrics_table(metrics: Mapping[str, Any], width: int) -> Table:
    names = [name for name in SHOWN if metrics.get(name) is not None]
    table = Table.grid(padding=(0, 2))
    beside = 3 if width >= 120 else 2  # of the longest names
    for start in range(0, len(names), beside):
        cells = [f"[dim]{name}[/] {metrics[name]:.4g}" for name in names[start : start + beside]]
        table.add_row(*cells)
    return table


def _sample_panel(record: Mapping[str, Any]) -> Panel:
    text = Text(f"{record['prompt'][-200:]}", style="dim")
    text.append(record["completion"][-400:], style="default")
    return Panel(text, title=f"reward {record['rewards']}", title_align="left")
