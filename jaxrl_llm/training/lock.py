"""One process at a time writes to a workdir."""

import contextlib
import errno
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

from jaxrl_llm import distributed

NAME = "run.lock"
_LOGGER = logging.getLogger(__name__)
# What says that somebody has the lock; anything else, that this file system has none.
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextlib.contextmanager
def locked(workdir: pathlib.Path, store: Any = None) -> Iterator[None]:
    """Owns the workdir within the context; of several hosts of one run the first does so for all.

    The lock is one of the operating system on `run.lock`, so that it ends with its process however that ends, be it on
    another host of a network file system that has locks. What stands in the file says who it is; it is emptied in the end.
    Where the file system has no locks, the process that the file names is looked for; so it is where the file is a copy of
    one in another `store`, such as a bucket.

    Raises ValueError: another process owns it; the message says which.
    """
    if not distributed.is_first():
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / NAME).open("a+", encoding="utf-8") as file:
        _take(file, store or workdir, store in (None, workdir))
        _write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}))
        try:
            yield
        finally:
            _write(file, "")


def _take(file, workdir: Any, has_locks: bool) -> None:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        has_locks = False
    except OSError as error:
        if error.errno in _HELD:
            raise _refusal(workdir, _owner(file)) from error
        has_locks = False
    owner = _owner(file)
    if not owner:
        return
    elsewhere = owner.get("host") != socket.gethostname()
    if not elsewhere and not has_locks and _lives(owner):
        raise _refusal(workdir, owner)
    if elsewhere:
        _LOGGER.warning(
            "process %s on host %s left the run in %s without an end; if it still runs there, stop one of the two",
            owner.get("pid"), owner.get("host"), workdir,
        )  # fmt: skip


def _refusal(workdir: pathlib.Path, owner: dict[str, Any]) -> ValueError:
    who = f"process {owner.get('pid', '(unknown)')} on host {owner.get('host', '(unknown)')}"
    return ValueError(f"{who} is training in {workdir}; wait for its end, stop it, or give another --workdir")


def _owner(file) -> dict[str, Any]:
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:  # empty, or cut by a full disk
        return {}
    return found if isinstance(found, dict) else {}


def _write(file, text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()


def _lives(owner: dict[str, Any]) -> bool:
    """Whether that very process, rather than another with its number, is running."""
    pid = owner.get("pid")
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (OSError, TypeError):
        return False
    return _started(pid) == owner.get("started")


def _started(pid: int) -> str:
    """When a process started, in the system's own measure; "" where it does not say."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
