"""Rows of files as people have them: JSON lines, plain or compressed, Parquet, and data sets that `datasets` saved."""

import gzip
import io
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from jaxrl_llm import reading
from jaxrl_llm.progress import advancing

Row = tuple[str, dict[str, Any]]
TABLES = (".parquet", ".arrow")
_COMPRESSED = (".gz", ".zst")


def read_rows(path: str | pathlib.Path) -> list[Row]:
    """The rows of a file, or of all files of a folder in the order of their names, each with its place for messages.

    Args:
      path: JSON lines in UTF-8 (`.jsonl`, `.jsonl.gz`, `.jsonl.zst`; a byte-order mark is no part of them), Parquet, or a
        folder with such files or with what `datasets.Dataset.save_to_disk` wrote. Parquet, Arrow and zstd need pyarrow.

    Raises ValueError: there is no such file, it holds no rows, or a line is no JSON object; the message gives file and line.
    """
    path = pathlib.Path(path)
    rows = [row for file in _files(path) for row in _rows_of(file)]
    if not rows:
        raise ValueError(f"{path} holds no rows; give a file with one JSON object a line")
    return rows


def parse_row(line: str, place: str) -> dict[str, Any]:
    """The JSON object that `line` is.

    Raises ValueError: as `reading.parse_object` says, or a column stands twice.
    """
    mend = "write one complete JSON object a line, with line breaks inside strings as \\n and null where there is no value"
    if line.lstrip().startswith("["):
        mend = "write the objects of a JSON array one a line, as `jq -c '.[]'` does"
    return reading.parse_object(line, place, mend, pairs=_columns)


def _columns(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return found


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(
            f"{path}: there is no such file or folder; correct the path (it is looked for in {pathlib.Path.cwd()})"
        )
    state = path / "state.json"
    if state.is_file():
        named = reading.read_object(state).get("_data_files")
        if not isinstance(named, list) or not all(
            isinstance(file, dict) and isinstance(file.get("filename"), str) for file in named
        ):
            raise ValueError(f"{state}: '_data_files' is {named!r:.80}; save the data set once more with save_to_disk")
        return [path / pathlib.PurePath(file["filename"]).name for file in named]
    if (path / "dataset_dict.json").is_file():
        splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        raise ValueError(f"{path} holds several splits of a data set; give the folder of one of them: {splits}")
    found = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file) in (".jsonl", *TABLES))
    kinds = sorted({_kind(file) for file in found})
    if len(kinds) != 1:
        raise ValueError(
            f"{path} holds files of the kinds {kinds or 'none'}; give a folder of .jsonl or of .parquet files, or one file"
        )
    return found


def _kind(file: pathlib.Path) -> str:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    return (suffixes[-2:-1] or [""])[0] if suffixes and suffixes[-1] in _COMPRESSED else (suffixes or [""])[-1]


def _rows_of(file: pathlib.Path) -> Iterator[Row]:
    if _kind(file) in TABLES:
        return _rows_of_table(file)
    return ((place, parse_row(line, place)) for place, line in _lines(file))


def _lines(file: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Places and texts of the lines that are not blank."""
    try:
        # Of what is compressed nobody knows how long it is.
        size = 0 if file.suffix.lower() in _COMPRESSED else file.stat().st_size
        with _opened(file) as stream, advancing(f"reading {file}", size, "bytes") as advance:
            for number, line in enumerate(stream, 1):
                advance(len(line))
                place = f"{file}, line {number}"
                text = _decoded(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, place)
                if text.strip():
                    yield place, text
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file} cannot be read: {error}; is it whole, and of the kind that its name says?") from error


def _opened(file: pathlib.Path):
    suffix = file.suffix.lower()
    if suffix == ".gz":
        return gzip.open(file, "rb")
    if suffix == ".zst":
        return io.BufferedReader(_pyarrow(file).input_stream(str(file), compression="zstd"))
    return open(file, "rb")


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if line.startswith((b"\xff\xfe", b"\xfe\xff")) else "another encoding"
        found = f"byte 0x{line[error.start]:02x} at position {error.start + 1} is no UTF-8, the file seems to be in {encoding}"
        raise ValueError(f"{place}: {found}; save it as UTF-8, for instance by `iconv -f latin1 -t utf-8`") from error


def _rows_of_table(file: pathlib.Path) -> Iterator[Row]:
    pyarrow = _pyarrow(file)
    try:
        if file.suffix.lower() == ".parquet":
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(file)
        else:
            with pyarrow.memory_map(str(file)) as source:
                table = pyarrow.ipc.open_stream(source).read_all()
        rows = table.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())}; is it whole?") from error
    for number, row in enumerate(rows, 1):
        yield f"{file}, row {number}", {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    """`value` without the fields that tables add to a record because another row has them."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _pyarrow(file: pathlib.Path):
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise ValueError(f"{file} needs pyarrow to be read: pip install pyarrow, or jaxrl_llm[data]") from error
    return pyarrow
