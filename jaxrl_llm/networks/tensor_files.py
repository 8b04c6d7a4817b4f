"""The files of a checkpoint: which tensors they hold, reading them a block at a time, writing them in shards."""

import contextlib
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jaxrl_llm import reading

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Names of files, no paths: an index must not point out of its folder.
_FILE = re.compile(r"[\w.-]{1,251}\.safetensors")
STORED_DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}
_CODES = {"U8": np.uint8}  # which only some tensors may have


class TensorFile(NamedTuple):
    """Where a tensor is, and what its file's header says of it."""

    file: pathlib.Path  # that holds it
    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]  # of the tensor
    begin: int  # byte of the file at which it begins

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _numpy(self.dtype).itemsize


class Slab(NamedTuple):
    """A tensor that is made of others, or of one index of their first axis."""

    sources: tuple[TensorFile, ...]  # none where `view` has them itself
    index: int | None  # None for the whole of them
    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]  # of the tensor
    view: Callable[..., np.ndarray]  # what the sources have at that index to the tensor

    @property
    def bytes(self) -> int:
        if not self.sources:
            return math.prod(self.shape) * _numpy(self.dtype).itemsize
        return sum(source.bytes // (1 if self.index is None else source.shape[0]) for source in self.sources)


Tensors = Mapping[str, TensorFile | Slab]


def existing(path: pathlib.Path) -> pathlib.Path:
    """`path`; FileNotFoundError says what its folder has instead."""
    if not path.is_file():
        found = sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else "no such directory"
        raise FileNotFoundError(f"{path} is not there (found: {found}); give a directory with config.json and safetensors")
    return path


def find_tensors(directory: pathlib.Path) -> dict[str, TensorFile]:
    """Every tensor of model.safetensors, or of the files that its index names, by the headers alone.

    Raises:
      FileNotFoundError: a file is not there.
      ValueError: a file is damaged, or lacks a tensor that the index says it has.
    """
    expected = {}
    if not (directory / SINGLE).is_file() and (directory / INDEX).is_file():
        index = reading.fields(reading.read_object(directory / INDEX), {"weight_map": _weight_map}, f"{directory / INDEX}: ")
        expected = index.get("weight_map")
        if not expected:
            raise ValueError(f"{directory / INDEX} has no weight_map; fetch it again")
    found = {}
    for file in sorted(set(expected.values())) or [SINGLE]:
        found |= _header(existing(directory / file))
    for name, file in expected.items():
        if name not in found or found[name].file.name != file:
            raise ValueError(f"{name} is not in {directory / file}, where {INDEX} says it is; fetch that file again")
    return found


def _weight_map(value, place: str) -> dict[str, str]:
    files = reading.mapping(reading.text)(value, place)
    for name, file in files.items():
        if not _FILE.fullmatch(file):
            raise reading.wrong(file, f"{place}.{name}", "the name of a safetensors file of the same folder")
    return files


def _header(path: pathlib.Path) -> dict[str, TensorFile]:
    try:
        with safetensors.safe_open(path, framework="numpy"):  # Checks the header, and that the file is as long as it says.
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}); fetch it again") from error
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    begins = {name: 8 + size + entry["data_offsets"][0] for name, entry in header.items()}
    return {name: TensorFile(path, entry["dtype"], tuple(entry["shape"]), begins[name]) for name, entry in header.items()}


def _numpy(dtype: str) -> np.dtype:
    return np.dtype((STORED_DTYPES | _CODES)[dtype])


@contextlib.contextmanager
def opened(tensor: TensorFile | Slab) -> Iterator[Callable[[int, int], np.ndarray]]:
    """Gives a function that reads the rows [first, last) of a tensor, and no more of the file into memory than them.

    Of a `Slab`, all rows are read at once.
    """
    if isinstance(tensor, Slab):
        parts = []
        for source in tensor.sources:
            with opened(source) as read:
                whole = tensor.index is None
                parts.append(read(0, source.shape[0]) if whole else read(tensor.index, tensor.index + 1)[0])
        rows = tensor.view(*parts)
        yield lambda first, last: rows[first:last]
        return
    dtype, row = _numpy(tensor.dtype), math.prod(tensor.shape[1:])
    with tensor.file.open("rb", buffering=0) as file:

        def read(first: int, last: int) -> np.ndarray:
            file.seek(tensor.begin + first * row * dtype.itemsize)
            return np.fromfile(file, dtype, (last - first) * row).reshape(-1, *tensor.shape[1:])

        yield read


def write_tensors(
    directory: pathlib.Path, sizes: Mapping[str, int], tensor: Callable[[str], np.ndarray], max_shard_bytes: int
) -> None:
    """Writes tensors into one file, or several with an index; those of an earlier export are removed.

    Args:
      directory: of the checkpoint.
      sizes: bytes of each tensor, in the order in which they are written.
      tensor: gives a tensor by its name; those of one file are in memory together.
      max_shard_bytes: size from which on another file is begun.
    """
    for stale in (*directory.glob("model-*-of-*.safetensors"), directory / SINGLE, directory / INDEX):
        stale.unlink(missing_ok=True)
    shards = _shards(sizes, max_shard_bytes)
    for file, names in shards.items():
        safetensors.numpy.save_file({name: tensor(name) for name in names}, directory / file, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        write_json(directory / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})


def write_json(path: pathlib.Path, content: dict) -> None:
    """Writes `content`, indented."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def _shards(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
    """Names of tensors in each file: in order, a new file where the next tensor would exceed `limit` bytes."""
    groups, used = [[]], 0
    for name, size in sizes.items():
        if groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups, start=1)}
