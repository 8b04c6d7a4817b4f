"""Adapters in the format of PEFT: adapter_config.json and adapter_model.safetensors (https://github.com/huggingface/peft)."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxrl_llm import reading
from jaxrl_llm.networks import families
from jaxrl_llm.networks.adapters import with_adapter
from jaxrl_llm.networks.config import AdapterConfig, DecoderConfig
from jaxrl_llm.networks.fused import Fused
from jaxrl_llm.networks.matrices import ADAPTER_LEAVES, Matrix, is_adapted, kernel_path, matrices
from jaxrl_llm.networks.network import Network
from jaxrl_llm.networks.tensor_files import existing, write_json
from jaxrl_llm.networks.trees import Params, join_params

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_LINEAR = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
_EMBEDDING = _LINEAR | {"lora_a": "lora_embedding_A", "lora_b": "lora_embedding_B"}
# Fields that say nothing of the function that the adapter computes beyond what its tensors do.
_IGNORED = {
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("lora_dropout", "eva_config", "megatron_core", "qalora_group_size", "runtime_config"),
}
_READ = {"peft_type", "r", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights"}
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # Others change the base, too.
_RANK, _ALPHA = reading.whole(1, 10**5), reading.real(above=0.0)
_NAMES = reading.one_or_more(reading.text)
_CHECKS = {"peft_type": reading.text, "r": _RANK, "lora_alpha": _ALPHA, "alpha_pattern": reading.mapping(_ALPHA)}
_CHECKS |= {"use_rslora": reading.flag, "use_dora": reading.flag, "inference_mode": reading.flag, "task_type": reading.text}
_CHECKS |= {"init_lora_weights": reading.either("true, false or a name", reading.flag, reading.text)}
_CHECKS |= {"rank_pattern": reading.mapping(_RANK), "lora_dropout": reading.real(0.0, 1.0), "revision": reading.text}
_CHECKS |= {"bias": reading.text, "fan_in_fan_out": reading.flag, "modules_to_save": reading.listed(reading.text)}
_CHECKS |= {"target_modules": _NAMES, "exclude_modules": _NAMES, "layers_pattern": _NAMES}
_CHECKS |= {"layers_to_transform": reading.one_or_more(reading.whole()), "base_model_name_or_path": reading.text}
_UNUSED = ("none", (), [], {})  # what says that an option is not used
_MOST_REPEATS = 3  # in a pattern: the time that a match may take grows with their number


class Module(NamedTuple):
    """A module of PEFT that is one layer, or one expert of a layer, of a matrix of ours: its place in the leaves."""

    matrix: Matrix
    index: tuple[int, ...]


class Found(NamedTuple):
    """What a file has for a module: arrays by the names of our leaves, and the rank and alpha of their product."""

    module: Module
    arrays: dict[str, np.ndarray]
    rank: int
    alpha: float


def save_peft(network: Network, params: Params, directory: str | pathlib.Path, *, base: str | None = None) -> None:
    """Writes the adapter as a directory that `peft.PeftModel.from_pretrained(model, directory)` loads.

    The base is not written. Every array must be whole on this process. An adapter of experts is written as one of each
    expert and with the scale of plain LoRA: PEFT fuses them as `transformers` fuses the experts.

    Args:
      network: with an adapter.
      params: its parameters.
      directory: made where it does not exist.
      base: directory or name of the base, which `peft.AutoPeftModel` loads by itself.

    Raises ValueError: the network has no adapter or no family, or PEFT has no form for one of the adapted matrices: those that
      share a tensor with others, as in Phi-3, MLPs beside or below experts, and a part of the matrices of experts.
    """
    config, adapter = network.config, network.config.adapter
    if adapter is None:
        raise ValueError("config.adapter of this network is None; there is nothing to save, see networks.add_adapter")
    modules = _modules(config)
    _check_expressible(config, modules)
    leaves = {
        path: np.asarray(leaf) for path, leaf in flax.traverse_util.flatten_dict(params).items() if path[-1] in ADAPTER_LEAVES
    }
    targets = {name: module for name, module in modules.items() if is_adapted(config, module.matrix.name)}
    tensors = {}
    for name, (matrix, index) in targets.items():
        for ours, theirs in _suffixes(matrix).items():
            if (*matrix.path, ours) in leaves:
                own = _as_matrix(ours, leaves[*matrix.path, ours][index])
                tensors[f"{PREFIX}{name}.{theirs}"] = np.ascontiguousarray(own.T)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, directory / TENSORS, metadata={"format": "pt"})
    write_json(directory / CONFIG, _settings(config, targets) | {"base_model_name_or_path": base})


def load_peft(network: Network, params: Params, directory: str | pathlib.Path) -> tuple[Network, Params]:
    """The network with the adapter of a directory that `peft` saved, and its parameters; those of `params` are shared.

    The adapted matrices are those that have tensors, so that target_modules may be of any form. Ranks and scales may
    differ from matrix to matrix and layers may be left out: leaves are filled up with zeros, which never train, and B takes
    up what its scale differs from the common one. Dropout, which PEFT applies in training alone, is not carried over.

    Raises:
      FileNotFoundError: a file is not there.
      ValueError: adapter_config.json asks for something that is not supported, or tensors do not fit the network.
    """
    directory = pathlib.Path(directory)
    settings = read_settings(directory)
    tensors = _load_tensors(existing(directory / TENSORS))
    found = _found(network, params, settings, tensors)
    names = dict.fromkeys(item.module.matrix.name for item in found)
    pattern = rf"^({'|'.join(map(re.escape, names))})$"
    kind = "dora" if settings.get("use_dora") else "rslora" if settings.get("use_rslora") else "lora"
    largest = max(found, key=lambda item: item.rank)
    adapter = AdapterConfig(pattern, largest.rank, largest.alpha, kind)
    adapted = with_adapter(network, adapter)
    if kind == "dora":
        _check_all_layers(network.config, found)
    return adapted, join_params(_filled(adapted, found), params)


def read_settings(directory: pathlib.Path) -> dict[str, Any]:
    """What adapter_config.json says, without what is null; errors as in `load_peft`."""
    path = existing(directory / CONFIG)
    settings = reading.fields(reading.read_object(path), _CHECKS, f"{path}: ")
    with reading.about(str(path)):
        _check_settings(settings)
    return settings


def _load_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file of numbers ({error}); fetch it again") from error


def _modules(config: DecoderConfig) -> dict[str, Module]:
    """Modules that hold one of our matrices in one tensor, by name."""
    if config.family is None:
        raise ValueError(f"config.family of this network is None; make it with one of {', '.join(families.FAMILIES)}")
    e, modules = config.experts, {}
    layers_of = {shape.stack: layers for shape, layers in config.stacks.items()}
    for matrix in matrices(config):
        if _is_fused(config, matrix):
            continue
        layers = layers_of.get(matrix.path[0], ())
        sizes = (len(layers), e.count if e else 0)[: matrix.leading]
        for index in np.ndindex(sizes):
            numbers = dict(zip(("layer", "expert"), index, strict=False))
            if index:
                numbers["layer"] = layers[index[0]]
            name = _stored(config, matrix).name.format(**numbers)
            modules[name.removesuffix(".weight")] = Module(matrix, index)
    return modules


def _stored(config: DecoderConfig, matrix: Matrix):
    path = kernel_path(matrix)
    return families.FAMILIES[config.family].names[("layers", *path[1:]) if matrix.in_layers else path]


def _is_fused(config: DecoderConfig, matrix: Matrix) -> bool:
    own = _stored(config, matrix).name
    apart = (one for one in families.FAMILIES[config.family].fused if isinstance(one, Fused) and not one.read_only)
    if own in {each for one in apart for each in one.each}:
        return True
    return sum(_stored(config, other).name == own for other in matrices(config) if other.path[0] == matrix.path[0]) > 1


def _check_expressible(config: DecoderConfig, modules: dict[str, Module]) -> None:
    """Raises ValueError where PEFT would refuse the adapter or, worse, drop a part of it without a word."""
    adapted = [matrix for matrix in matrices(config) if is_adapted(config, matrix.name)]
    whole = {module.matrix.name for module in modules.values()}
    together = {"experts.gate", "experts.up", "experts.down"}
    for matrix in adapted:
        if matrix.name not in whole:
            why = f"shares the tensor {_stored(config, matrix).name} with others"
        elif config.experts is not None and matrix.name.startswith(("mlp.", "experts.shared.")):
            why = "PEFT takes for one of the experts"
        elif matrix.name in together and not together <= {other.name for other in adapted}:
            why = f"PEFT adapts only with {' and '.join(sorted(together - {matrix.name}))}"
        else:
            continue
        raise ValueError(
            f"PEFT has no form for the adapter of {matrix.name}, which {why}; export the whole network: merge_adapter, then "
            "save_huggingface"
        )


def _suffixes(matrix: Matrix) -> dict[str, str]:
    return _EMBEDDING if matrix.name == "embedding" else _LINEAR


def _as_matrix(name: str, leaf: np.ndarray) -> np.ndarray:
    """A [*inputs, r] as [I, r], B [r, *outputs] as [r, O], and a magnitude as [O]."""
    if name == "magnitude":
        return leaf.reshape(-1)
    return leaf.reshape(-1, leaf.shape[-1]) if name == "lora_a" else leaf.reshape(leaf.shape[0], -1)


def _settings(config: DecoderConfig, targets: dict[str, Module]) -> dict[str, Any]:
    adapter = config.adapter
    # PEFT fuses matrices of experts, with scales that only plain LoRA has.
    rslora = adapter.kind == "rslora" and all(module.matrix.leading < 2 for module in targets.values())
    alpha = adapter.alpha if rslora else adapter.scale * adapter.rank
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if config.language_head else "SEQ_CLS",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": rslora,
        "use_dora": adapter.kind == "dora",
        "target_modules": list(dict.fromkeys(name.rpartition(".")[2] for name in targets)),
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
    }


def _check_settings(settings: dict[str, Any]) -> None:
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"peft_type={settings.get('peft_type')!r} is not supported; it must be 'LORA'")
    start = settings.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise ValueError(f"init_lora_weights={start!r} changes the base; convert the adapter to a plain one with PEFT")
    for name, value in settings.items():
        if name not in _IGNORED | _READ and value is not False and value not in _UNUSED:
            value = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{name}={value!r} is not supported; train the adapter without it, or merge it with PEFT")
    for pattern in settings.get("alpha_pattern", {}):
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"alpha_pattern has {pattern!r}, which is no regular expression: {error}") from error
        if sum(map(pattern.count, "*+{")) > _MOST_REPEATS or re.search(r"\)[*+{]", pattern):
            mend = f"write it with at most {_MOST_REPEATS} repetitions, none of groups"
            raise ValueError(f"alpha_pattern has {pattern!r}, which may take long; {mend}")


def _found(network: Network, params: Params, settings: dict[str, Any], tensors: dict[str, np.ndarray]) -> list[Found]:
    """What the file has for each module."""
    modules = _modules(network.config)
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        module, leaf = _place(modules, name)
        if leaf is None:
            _check_same_table(network, params, modules[module].matrix, name, tensor)
        else:
            arrays.setdefault(module, {})[leaf] = tensor
    wanted = {"lora_a", "lora_b"} | ({"magnitude"} if settings.get("use_dora") else set())
    for module, own in arrays.items():
        if set(own) != wanted:
            raise ValueError(
                f"{TENSORS}: {module} has {sorted(own)}; use_dora={settings.get('use_dora')} asks for {sorted(wanted)}"
            )
    if not arrays:
        raise ValueError(f"{TENSORS} has no tensors of an adapter; it has {sorted(tensors)[:4]}")
    ranks = {module: own["lora_a"].shape[0] if own["lora_a"].ndim else 0 for module, own in arrays.items()}
    said = {settings.get("r", 8), *settings.get("rank_pattern", {}).values()}
    unlike = [module for module, rank in ranks.items() if rank not in said]
    if unlike:
        raise ValueError(
            f"{TENSORS}: {unlike[0]} is of rank {ranks[unlike[0]]}; {CONFIG} has r and rank_pattern of {sorted(said)}"
        )
    return [Found(modules[name], own, ranks[name], _alpha(settings, name, ranks[name])) for name, own in arrays.items()]


def _place(modules: dict[str, Module], name: str) -> tuple[str, str | None]:
    """The module of a tensor, and our name of its leaf; None for a copy of the embedding table or the head."""
    for leaf, suffix in [*_LINEAR.items(), *_EMBEDDING.items(), (None, "base_layer.weight"), (None, "weight")]:
        module = name.removeprefix(PREFIX).removesuffix(f".{suffix}")
        fits = name == f"{PREFIX}{module}.{suffix}" and module in modules
        if fits and (
            not modules[module].matrix.in_layers if leaf is None else _suffixes(modules[module].matrix)[leaf] == suffix
        ):
            return module, leaf
    raise ValueError(f"{TENSORS}: {name} belongs to no matrix that can be adapted; the modules are {', '.join(_some(modules))}")


def _some(modules: dict[str, Module]) -> Iterator[str]:
    return (name for name, module in modules.items() if not any(module.index))


def _alpha(settings: dict[str, Any], module: str, rank: int) -> float:
    """Alpha of a module; that of DoRA with use_rslora, whose scale is alpha / sqrt(rank), as our DoRA has it."""
    patterns = settings.get("alpha_pattern", {})
    own = [alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)]
    alpha = own[0] if own else settings.get("lora_alpha", 8)
    return alpha * rank**0.5 if settings.get("use_dora") and settings.get("use_rslora") else alpha


def _check_same_table(network: Network, params: Params, matrix: Matrix, name: str, tensor: np.ndarray) -> None:
    """PEFT saves the embedding beside an adapter of it: it must be the one that the network has."""
    table = params.get(matrix.name, params["embedding"])
    if table.shape != tensor.shape or not np.array_equal(np.asarray(jnp.asarray(tensor, table.dtype)), np.asarray(table)):
        raise ValueError(f"{TENSORS}: {name} differs from the network's; the adapter was trained over another base")


def _check_all_layers(config: DecoderConfig, found: list[Found]) -> None:
    """The magnitude of a layer that was left out would train."""
    names = {item.module.matrix.name for item in found}
    layers = [module for module in _modules(config).values() if module.matrix.name in names]
    if len(layers) != len(found):
        raise ValueError(
            f"{CONFIG}: use_dora=True with adapters in {len(found)} of {len(layers)} modules of the same kind is not "
            "supported; train it with layers_to_transform=null"
        )


def _filled(adapted: Network, found: list[Found]) -> Params:
    """Leaves of the adapter with the arrays that were found, and zero elsewhere."""
    adapter = adapted.config.adapter
    shapes = flax.traverse_util.flatten_dict(jax.eval_shape(adapted.init, jax.random.key(0)))
    filled = {path: np.zeros(leaf.shape, np.float32) for path, leaf in shapes.items() if path[-1] in ADAPTER_LEAVES}
    for (matrix, index), arrays, rank, alpha in found:
        gain = dataclasses.replace(adapter, rank=rank, alpha=alpha).scale / adapter.scale
        for name, array in arrays.items():
            target = filled[*matrix.path, name][index]
            wide = array.astype(np.float32).T * np.float32(gain if name == "lora_b" else 1.0)
            wanted = _as_matrix(name, target).shape
            _check_shape(f"{name} of {matrix.name}", wide.shape, _narrowed(name, wanted, rank))
            missing = [(0, want - have) for want, have in zip(wanted, wide.shape, strict=True)]
            target[...] = np.pad(wide, missing).reshape(target.shape)
    return flax.traverse_util.unflatten_dict({path: jnp.asarray(array) for path, array in filled.items()})


def _narrowed(name: str, shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """`shape` of a leaf as a matrix, with the rank of one module."""
    return {"lora_a": (shape[0], rank), "lora_b": (rank, shape[-1]), "magnitude": shape}[name]


def _check_shape(what: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise ValueError(
            f"{TENSORS}: {what} is {found[::-1]}; the network needs {wanted[::-1]}: it was trained over another base"
        )
