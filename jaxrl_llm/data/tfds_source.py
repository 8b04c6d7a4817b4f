"""Examples from TensorFlow Datasets, read as a random-access data source without TensorFlow."""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrl_llm.data.columns import require_prompt, select_columns
from jaxrl_llm.data.sources import Source


def tfds_source(name: str, split: str, data_dir: str | pathlib.Path, columns: Mapping[str, str] | None = None) -> Source:
    """One split of a data set that was prepared with `file_format="array_record"`.

    Args:
      name: as TFDS spells it ("gsm8k", "my_dataset/config:1.0.0"), or what `prepare_jsonl` returned.
      split: such as "train" or "test[:100]".
      data_dir: the folder with prepared data sets.
      columns: our name -> name in the data set; others are left out. Without it every column keeps its name.

    Raises ValueError: the data set is not prepared there, or it lacks a column or the split.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
        data = builder.as_data_source(split=split)
    # Each of these is how tfds says that a data set is not there, not prepared, of another format or without the split.
    except (tfds.core.DatasetNotFoundError, AssertionError, NotImplementedError, ValueError) as error:
        mend = 'prepare it there with file_format="array_record", or with prepare_jsonl'
        raise ValueError(f"data set {name!r}, split {split!r}, cannot be read from {data_dir}: {error}; {mend}") from error
    encoded = frozenset((builder.info.metadata or {}).get("json_columns", ()))

    def fetch(index: int) -> dict[str, Any]:
        row = {column: _plain(value, column in encoded) for column, value in data[index].items()}
        place = f"{name}, {split}, example {index}"
        return require_prompt(select_columns(row, columns, place), row, place)

    source = Source(f"{name} {split}", len(data), fetch)
    if len(source):
        source[0]
    return source


def prepare_jsonl(files: Mapping[str, str | pathlib.Path], data_dir: str | pathlib.Path) -> str:
    """Prepares local JSONL files as a TFDS data set, once; a second call finds the result.

    Args:
      files: split -> file, as in {"train": "train.jsonl", "test": "test.jsonl"}; all rows have the same columns.
      data_dir: the folder for prepared data sets.

    Returns: The name under which `tfds_source(name, split, data_dir)` reads it; it changes with the contents of the files.
    Raises ValueError: a line is malformed or lacks a column that the first row has.
    """
    from jaxrl_llm.data.tfds_builder import JsonlRows, config_for

    config = config_for({split: pathlib.Path(file) for split, file in files.items()}, content_digest(files.values()))
    builder = JsonlRows(config=config, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return f"{builder.name}/{config.name}"


def content_digest(files: Sequence[str | pathlib.Path]) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the contents of `files`, in their order."""
    digests = [hashlib.sha256(pathlib.Path(file).read_bytes()).digest() for file in files]
    return hashlib.sha256(b"".join(digests)).hexdigest()[:12]


def _plain(value: Any, is_json: bool) -> Any:
    """Python values in place of bytes and NumPy scalars; arrays stay arrays."""
    text = value.decode("utf-8") if isinstance(value, bytes) else value
    if is_json:
        return json.loads(text)
    return text.item() if getattr(text, "shape", None) == () else text
