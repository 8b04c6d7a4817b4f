"""Runs whose folder lies in a bucket of Google Cloud Storage.

Objects cannot be appended to. So checkpoints go to the bucket at once, and the small files of a run, such as `metrics.jsonl`,
are written to a folder of this machine and copied to the bucket before each checkpoint: whichever is the latest, what was
measured up to it is there.
"""

import contextlib
import functools
import importlib.util
import pathlib
import tempfile
from collections.abc import Callable, Iterator

from etils import epath

from jaxrl_llm import distributed, reading

SCHEME = "gs://"
Folder = pathlib.Path | epath.Path


def folder(path: str | Folder) -> Folder:
    """A folder of this machine, absolute, or one in a bucket."""
    return epath.Path(path) if str(path).startswith(SCHEME) else pathlib.Path(path).absolute()


def files_below(directory: Folder) -> Iterator[Folder]:
    """All files in a folder and in those inside of it."""
    for path in directory.iterdir():
        yield from files_below(path) if path.is_dir() else [path]


def renamed(directory: Folder, place: Folder) -> None:
    """Gives a folder another name; in a bucket each file is copied, as nothing there has a name that can change."""
    if isinstance(directory, pathlib.Path):
        directory.rename(place)
        return
    for path in files_below(directory):
        target = place / path.relative_to(directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.copy(target)
    directory.rmtree()


@contextlib.contextmanager
def opened(workdir: str | pathlib.Path) -> Iterator[tuple[pathlib.Path, Folder, Callable[[], None]]]:
    """Where the small files of a run lie, where its checkpoints do, and a function that copies what is new of the former there.

    All processes begin with the files of the bucket, and the first one copies. Of a folder of this machine both are the same.

    Raises ValueError: an address that is none of Google Cloud Storage, or its bucket cannot be reached.
    """
    if not str(workdir).startswith(SCHEME):
        place = reading.local(workdir)
        yield place, place, lambda: None
        return
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"{workdir} lies in a bucket, which takes the package gcsfs: pip install gcsfs, or mount the bucket")
    store, known = epath.Path(workdir), {}
    with tempfile.TemporaryDirectory(prefix="jaxrl_llm_") as name:
        place = pathlib.Path(name)
        try:
            for path in store.iterdir() if store.exists() else ():
                if not path.is_dir():
                    (place / path.name).write_bytes(path.read_bytes())
        except Exception as error:
            raise ValueError(f"{workdir} cannot be read: {error}; look at the bucket's name and at who may use it") from error
        copy = functools.partial(_copy, place, store, known)
        try:
            yield place, store, copy
        finally:
            copy()


def _copy(place: pathlib.Path, store: Folder, known: dict[pathlib.Path, tuple[int, int]]) -> None:
    """Copies the files that are not as they are `known` to be in the store."""
    for path in files_below(place) if distributed.is_first() else ():
        stamp = (path.stat().st_size, path.stat().st_mtime_ns)
        if known.get(path) != stamp:
            target = store / path.relative_to(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            known[path] = stamp
