"""Whether there are sandboxes here, for tests that run programs."""

import os
import pathlib
import time

import pytest

from jaxrl_llm.rewards import sandbox


def _unavailable() -> str:
    try:
        sandbox.check()
    except ValueError as error:
        return str(error)
    return ""


needs_sandbox = pytest.mark.skipif(bool(_unavailable()), reason=_unavailable() or "-")


def in_sandboxes():
    """Ids of the processes in sandboxes that this process started, or whose starter is gone: other tests may have their own."""
    parents = {}
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if b"/python/bin/python" in (path / "cmdline").read_bytes():
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue

    def starter(process):
        while process in parents:
            process = parents[process]
        return process

    return {process for process in parents if starter(process) in (1, os.getpid())}


def outlived(before):
    """Those of them that were not there before and do not end within two seconds."""
    left = in_sandboxes() - before
    for _ in range(40):
        if left:
            time.sleep(0.05)
            left &= in_sandboxes()
    return left
