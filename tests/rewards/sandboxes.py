"""Whether there are sandboxes here, for tests that run programs."""

import pathlib

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
    """Process ids of all that runs in sandboxes of this machine."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found |= {int(path.parent.name)} if b"/python/bin/python" in path.read_bytes() else set()
        except OSError:
            continue
    return found
