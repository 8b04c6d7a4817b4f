"""Times repeated calls, and tells how quiet the machine was meanwhile."""

import os
import statistics
import time
from collections.abc import Callable

import psutil


def timed(call: Callable[[int], object], repeats: int) -> tuple[list[float], float]:
    """Runs `call(0)` to `call(repeats - 1)`, each of which must end with its work done.

    Returns:
      Seconds of each call, and the share of the machine that other processes used during all of them.
    """
    before, seconds = _machine_seconds(), []
    for repeat in range(repeats):
        begin = time.perf_counter()
        call(repeat)
        seconds.append(time.perf_counter() - begin)
    whole, own, wall = (b - a for a, b in zip(before, _machine_seconds(), strict=True))
    return seconds, max(0.0, whole - own) / (wall * os.cpu_count())


def summary(seconds: list[float], others_cpu: float) -> dict[str, float]:
    """Median and range of the seconds; trust them where `others_cpu` is below 0.03."""
    return {
        "seconds": round(statistics.median(seconds), 4),
        "fastest_s": round(min(seconds), 4),
        "slowest_s": round(max(seconds), 4),
        "others_cpu": round(others_cpu, 3),
    }


def _machine_seconds() -> tuple[float, float, float]:
    """Seconds of computing by the whole machine and by this process, and the time of day."""
    whole, own = psutil.cpu_times(), psutil.Process().cpu_times()
    return sum(whole) - whole.idle - getattr(whole, "iowait", 0.0), own.user + own.system, time.perf_counter()
