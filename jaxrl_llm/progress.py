"""How far what takes long is, and when it ends: a bar on a terminal, elsewhere a line every so often; on stderr, for programs.

Libraries are silent: what takes long within `shown(True)` speaks. Of a program that is compiled nobody knows the end, so that
lines say for how long it has been.
"""

import contextlib
import contextvars
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

SECONDS_BETWEEN_LINES = 10.0
_shown: contextvars.ContextVar[bool] = contextvars.ContextVar("shown", default=False)
_compiling: dict[int, tuple[str, float]] = {}  # by thread, a program and since when


@contextlib.contextmanager
def shown(enabled: bool) -> Iterator[None]:
    """What takes long within says so, compilations included, or, where not enabled, nothing does."""
    token, over = _shown.set(enabled), threading.Event()
    if enabled:
        _listen()
        threading.Thread(target=_tell_of_programs, args=(over,), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        _shown.reset(token)


@contextlib.contextmanager
def advancing(what: str, total: float, unit: str = "") -> Iterator[Callable[[float], None]]:
    """Context with `advance(amount)`, towards the total; of what is done within seconds nothing is said.

    Args:
      what: such as "loading parameters".
      total: what there is to do.
      unit: see `paced`.
    """
    done = 0.0

    def advance(amount: float) -> None:
        nonlocal done
        done += amount
        told(done, total)

    if not _shown.get():
        yield lambda amount: None
    elif not sys.stderr.isatty():
        told = paced(_say, what, unit)
        yield advance
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        with Progress(TextColumn("{task.description}"), BarColumn(), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            told = paced(lambda line: bar.update(task, description=line, completed=done), what, unit, every=0.2)
            yield advance


def paced(
    say: Callable[[str], Any], what: str, unit: str = "", *, every: float = SECONDS_BETWEEN_LINES
) -> Callable[[float, float], None]:
    """`told(done, total)` that says a line where the last one, or the beginning, is `every` seconds ago.

    Args:
      say: is given the lines.
      what: they begin with.
      unit: of the numbers; "bytes" are written as GB.
      every: seconds between two lines.
    """
    began = last = time.monotonic()

    def told(done: float, total: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < every or done >= total:
            return
        last = now
        size = f"{done / 1e9:.1f} of {total / 1e9:.1f} GB" if unit == "bytes" else f"{done:g} of {total:g} {unit}".rstrip()
        say(f"{what}: {size}" + (f", about {lasting((total - done) / done * (now - began))} left" if done else ""))

    return told


def lasting(seconds: float) -> str:
    """A time as people say it: "40 s", "3 min", "2.5 h"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def programs_under_way() -> list[str]:
    """A line for each program that has been compiled for long."""
    waited = {name: time.monotonic() - since for name, since in list(_compiling.values())}
    return [
        f"compiling {name}: {lasting(seconds)} so far" for name, seconds in waited.items() if seconds >= SECONDS_BETWEEN_LINES
    ]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _tell_of_programs(over: threading.Event) -> None:
    while not over.wait(SECONDS_BETWEEN_LINES):
        for line in programs_under_way():
            _say(line)


@functools.cache
def _listen() -> None:
    import jax

    compilation = "/jax/core/compile/backend_compile_duration"

    def begun(event: str, value: float, fun_name: str = "", **_: Any) -> None:
        if event == compilation:
            _compiling[threading.get_ident()] = (fun_name.removeprefix("jit(").removesuffix(")"), time.monotonic())

    def ended(event: str, seconds: float, **_: Any) -> None:
        if event == compilation:
            _compiling.pop(threading.get_ident(), None)

    jax.monitoring.register_scalar_listener(begun)
    jax.monitoring.register_event_duration_secs_listener(ended)
