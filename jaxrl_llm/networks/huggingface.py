"""Hugging Face directories in and out: config.json and safetensors, nothing else."""

from __future__ import annotations

import collections
import json
import math
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxrl_llm.networks import families
from jaxrl_llm.networks.config import DecoderConfig
from jaxrl_llm.networks.network import Network, Params, decoder

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STORED_DTYPES = ("F32", "BF16", "F16")
# Tensors of old checkpoints that hold no parameters.
_DERIVED = "rotary_emb.inv_freq"


class Tensor(NamedTuple):
    """One tensor of a checkpoint and the parameter, or the layer of a parameter, that it holds."""

    path: families.Path
    layer: int | None
    shape: tuple[int, ...]
    transposed: bool


def load_huggingface(
    directory,
    dtype: str = "float32",
    *,
    compute_dtype: str | None = None,
    value_head: bool = False,
    remat: str = "none",
    attention: str = "auto",
) -> Network:
    """Network with the parameters of a directory that `transformers` could load as a causal language model.

    Tensors are read one by one, so that the host holds the parameters once.

    Args:
      directory: holds config.json and model.safetensors, or the shards that model.safetensors.index.json names.
      dtype: of the parameters.
      compute_dtype: of the computation; `dtype` by default.
      value_head: adds a value head; it is zero unless the checkpoint was saved with one.
      remat: as in `DecoderConfig`.
      attention: as in `DecoderConfig`.

    Returns:
      A network whose `config` remembers the family, so that `save_huggingface` can write it.

    Raises:
      FileNotFoundError: config.json or a file of tensors is not there.
      ValueError: the family or an option of it is not supported, or tensors are missing, unexpected or of another shape.
    """
    directory = pathlib.Path(directory)
    theirs = json.loads(_existing(directory / "config.json").read_text())
    settings = {"value_head": value_head, "remat": remat, "attention": attention}
    config = families.from_huggingface(theirs, dtype=compute_dtype or dtype, param_dtype=dtype, **settings)
    network = decoder(config)
    return network.with_params(_read(network, directory))


def save_huggingface(network: Network, params: Params, directory, max_shard_bytes: int = 5_000_000_000) -> None:
    """Writes `params` as a directory that `transformers.AutoModelForCausalLM.from_pretrained` loads.

    Parameters keep their dtype. A value head is written too, as `value_head.weight`, which `transformers` leaves alone.
    Tokenizer files are the caller's to copy. Files of tensors from an earlier export to `directory` are removed.

    Args:
      network: made by `load_huggingface`, or by `decoder` from a configuration with a family.
      params: its parameters; every array must be whole on this process.
      directory: made where it does not exist.
      max_shard_bytes: size from which on tensors are split over several files with an index.

    Raises:
      ValueError: the network has no family, or `params` are not of its structure.
    """
    config = network.config
    if not isinstance(config, DecoderConfig) or config.family is None:
        raise ValueError(f"config.family of this network is None; make it with one of {', '.join(families.FAMILIES)}")
    flat = {path: np.asarray(leaf) for path, leaf in flax.traverse_util.flatten_dict(params).items()}
    _check_params(flat, network)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _write_tensors(flat, _layout(network), directory, max_shard_bytes)
    _write_json(directory / "config.json", families.to_huggingface(config, flat["embedding",].dtype.name))


def _write_tensors(flat, layout: dict[str, Tensor], directory: pathlib.Path, max_shard_bytes: int) -> None:
    for stale in (*directory.glob("model-*-of-*.safetensors"), directory / SINGLE, directory / INDEX):
        stale.unlink(missing_ok=True)
    sizes = {name: math.prod(tensor.shape) * flat[tensor.path].itemsize for name, tensor in layout.items()}
    shards = _shards(sizes, max_shard_bytes)
    for file, names in shards.items():
        tensors = {name: _to_stored(flat[layout[name].path], layout[name]) for name in names}
        safetensors.numpy.save_file(tensors, directory / file, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        _write_json(directory / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})


def _write_json(path: pathlib.Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _abstract(network: Network) -> dict[families.Path, jax.ShapeDtypeStruct]:
    return flax.traverse_util.flatten_dict(jax.eval_shape(network.init, jax.random.key(0)))


def _layout(network: Network) -> dict[str, Tensor]:
    """Every tensor that a checkpoint of the network has, by name, layer after layer."""
    names = families.FAMILIES[network.config.family].names
    tensors = {}
    for path, leaf in _abstract(network).items():
        stored = names[path]
        stacked = path[0] == "layers"
        shape = _stored_shape(leaf.shape[1:] if stacked else leaf.shape, stored.inputs)
        for layer in range(network.config.num_layers) if stacked else (None,):
            tensors[stored.name.format(layer=layer)] = Tensor(path, layer, shape, bool(stored.inputs))
    return dict(sorted(tensors.items(), key=lambda item: -1 if item[1].layer is None else item[1].layer))


def _stored_shape(shape: tuple[int, ...], inputs: int | None) -> tuple[int, ...]:
    if inputs is None:
        return shape
    outputs = (math.prod(shape[inputs:]),)
    return (*outputs, math.prod(shape[:inputs])) if inputs else outputs


def _to_stored(parameter: np.ndarray, tensor: Tensor) -> np.ndarray:
    part = parameter if tensor.layer is None else parameter[tensor.layer]
    if tensor.transposed:
        part = part.reshape(tensor.shape[::-1]).T
    return np.ascontiguousarray(part.reshape(tensor.shape))


def _read(network: Network, directory: pathlib.Path) -> Params:
    layout = _layout(network)
    files = _tensor_files(directory)
    optional = {"value_head.weight"}
    if network.config.tie_embeddings:
        optional.add("lm_head.weight")
    _check_names(set(layout) - {"value_head.weight"}, set(files), optional)
    flat = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in _abstract(network).items()}
    for name, stored in _tensors(directory, files):
        if name in layout:
            _fill(flat, name, layout[name], stored)
        elif name == "lm_head.weight" and not np.array_equal(stored.astype(flat["embedding",].dtype), flat["embedding",]):
            raise ValueError("lm_head.weight differs from the embedding; set tie_word_embeddings to false in config.json")
    return flax.traverse_util.unflatten_dict({path: jnp.asarray(leaf) for path, leaf in flat.items()})


def _fill(flat: dict[families.Path, np.ndarray], name: str, tensor: Tensor, stored: np.ndarray) -> None:
    if stored.shape != tensor.shape:
        raise ValueError(f"{name} has shape {stored.shape}; config.json asks for {tensor.shape}")
    parameter = flat[tensor.path]
    part = parameter[... if tensor.layer is None else tensor.layer]
    part[...] = (stored.T if tensor.transposed else stored).reshape(part.shape)


def _existing(path: pathlib.Path) -> pathlib.Path:
    if not path.is_file():
        found = sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else "no such directory"
        raise FileNotFoundError(f"{path} is not there (found: {found}); give a directory with config.json and safetensors")
    return path


def _tensor_files(directory: pathlib.Path) -> dict[str, str]:
    """Name of each tensor of the checkpoint -> the file that holds it."""
    files = [SINGLE]
    if not (directory / SINGLE).is_file() and (directory / INDEX).is_file():
        files = sorted(set(json.loads((directory / INDEX).read_text())["weight_map"].values()))
    found = {}
    for file in files:
        with safetensors.safe_open(_existing(directory / file), framework="numpy") as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    return {name: file for name, file in found.items() if not name.endswith(_DERIVED)}


def _tensors(directory: pathlib.Path, files: dict[str, str]) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors one by one, the output head last: it is compared with the embedding where the two are tied."""
    grouped = collections.defaultdict(list)
    for name, file in sorted(files.items(), key=lambda item: (item[0] == "lm_head.weight", item[1])):
        grouped[file, name == "lm_head.weight"].append(name)
    for (file, _), names in grouped.items():
        with safetensors.safe_open(directory / file, framework="numpy") as tensors:
            for name in names:
                stored = tensors.get_slice(name).get_dtype()
                if stored not in STORED_DTYPES:
                    raise ValueError(f"{name} is stored as {stored}; only {', '.join(STORED_DTYPES)} are supported")
                yield name, tensors.get_tensor(name)


def _check_names(wanted: set[str], found: set[str], optional: set[str]) -> None:
    missing, unexpected = sorted(wanted - found), sorted(found - wanted - optional)
    if missing or unexpected:
        raise ValueError(
            f"tensors do not fit config.json: {len(missing)} missing {missing[:4]}, "
            f"{len(unexpected)} unexpected {unexpected[:4]}; check model_type, num_hidden_layers and tie_word_embeddings"
        )


def _check_params(flat: dict[families.Path, np.ndarray], network: Network) -> None:
    wanted = {path: leaf.shape for path, leaf in _abstract(network).items()}
    found = {path: leaf.shape for path, leaf in flat.items()}
    unlike = sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
    if unlike:
        path = unlike[0]
        message = f"has shape {found.get(path)}; the network's has {wanted.get(path)}"
        raise ValueError(f"params[{'.'.join(path)}] {message} ({len(unlike)} such differences)")


def _shards(sizes: dict[str, int], limit: int) -> dict[str, list[str]]:
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
