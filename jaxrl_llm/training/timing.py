"""Where the seconds of a step go, and how many programs were compiled for it."""

import contextlib
import contextvars
import functools
import time
from collections.abc import Iterator

import jax

PARTS = ("sample", "reward", "annotate", "pack", "update")
IDLE = "idle"  # what no part accounts for
_COMPILED = "/jax/core/compile/backend_compile_duration"
_compiling = [0.0, 0.0]  # programs that this process has made, or has read from the cache, and the seconds that it took
_clock: contextvars.ContextVar["_Clock | None"] = contextvars.ContextVar("clock", default=None)


class _Clock:
    """Seconds by part; at every moment one part runs."""

    def __init__(self):
        self.seconds, self.part, self.since = dict.fromkeys((*PARTS, IDLE), 0.0), IDLE, time.monotonic()

    def switch(self, part: str) -> str:
        """Lets another part run; the one before."""
        now, before = time.monotonic(), self.part
        self.seconds[before] += now - self.since
        self.part, self.since = part, now
        return before


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    """What runs within counts for this part of the step, and not for the part around it; outside of a step for nothing.

    Args:
      name: one of `PARTS`.
    """
    clock = _clock.get()
    if clock is None:
        yield
        return
    before = clock.switch(name)
    try:
        yield
    finally:
        clock.switch(before)


@contextlib.contextmanager
def timed_step() -> Iterator[dict[str, float]]:
    """A dict that has, when the step is over, its "seconds" and those of each part, which sum to them.

    "idle" is the rest. "compilations" are the programs that were compiled, or read from the compilation cache, and
    "compile_seconds" what that took, within the parts that asked for them.
    """
    _listen()
    timing, clock, before = {}, _Clock(), tuple(_compiling)
    began, token = clock.since, _clock.set(clock)
    try:
        yield timing
    finally:
        _clock.reset(token)
        clock.switch(IDLE)
        compiled, seconds = (now - then for now, then in zip(_compiling, before, strict=True))
        timing |= {"seconds": clock.since - began} | clock.seconds
        timing |= {"compilations": int(compiled), "compile_seconds": seconds}


@functools.cache
def _listen() -> None:
    def count(event: str, seconds: float, **_) -> None:
        if event == _COMPILED:
            _compiling[0] += 1
            _compiling[1] += seconds

    jax.monitoring.register_event_duration_secs_listener(count)
