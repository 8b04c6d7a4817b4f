"""Checkpoints of models that see and hear: their text part is a network of ours, and an export writes the other parts too."""

import logging
import pathlib
from typing import Any

import numpy as np

from jaxrl_llm import reading
from jaxrl_llm.networks.tensor_files import Tensors, existing, find_tensors, opened

_LOGGER = logging.getLogger(__name__)
# model_type of whole models -> what their text part means where its fields are missing.
_GEMMA3 = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 2304}
_GEMMA3 |= {"intermediate_size": 9216, "num_hidden_layers": 26}
WHOLE = {
    "gemma3": {"model_type": "gemma3_text"} | _GEMMA3,
    "gemma4": {"model_type": "gemma4_text"},
    "qwen3_5": {"model_type": "qwen3_5_text"},
    "qwen3_5_moe": {"model_type": "qwen3_5_moe_text"},
}
_CLASS = "ForConditionalGeneration"
# What names of the text part begin with in whole checkpoints, and as a network's own.
_BEGINNINGS = {"model.language_model.": "model.", "language_model.model.": "model.", "language_model.lm_head.": "lm_head."}


def is_whole(theirs: dict[str, Any]) -> bool:
    """Whether a config.json is that of a whole model."""
    kind = theirs.get("model_type")
    return isinstance(kind, str) and kind in WHOLE


def text_config(theirs: dict[str, Any], place: str) -> dict[str, Any]:
    """The config.json of its text part.

    Raises ValueError: it has none, or the class is another than `*ForConditionalGeneration`.
    """
    classes = reading.listed(reading.text)(theirs.get("architectures") or [_CLASS], f"{place}: architectures")
    if not classes[0].endswith(_CLASS):
        raise ValueError(f"{place}: architectures={list(classes)} is not supported with model_type={theirs['model_type']!r}")
    if "text_config" not in theirs:
        raise ValueError(f"{place}: text_config is missing; a {theirs['model_type']} checkpoint must have it")
    text = reading.mapping()(theirs["text_config"], f"{place}: text_config")
    tied = {name: theirs[name] for name in ("tie_word_embeddings",) if theirs.get(name) is not None and name not in text}
    quantized = {name: theirs[name] for name in ("quantization_config",) if theirs.get(name) is not None}
    return WHOLE[theirs["model_type"]] | tied | quantized | dict(text)


def text_tensors(found: Tensors) -> tuple[dict, dict]:
    """Tensors of the text part under the names of a network's own, and the others."""
    text, others = {}, {}
    for name, tensor in found.items():
        own = _own_name(name)
        (others if own is None else text)[own or name] = tensor
    return text, others


def _own_name(name: str) -> str | None:
    if name.startswith("lm_head."):
        return name
    return next((new + name.removeprefix(old) for old, new in _BEGINNINGS.items() if name.startswith(old)), None)


def tell_others(others: Tensors, directory: pathlib.Path) -> None:
    """Names in one line what is not part of the network."""
    parts = dict.fromkeys(".".join(name.split(".")[:2]) for name in others)
    text = "%s: %d tensors beside the text part are kept for exports: %s"
    _LOGGER.info(text, directory, len(others), ", ".join(parts) or "none")


class Others:
    """What an export takes from the checkpoint that a text part came from."""

    def __init__(self, directory: str):
        self.directory = pathlib.Path(directory)
        path = self.directory / "config.json"
        if not path.is_file():
            raise ValueError(f"other_parts={directory!r} is not there any more; exports take what is beside the text from it")
        self.config = reading.read_object(existing(path))
        found = find_tensors(self.directory)
        self.tensors = text_tensors(found)[1]
        self._names = {_own_name(name): name for name in found if _own_name(name)}
        self._old, self._new = next(pair for pair in _BEGINNINGS.items() if any(name.startswith(pair[0]) for name in found))

    def name(self, own: str) -> str:
        """What a tensor of the text part is called beside the others."""
        if own in self._names or not own.startswith(self._new):
            return self._names.get(own, own)
        return self._old + own.removeprefix(self._new)

    def read(self, name: str) -> np.ndarray:
        """One of the other tensors."""
        with opened(self.tensors[name]) as read:
            shape = self.tensors[name].shape
            return read(0, shape[0]) if shape else read(0, 1).reshape(())

    def joined(self, text: dict[str, Any]) -> dict[str, Any]:
        """The config.json of the whole model, with this one of its text part."""
        own = {name: value for name, value in text.items() if name not in ("architectures", "dtype")}
        return self.config | {"text_config": {**self.config["text_config"], **own}, "dtype": text["dtype"]}
