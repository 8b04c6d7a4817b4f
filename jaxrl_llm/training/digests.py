"""Digests of the files in a folder, which lie beside them: what was flipped, cut, lost or copied in part is found."""

import concurrent.futures
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

from jaxrl_llm.training.bucket import Folder, files_below, folder

NAME = "digests.json"
# Orbax writes the time of the end into the second one, after the end.
_OTHER = (NAME, "_CHECKPOINT_METADATA")


def write_digests(directory: Folder) -> None:
    """Writes the SHA-256 of every file below `directory` into `directory/digests.json`."""
    digests = _digests(directory, tuple(_files(directory)))
    (directory / NAME).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


def with_digests(handler: Any) -> Any:
    """An Orbax handler that writes the digests of its folder before Orbax gives that its name: none is ever without."""
    handler.finalize = functools.partial(_finalize, handler.finalize)
    return handler


def _finalize(plain: Callable, directory) -> None:
    plain(directory)
    write_digests(folder(directory))


def fault(directory: Folder) -> str:
    """What is wrong with the files below `directory`, "" if nothing is."""
    try:
        expected = json.loads((directory / NAME).read_bytes())
        names = [] if isinstance(expected, dict) else ["the digests"]
        # A second look at files that nobody touched is free.
        found = {} if names else _digests_of(directory, tuple((name, *_stamp(directory / name)) for name in expected))
    except FileNotFoundError as error:
        lost = pathlib.Path(str(error.filename or error))
        return f"{directory} has no {NAME}" if lost.name == NAME else f"{lost} is missing"
    except (OSError, ValueError) as error:
        return f"{directory / NAME} cannot be read: {error}"
    names += [name for name in found if found[name] != expected[name]]
    return f"the bytes of {directory / names[0]} are not those that were written" if names else ""


def _stamp(path: Folder) -> tuple[int, int]:
    status = path.stat()
    return (status.st_size, status.st_mtime_ns) if isinstance(path, pathlib.Path) else (status.length, status.mtime)


@functools.lru_cache(maxsize=16)
def _digests_of(directory: Folder, stamped: tuple[tuple[str, int, int], ...]) -> dict[str, str]:
    return _digests(directory, tuple(name for name, *_ in stamped))


def _digests(directory: Folder, names: tuple[str, ...]) -> dict[str, str]:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(lambda name: _digest(directory / name), names), strict=True))


def _digest(path: Folder) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(directory: Folder) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in files_below(directory) if path.name not in _OTHER)
