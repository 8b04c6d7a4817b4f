"""The TFDS builder behind `prepare_jsonl`; importing this module imports TFDS, which asks that builders live in a package."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxrl_llm.data.files import read_rows


@dataclasses.dataclass(eq=False)
class JsonlConfig(tfds.core.BuilderConfig):
    """Which files make which split."""

    files: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)


def config_for(files: Mapping[str, pathlib.Path], digest: str) -> JsonlConfig:
    """A configuration named after the first file and the contents of all."""
    stem = next(iter(files.values())).stem
    return JsonlConfig(name=f"{stem}-{digest}", version="1.0.0", files=files)


class JsonlRows(tfds.core.GeneratorBasedBuilder):
    """Rows of JSONL files in their order, a feature a column.

    Columns of text, integers or booleans become such features; any other column is kept as JSON text, and its name is
    noted in the metadata under "json_columns". So are floats, which TFDS would round to single precision.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        rows = [row for file in self.builder_config.files.values() for _, row in read_rows(file)]
        exact = {column: _feature([row.get(column) for row in rows]) for column in rows[0]}
        features = {column: feature or tfds.features.Text() for column, feature in exact.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Rows of local JSONL files.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(json_columns=[column for column, feature in exact.items() if feature is None]),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(file) for split, file in self.builder_config.files.items()}

    def _generate_examples(self, path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
        columns, encoded = list(self.info.features), set(self.info.metadata["json_columns"])
        for number, (place, row) in enumerate(read_rows(path)):
            if set(row) != set(columns):
                odd = sorted(set(row) ^ set(columns))[0]
                raise ValueError(f"{place}: column {odd!r} is not in every row; give all rows the same columns")
            yield number, {column: json.dumps(row[column]) if column in encoded else row[column] for column in columns}


def _feature(values: list[Any]) -> tfds.features.FeatureConnector | None:
    """The feature that holds all `values` exactly, or None where only JSON does."""
    kinds = {type(value) for value in values}
    if kinds == {str}:
        return tfds.features.Text()
    if kinds == {bool}:
        return tfds.features.Scalar(np.bool_)
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in values):
        return tfds.features.Scalar(np.int64)
    return None
