"""The program as a process: `python -m jaxrl_llm`, or `jaxrl-llm`."""

import _thread
import os
import sys
import threading
from typing import NoReturn

from jaxrl_llm import cli


def program() -> NoReturn:
    """`main` as a process: what was interrupted ends at once, since a compilation under way would crash as Python ends."""
    sys.unraisablehook = _not_lost
    status = cli.main()
    if status == cli.INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _not_lost(unraisable) -> None:
    """Ctrl-C that came within a callback of the garbage collector, where Python would ignore it, comes once more."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.1, _thread.interrupt_main).start()  # once this callback is over
    else:
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    program()
