"""A policy from wherever it lies: a run's folder, a Hugging Face directory, or a converted one; and conversion."""

import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxrl_llm import distributed, networks, reading
from jaxrl_llm.compose import require
from jaxrl_llm.data import Tokenizer, load_tokenizer
from jaxrl_llm.networks import Network
from jaxrl_llm.networks.config import DTYPES
from jaxrl_llm.networks.config_checks import check_tokens
from jaxrl_llm.training import build, checkpoint, combining, metrics
from jaxrl_llm.training.config import preference_method, read_config, reinforcement_method
from jaxrl_llm.training.modules import learns_from_pairs, module_config, settings_of

# Files of a tokenizer that travel with converted parameters.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "generation_config.json",
)  # fmt: skip
# Folder of the templates that have names, one file each.
TEMPLATES = "additional_chat_templates"


def load_policy(
    directory: str | pathlib.Path, *, dtype: str = "float32", mesh: jax.sharding.Mesh | None = None
) -> tuple[networks.Network, Tokenizer]:
    """Network with parameters, and tokenizer, from one of three kinds of folder.

    Args:
      directory: the workdir of a run (its latest checkpoint), of what it trained beside its policy WORKDIR/modules/NAME, a
        Hugging Face checkpoint directory, or what `convert_to_orbax` wrote.
      dtype: of Hugging Face parameters.
      mesh: on which the parameters are laid out while they are read; None for one device.

    Raises ValueError: the folder is none of these.
    """
    directory = reading.local(directory)
    kind = folder_kind(directory)
    if kind == "run":
        return _load_run(directory, mesh)
    tokenizer = load_tokenizer(directory)
    if kind == "orbax":
        network = _load_orbax(directory, mesh)
    else:
        shardings = None if mesh is None else functools.partial(distributed.parameter_shardings, mesh=mesh)
        network = networks.load_huggingface(directory, dtype=dtype, shardings=shardings)
    build.check_stop_ids(tokenizer, network.config.vocab_size, directory)
    return network, tokenizer


def folder_kind(directory: str | pathlib.Path) -> str:
    """ "run", "orbax" or "huggingface".

    Raises ValueError: none of these; the message says what each would hold.
    """
    directory = reading.local(directory)
    run, _ = run_and_module(directory)
    if (run / "checkpoints").is_dir() and (run / "config.json").is_file():
        return "run"
    if (directory / "network.json").is_file():
        return "orbax"
    if (directory / "config.json").is_file() or any(directory.glob("*.gguf")):
        return "huggingface"
    raise ValueError(
        f"{directory} is neither the workdir of a run (checkpoints/ and config.json), nor a Hugging Face directory "
        "(config.json and *.safetensors), nor a converted one (network.json): check the path"
    )


_GENERATION = {
    "temperature": reading.real(0.0), "top_k": reading.whole(0), "top_p": reading.real(0.0, 1.0),
    "min_p": reading.real(0.0, 1.0), "do_sample": reading.flag,
}  # fmt: skip


def generation_settings(directory: str | pathlib.Path) -> dict[str, Any]:
    """How the makers of a checkpoint want it sampled: "temperature", "top_k", "top_p" and "min_p" of generation_config.json.

    Without `do_sample` the temperature is 0. Nothing for a run, or for a folder without such a file.

    Raises ValueError: a damaged file; the message names the field.
    """
    place = reading.local(directory) / "generation_config.json"
    if folder_kind(directory) == "run" or not place.is_file():
        return {}
    found = reading.fields(reading.read_object(place), _GENERATION, f"{place}: ")
    if not found.get("do_sample", True):
        return {"temperature": 0.0}
    own = {name: found[name] for name in _GENERATION if name in found and name != "do_sample"}
    return {name: value for name, value in own.items() if not (name == "top_k" and value == 0)}


def run_and_module(directory: pathlib.Path) -> tuple[pathlib.Path, str]:
    """The folder of the run, and the name of the module where `RUN/modules/NAME` is meant, else ""."""
    inside = directory.parent.name == "modules" and not directory.exists()
    return (directory.parent.parent, directory.name) if inside else (directory, "")


def run_config(directory: str | pathlib.Path) -> ConfigDict:
    """The configuration of the run in a folder, of a module of it as its own; keys that it did not know have their defaults.

    Raises ValueError: it has keys or values that this version does not know, or no module of that name.
    """
    run, module = run_and_module(pathlib.Path(directory))
    config = read_config(run / "config.json")
    if module:
        require(module in config.modules, f"the module of {directory}", module, f"one of {sorted(config.modules)}")
    return module_config(config, module) if module else config


def _load_module(run: pathlib.Path, name: str, mesh: jax.sharding.Mesh | None) -> tuple[networks.Network, Tokenizer]:
    config = run_config(run)
    tokenizer = build.build_tokenizer(config)
    made = build_module(config, name, build.network_structure(config, tokenizer), None, tokenizer, mesh)
    network, frozen = made["network"].without_params(), made["frozen"]
    like, abstract = build.trained_and_frozen(made["config"], distributed.abstract_params(network, mesh))
    params = checkpoint.restore_params(run / "checkpoints", like, path=("modules", name, "params"))
    if abstract is not None and frozen is None:  # those of the policy
        _, frozen = build.trained_and_frozen(config, build.build_network(config, tokenizer, mesh).params)
    return network.with_params(params if frozen is None else networks.join_params(params, frozen)), tokenizer


def _load_run(directory: pathlib.Path, mesh: jax.sharding.Mesh | None) -> tuple[networks.Network, Tokenizer]:
    run, module = run_and_module(directory)
    if module:
        run_config(directory)  # which knows whether there is such a module
        return _load_module(run, module, mesh)
    config = run_config(directory)
    tokenizer = build.build_tokenizer(config)
    several = combining.depth(config) > 0
    if several and "network" in config.given:
        raise ValueError(f"{directory} has another network beside one that train() was given in Python; give it all again")
    network = build_policy(config, tokenizer, mesh) if several else build.network_structure(config, tokenizer)
    whole = network.params if several else distributed.abstract_params(network, mesh)
    like, frozen = build.trained_and_frozen(config, whole)
    stored = checkpoint.parameter_names(directory / "checkpoints")
    path = ("params", "policy") if "policy" in stored else ("params",)
    params = checkpoint.restore_params(directory / "checkpoints", like, path=path)
    if frozen is not None and "network" in config.given:
        raise ValueError(f"{directory} trains a part of a network that train() was given in Python; give it the whole again")
    if frozen is not None:
        # Checkpoints hold what trains alone; the rest is made again from where it came.
        if not several:
            _, frozen = build.trained_and_frozen(config, build.build_network(config, tokenizer, mesh).params)
        params = networks.join_params(params, frozen)
    if not several and combining.laid_around(config):
        return combining.combine(config, tokenizer, network.with_params(params), _load_beside(config)), tokenizer
    return network.with_params(params), tokenizer


def build_policy(
    config: ConfigDict, tokenizer: Tokenizer, mesh: jax.sharding.Mesh | None = None, report: Callable | None = None,
    given: Network | None = None,
) -> Network:  # fmt: skip
    """The policy with its first parameters: the network of `build.build_network`, and what the configuration lays around it.

    Raises ValueError: several networks are asked of a mesh, or do not go together.
    """
    if mesh is not None and combining.depth(config):
        raise ValueError(f"config.mesh has {mesh.size} devices, and several networks run on one; {combining.ONE}")
    network = build.build_network(config, tokenizer, mesh, report, given)
    return combining.combine(config, tokenizer, network, _load_beside(config))


def _load_beside(config: ConfigDict) -> Callable[[str], Network]:
    return lambda directory: load_policy(directory, dtype=config.network.param_dtype)[0]


def _load_orbax(directory: pathlib.Path, mesh: jax.sharding.Mesh | None = None) -> networks.Network:
    network = networks.decoder(read_network(directory / "network.json"))
    like = distributed.abstract_params(network, mesh)
    return network.with_params(checkpoint.load_params(directory / "params", like))


def read_network(path: pathlib.Path) -> networks.DecoderConfig:
    """The architecture in the `network.json` of a converted policy.

    Raises ValueError: it is damaged; the message names file and field.
    """
    with reading.about(str(path)):
        config = reading.build(networks.DecoderConfig, reading.read_object(path), f"{path}: ")
        check_tokens(config)
        return config


def convert_to_orbax(network: networks.Network, directory: str | pathlib.Path) -> None:
    """Writes `params/` (Orbax) and `network.json` (the architecture) into `directory`."""
    directory = reading.local(directory)
    checkpoint.save_params(directory / "params", network.params)
    metrics.write_atomically(directory / "network.json", [json.dumps(dataclasses.asdict(network.config), indent=2) + "\n"])


def convert(source: str | pathlib.Path, target: str | pathlib.Path, *, to: str, dtype: str = "") -> list[str]:
    """Writes the policy in `source` to `target` in the other format, its tokenizer files included.

    The run of a reward model is written as what it is: a network that gives values and no logits, in the format of Hugging
    Face a `*ForSequenceClassification` of one label.

    Args:
      source: any folder that `load_policy` reads; or several, joined by commas, of which the mean of the parameters is written
        (WARM, https://arxiv.org/abs/2401.12187) with the tokenizer of the first.
      target: a folder that does not exist yet.
      to: "huggingface", into whose matrices an adapter is merged; "orbax"; or "peft", the adapter alone.
      dtype: of the parameters that are written; "" leaves them as they are in a run or a converted folder, and takes float32
        of those of a Hugging Face directory.

    Returns: Names of the tokenizer files; none where the tokenizer is one that has no files.
    Raises ValueError: the target exists, or an unknown format or dtype.
    """
    source, *others = map(reading.local, str(source).split(","))
    target = reading.local(target)
    if target.exists():
        raise ValueError(f"{target} exists already; give a folder that does not, so that nothing is lost")
    writers = {"huggingface": _write_huggingface, "orbax": convert_to_orbax, "peft": functools.partial(_write_peft, source)}
    require(to in writers, "to", to, f"one of {sorted(writers)}")
    require(not dtype or dtype in DTYPES, "dtype", dtype, f"one of {DTYPES}")
    if folder_kind(source) == "run" and combining.depth(run_config(source)):
        raise ValueError(f"{source} holds several networks, and convert writes one; sample from the run itself")
    network, tokenizer = load_policy(source, dtype=dtype or "float32")
    network = _averaged(network, others, dtype or "float32")
    if folder_kind(source) == "run" and _is_reward_model(run_config(source)):
        network = _without_language_head(network, tokenizer)
    if to == "huggingface":
        network = _plain(network)
    writers[to](_as_dtype(network, dtype) if dtype else network, target)
    copied = []
    for file in tokenizer_files(source):
        place = target / TEMPLATES / file.name if file.parent.name == TEMPLATES else target / file.name
        place.parent.mkdir(exist_ok=True)
        shutil.copy2(file, place)
        copied.append(str(place.relative_to(target)))
    return copied


def _averaged(network: networks.Network, others: Sequence[pathlib.Path], dtype: str) -> networks.Network:
    """The network with the mean of its parameters and those of the others, summed in float32."""
    if not others:
        return network
    total = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), network.params)
    for folder in others:
        params = load_policy(folder, dtype=dtype)[0].params
        if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, total) or network.config.quantization is not None:
            raise ValueError(
                f"{folder} holds codes, or parameters of other names or shapes than the first folder; give its like"
            )
        total = jax.tree.map(jnp.add, total, params)
    count = 1 + len(others)
    return network.with_params(jax.tree.map(lambda leaf, like: (leaf / count).astype(like.dtype), total, network.params))


def _is_reward_model(config: ConfigDict) -> bool:
    """Whether what a run ends with gives values alone."""
    return bool(config.preference.steps and not config.rl.steps and preference_method(config).is_reward_model)


def _without_language_head(network: networks.Network, tokenizer: Tokenizer) -> networks.Network:
    """The reward model alone; it pads with a token that no text ends with, as `transformers` reads the last other one."""
    config, params = network.config, dict(network.params)
    for name in ("head", "head_adapter"):
        params.pop(name, None)
    pad = next((pad for pad in (config.pad_id, tokenizer.pad_id) if pad not in (None, tokenizer.eos_id)), None)
    return networks.decoder(dataclasses.replace(config, language_head=False, pad_id=pad)).with_params(params)


def _plain(network: networks.Network) -> networks.Network:
    """The network with its adapter merged and its codes as numbers."""
    plain, params = network.without_params(), network.params
    if network.config.adapter is not None:
        plain, params = networks.merge_adapter(plain, params)
    elif network.config.quantization is not None:
        plain, params = networks.dequantize(plain, params)
    return plain.with_params(params)


def _as_dtype(network: networks.Network, dtype: str) -> networks.Network:
    """The network with its floating-point parameters in that type."""

    def cast(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    changed = networks.decoder(dataclasses.replace(network.config, param_dtype=dtype))
    return changed.with_params(jax.tree.map(cast, network.params))


def _write_huggingface(network: networks.Network, target: pathlib.Path) -> None:
    networks.save_huggingface(network.without_params(), network.params, target)


def _write_peft(source: pathlib.Path, network: networks.Network, target: pathlib.Path) -> None:
    base = None
    if folder_kind(source) == "run":
        wanted = run_config(source).network
        base = wanted.directory or wanted.name or None
    networks.save_peft(network, network.params, target, base=base)


def tokenizer_files(source: pathlib.Path) -> list[pathlib.Path]:
    """Tokenizer files that belong to the policy in `source`; a run keeps them where its configuration says."""
    folder = source
    if folder_kind(source) == "run":
        named = pathlib.Path(build.tokenizer_name(run_config(source)))
        if not named.exists():  # such as "bytes", which has no files
            return []
        folder = named if named.is_dir() else named.parent
    named_templates = sorted((folder / TEMPLATES).glob("*.jinja"))
    return [file for file in map(functools.partial(pathlib.Path, folder), TOKENIZER_FILES) if file.is_file()] + named_templates


def build_module(
    config: ConfigDict, name: str, policy: Network, frozen, tokenizer: Tokenizer, mesh: jax.sharding.Mesh | None = None
) -> dict[str, Any]:  # fmt: skip
    """The fields of a `Run` in which a module differs from the run: `config`, `network`, `frozen` and its method.

    Args:
      config: of the run.
      name: of the module.
      policy: of the run; without a folder the module has its structure, no parameters yet, and shares the frozen ones.
      frozen: those of the policy.
      tokenizer: of the run.
      mesh: of the run.

    Raises ValueError: there is no policy in the folder, or its vocabulary is another one.
    """
    own, directory = module_config(config, name), settings_of(config, name)["directory"]
    pairs = learns_from_pairs(config, name)
    method = dataclasses.replace(preference_method(own) if pairs else reinforcement_method(own), beside=frozenset())
    found = {"config": own, "preference_method" if pairs else "method": method, "modules": {}}
    network = policy.without_params()
    if directory:
        network, _ = load_policy(directory, dtype=config.network.param_dtype, mesh=mesh)
        _check_vocabulary(f"config.modules.{name}.directory", directory, network, policy)
    if method.needs_value_head and network.value is None:
        params, network = network.params, networks.decoder(dataclasses.replace(network.config, value_head=1))
        network = network.with_params(None if params is None else build.with_new_parts(network, params, params, config.seed))
    if directory:
        trained, frozen = build.trained_and_frozen(own, network.params)
        network = network.with_params(trained)
    return found | {"network": network, "frozen": frozen}


def _check_vocabulary(place: str, directory: str, network: Network, policy: Network) -> None:
    sizes = network.config.vocab_size, policy.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{place} is {directory}, which has {sizes[0]} tokens, the policy {sizes[1]}; give one of its vocabulary"
        )


def build_teacher(config: ConfigDict, student: Network, mesh: jax.sharding.Mesh | None = None) -> Network | None:
    """The network in `config.teacher.directory`, with its parameters, laid out on the mesh; None where that is empty.

    Raises ValueError: there is no policy in the folder, or its vocabulary is not the student's.
    """
    directory = config.teacher.directory
    if not directory:
        return None
    teacher, _ = load_policy(directory, dtype=config.network.param_dtype, mesh=mesh)
    _check_vocabulary("config.teacher.directory", directory, teacher, student)
    return teacher
