"""Hugging Face directories in and out: config.json and safetensors, nothing else."""

import contextlib
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import reading
from jaxrl_llm.networks import families
from jaxrl_llm.networks.config import DecoderConfig
from jaxrl_llm.networks.fused import put_together, taken_apart
from jaxrl_llm.networks.gguf_files import gguf_file, read_gguf
from jaxrl_llm.networks.network import Network, Params, decoder
from jaxrl_llm.networks.placing import Piece, blocks, written
from jaxrl_llm.networks.stored_names import Path, Stored
from jaxrl_llm.networks.tensor_files import (
    STORED_DTYPES,
    TensorFile,
    Tensors,
    existing,
    find_tensors,
    opened,
    write_json,
    write_tensors,
)
from jaxrl_llm.networks.whole import Others, is_whole, tell_others, text_config, text_tensors
from jaxrl_llm.progress import advancing, shown

# Tensors of old checkpoints that hold no parameters.
_DERIVED = "rotary_emb.inv_freq"
_HEAD = "lm_head.weight"


class _Described(NamedTuple):
    """A directory whose parameters are not read yet."""

    config: DecoderConfig
    ahead: int  # layers behind the network's own, which predict further tokens
    tensors: Tensors  # of the network
    others: Tensors  # of what it sees or hears with


def huggingface_config(
    directory: str | pathlib.Path, dtype: str = "float32", *, compute_dtype: str | None = None, value_head: int = 0,
    remat: str = "dots", attention: str = "auto",
) -> DecoderConfig:  # fmt: skip
    """The configuration of what `load_huggingface` makes of a directory, with the same arguments; reads no parameter.

    Raises FileNotFoundError, ValueError: as that does.
    """
    return _described(directory, dtype, compute_dtype, value_head, remat, attention).config


def _described(
    directory: str | pathlib.Path, dtype: str, compute_dtype: str | None, value_head: int, remat: str, attention: str
) -> _Described:
    directory = pathlib.Path(directory)
    path = gguf_file(directory) or existing(directory / "config.json")
    theirs, found = read_gguf(path) if path.suffix == ".gguf" else (reading.read_object(path), find_tensors(directory))
    others = {}
    if is_whole(theirs):
        theirs, (found, others) = text_config(theirs, str(path)), text_tensors(found)
    settings = {"other_parts": str(directory.resolve())} if others else {}
    settings |= {"remat": remat, "attention": attention} | ({"value_head": value_head} if value_head else {})
    config = families.from_huggingface(theirs, str(path), dtype=compute_dtype or dtype, param_dtype=dtype, **settings)
    return _Described(config, theirs.get("num_nextn_predict_layers") or 0, found, others)


def load_huggingface(
    directory: str | pathlib.Path, dtype: str = "float32", *, compute_dtype: str | None = None, value_head: int = 0,
    remat: str = "dots", attention: str = "auto", shardings: Callable[[Network], Any] | None = None, progress: bool = False,
) -> Network:  # fmt: skip
    """Network with the parameters of a directory that `transformers` could load.

    Causal language models give logits; sequence classification models, such as reward models, give values; of models that
    see or hear it is the text part. Names, shapes
    and files are checked before the first byte is read; then tensors go to their devices a block of rows at a time, so
    that the host never holds more than a block of what it does not keep.

    Args:
      directory: holds config.json and model.safetensors, or the shards that model.safetensors.index.json names, or, instead
        of these, one GGUF file of Llama's architecture (with the extra `gguf`), whose codes are expanded.
      dtype: of the parameters.
      compute_dtype: of the computation; `dtype` by default.
      value_head: outputs of a value head to add; it is zero unless the checkpoint was saved with one.
      remat, attention: as in `DecoderConfig`.
      shardings: gives the sharding of each parameter of a network, such as `distributed.parameter_shardings` on a mesh;
        by default, parameters are on the default device.
      progress: whether to say how far it is; within `progress.shown` it does anyway.

    Returns: A network whose `config` remembers the family, so that `save_huggingface` can write it.

    Raises:
      FileNotFoundError: config.json or a file of tensors is not there.
      ValueError: the family or an option of it is not supported, a file is damaged, or tensors are missing, unexpected or
        of another shape.
    """
    config, ahead, found, others = _described(directory, dtype, compute_dtype, value_head, remat, attention)
    network = decoder(config)
    found = _without_ignored(found, range(config.num_layers, config.num_layers + ahead))
    found = _without_lent(config, found)
    found = taken_apart(found, families.FAMILIES[config.family].fused, config)
    layout = _layout(network)
    _check_tensors(network, layout, found)
    if others:
        tell_others(others, directory)
    with shown(True) if progress else contextlib.nullcontext():
        return network.with_params(_read(network, layout, found, shardings))


def save_huggingface(
    network: Network, params: Params, directory: str | pathlib.Path, max_shard_bytes: int = 5_000_000_000
) -> None:
    """Writes `params` as a directory that `transformers` loads as a causal language model.

    A network without a language head is written as a sequence classification model; the text part of a model that sees or
    hears as the whole one, with the other parts of the checkpoint that it came from. Parameters keep their dtype. A value
    head beside a language head is written as `value_head.weight`, which `transformers` leaves alone. Tokenizer files are
    the caller's to copy. Files of tensors from an earlier export to `directory` are removed.

    Args:
      network: made by `load_huggingface`, or by `decoder` from a configuration with a family.
      params: its parameters; every array must be whole on this process.
      directory: made where it does not exist.
      max_shard_bytes: size from which on tensors are split over several files with an index.

    Raises ValueError: the network has no family, it has an adapter or is quantised, or `params` are not of its structure.
    """
    config = network.config
    if not isinstance(config, DecoderConfig) or config.family is None:
        raise ValueError(f"config.family of this network is None; make it with one of {', '.join(families.FAMILIES)}")
    for field in ("adapter", "quantization"):
        if getattr(config, field) is not None:
            raise ValueError(f"{field}={getattr(config, field)} has no place in a checkpoint; save what merge_adapter gives")
    flat = {path: np.asarray(leaf) for path, leaf in flax.traverse_util.flatten_dict(params).items()}
    _check_params(flat, network)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    layout = _layout(network)
    made = put_together(list(layout), families.FAMILIES[config.family].fused, config)

    def tensor(name: str) -> np.ndarray:
        found = [_to_stored(flat, layout[part]) for part in made[name].parts]
        return made[name].join(*found) if made[name].join else found[0]

    pieces = {name: [piece for part in own.parts for piece in layout[part]] for name, own in made.items()}
    sizes = {name: sum(math.prod(one.shape) * flat[one.path].itemsize for one in own) for name, own in pieces.items()}
    theirs = families.to_huggingface(config, flat["embedding",].dtype.name)
    if config.other_parts is None:
        write_tensors(directory, sizes, tensor, max_shard_bytes)
    else:
        others = Others(config.other_parts)
        own = {others.name(name): name for name in sizes}
        all_sizes = {name: sizes[ours] for name, ours in own.items()} | {name: x.bytes for name, x in others.tensors.items()}

        def part(name: str) -> np.ndarray:
            return tensor(own[name]) if name in own else others.read(name)

        write_tensors(directory, all_sizes, part, max_shard_bytes)
        theirs = others.joined(theirs)
    write_json(directory / "config.json", theirs)


def _without_ignored(found: dict[str, TensorFile], ahead: range) -> dict[str, TensorFile]:
    """Leaves out what `transformers` leaves out: what no parameter is, and layers that predict several tokens at once."""
    layers = tuple(f"model.layers.{layer}." for layer in ahead)
    return {name: tensor for name, tensor in found.items() if not name.endswith(_DERIVED) and not name.startswith(layers)}


def _without_lent(config: DecoderConfig, found: dict[str, TensorFile]) -> dict[str, TensorFile]:
    """Leaves out keys and values of layers that have those of others, which published checkpoints may hold."""
    numbers = range(config.num_layers - config.reusing_layers, config.num_layers)
    unused = tuple(f"model.layers.{layer}.self_attn.{name}" for layer in numbers for name in ("k_", "v_"))
    return {name: tensor for name, tensor in found.items() if not name.startswith(unused)} if unused else found


def _abstract(network: Network) -> dict[Path, jax.ShapeDtypeStruct]:
    # The key too: nothing is made on a device before all is checked.
    return flax.traverse_util.flatten_dict(jax.eval_shape(lambda: network.init(jax.random.key(0))))


def _layout(network: Network) -> dict[str, list[Piece]]:
    """Every tensor that a checkpoint of the network has, by name, layer after layer, with the places of its rows."""
    tensors: dict[str, list[tuple[int, Piece]]] = {}
    numbers_of = {shape.stack: layers for shape, layers in network.config.stacks.items()}
    for path, leaf in _abstract(network).items():
        stored = _stored(network.config, path)
        axes = stored.name.count("{")
        shape = _stored_shape(leaf.shape[axes:], stored.inputs)
        for index in np.ndindex(leaf.shape[:axes]):
            numbers = dict(zip(("layer", "expert"), index, strict=False))
            if "layer" in numbers:
                numbers["layer"] = numbers_of[path[0]][index[0]]
            name = stored.name.format(**numbers)
            tensors.setdefault(name, []).append((stored.part, Piece(path, index, 0, shape, stored.inputs)))
    order = sorted(tensors, key=lambda name: (tensors[name][0][1].index[:1], tensors[name][0][1].path[0]))
    return {name: _in_rows([piece for _, piece in sorted(tensors[name], key=lambda item: item[0])]) for name in order}


def _in_rows(pieces: list[Piece]) -> list[Piece]:
    starts = np.cumsum([0] + [piece.shape[0] for piece in pieces[:-1]])
    return [piece._replace(start=int(start)) for piece, start in zip(pieces, starts, strict=True)]


def _stored(config: DecoderConfig, path: Path) -> Stored:
    if path == ("value_head",):
        return Stored("value_head.weight" if config.language_head else "score.weight")
    layer = ("layers", *path[1:]) if path[0].endswith("layers") else path
    return families.FAMILIES[config.family].names[layer]


def _stored_shape(shape: tuple[int, ...], inputs: int | None) -> tuple[int, ...]:
    if inputs is None:
        return shape
    outputs = (math.prod(shape[inputs:]),)
    return (*outputs, math.prod(shape[:inputs])) if inputs else outputs


def _tensor_shape(pieces: list[Piece]) -> tuple[int, ...]:
    return (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])


def _to_stored(flat: dict[Path, np.ndarray], pieces: list[Piece]) -> np.ndarray:
    parts = []
    for piece in pieces:
        part = flat[piece.path][piece.index]
        parts.append(part.reshape(piece.shape[::-1]).T if piece.inputs else part.reshape(piece.shape))
    return np.ascontiguousarray(np.concatenate(parts) if len(parts) > 1 else parts[0])


def _check_tensors(network: Network, layout: dict[str, list[Piece]], found: dict[str, TensorFile]) -> None:
    optional = {"value_head.weight"}
    if network.config.tie_embeddings:
        optional.add(_HEAD)
    missing, unexpected = sorted(set(layout) - set(found) - optional), sorted(set(found) - set(layout) - optional)
    if missing or unexpected:
        raise ValueError(
            f"tensors do not fit config.json: {len(missing)} missing {missing[:4]}, "
            f"{len(unexpected)} unexpected {unexpected[:4]}; check model_type, num_hidden_layers and tie_word_embeddings"
        )
    for name, tensor in found.items():
        if tensor.dtype not in STORED_DTYPES:
            raise ValueError(f"{name} is stored as {tensor.dtype}; only {', '.join(STORED_DTYPES)} are supported")
        if name in layout and tensor.shape != _tensor_shape(layout[name]):
            raise ValueError(f"{name} has shape {tensor.shape}; config.json asks for {_tensor_shape(layout[name])}")
    if _HEAD in found and _HEAD not in layout and network.config.tie_embeddings:
        _check_tied(found)


def _check_tied(found: dict[str, TensorFile]) -> None:
    """A head that is stored beside the embedding to which config.json ties it must be the same."""
    embedding = "model.embed_tokens.weight"
    same = found[_HEAD].shape == found[embedding].shape and found[_HEAD].dtype == found[embedding].dtype
    count = found[embedding].shape[0]
    with opened(found[_HEAD]) as head, opened(found[embedding]) as table:
        rows = [(first, min(first + 1024, count)) for first in range(0, count, 1024)]
        if not same or not all(np.array_equal(head(*some), table(*some)) for some in rows):
            raise ValueError(f"{_HEAD} differs from the embedding; set tie_word_embeddings to false in config.json")


def _read(network: Network, layout: dict[str, list[Piece]], found, shardings) -> Params:
    abstract = _abstract(network)
    placed = dict.fromkeys(abstract)
    if shardings is not None:
        placed = flax.traverse_util.flatten_dict(shardings(network))
    flat = {path: jnp.zeros(leaf.shape, leaf.dtype, device=placed[path]) for path, leaf in abstract.items()}
    names = [name for name in layout if name in found]
    last = None
    with advancing("loading parameters", sum(found[name].bytes for name in names), "bytes") as advance:
        for name in names:
            with opened(found[name]) as read:
                for piece in layout[name]:
                    for block, at in blocks(flat[piece.path], piece, read):
                        jax.block_until_ready(last)  # Two blocks are in memory at most: one is read, one is written.
                        last = flat[piece.path] = written(flat[piece.path], piece, block, at)
            advance(found[name].bytes)
    return flax.traverse_util.unflatten_dict(flat)


def _check_params(flat: dict[Path, np.ndarray], network: Network) -> None:
    wanted = {path: leaf.shape for path, leaf in _abstract(network).items()}
    found = {path: leaf.shape for path, leaf in flat.items()}
    unlike = sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
    if unlike:
        path = unlike[0]
        message = f"has shape {found.get(path)}; the network's has {wanted.get(path)}"
        raise ValueError(f"params[{'.'.join(path)}] {message} ({len(unlike)} such differences)")
