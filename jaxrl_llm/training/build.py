"""From a configuration to the things it names."""

from __future__ import annotations

import importlib
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from jaxrl_llm import data, distributed, networks, rewards
from jaxrl_llm.data import Tokenizer
from jaxrl_llm.networks import families
from jaxrl_llm.training.config import DECAYS

SOURCES = ("arithmetic", "jsonl", "tfds", "reasoning_gym")


def build_tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer that the configuration names, or that lies with the checkpoint."""
    name = config.tokenizer or config.network.directory
    if not name:
        raise ValueError("config.tokenizer and config.network.directory are both empty; give one of them")
    return data.load_tokenizer(name)


def build_source(config: ConfigDict, tokenizer: Tokenizer, *, test: bool = False) -> Sequence[dict[str, Any]]:
    """Examples to train on, or held-out ones (`task.options` updated by `task.test_options`).

    Raises:
      ValueError: an unknown source, options it does not take, or prompts that are too long.
    """
    task = config.task
    options = task.options.to_dict() | (task.test_options.to_dict() if test else {})
    source = _open_source(task.source, options)
    if task.chat:
        source = data.as_chat(source, system=task.system or None, suffix=task.suffix)
    elif task.system or task.suffix:
        raise ValueError("config.task.system and config.task.suffix would change nothing: config.task.chat is False")
    return data.filter_long(source, tokenizer, task.max_prompt_tokens, drop=task.drop_long)[0]


def _open_source(name: str, options: dict[str, Any]):
    openers = {
        "arithmetic": data.arithmetic_source,
        "jsonl": data.jsonl_source,
        "tfds": data.tfds_source,
        "reasoning_gym": data.reasoning_gym_source,
    }
    if name not in openers:
        raise ValueError(f"config.task.source is {name!r}; it must be one of {SOURCES}")
    try:
        return openers[name](**options)
    except TypeError as error:
        raise ValueError(f"config.task.options for {name!r} are {sorted(options)}: {error}") from error


def build_mesh(config: ConfigDict) -> jax.sharding.Mesh | None:
    """The mesh that the configuration asks for; None for one device. One of its sizes may be -1: all that are left.

    Raises:
      ValueError: the sizes do not fit the devices.
    """
    sizes = config.mesh.to_dict()
    wrong = [name for name, size in sizes.items() if size < 1 and size != -1]
    if wrong:
        raise ValueError(f"config.mesh.{wrong[0]} is {sizes[wrong[0]]}; it must be at least 1, or -1 for all devices left")
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ValueError(f"config.mesh has -1 for {open_axes}; only one size can be left open")
    if open_axes:
        sizes[open_axes[0]] = jax.device_count() // -math.prod(sizes.values())
    return distributed.make_mesh(**sizes) if math.prod(sizes.values()) != 1 else None


def build_network(config: ConfigDict, tokenizer: Tokenizer, mesh: jax.sharding.Mesh | None = None) -> networks.Network:
    """The checkpoint's network with its parameters, or one from scratch, initialised by the seed; laid out on the mesh."""
    network, wanted = network_structure(config, tokenizer), config.network
    if wanted.directory:
        computed = {"compute_dtype": wanted.dtype, "remat": wanted.remat}
        params = networks.load_huggingface(wanted.directory, wanted.param_dtype, **computed).params
    else:
        params = network.init(jax.random.key(config.seed))
    return network.with_params(params if mesh is None else distributed.shard_params(params, network, mesh))


def network_structure(config: ConfigDict, tokenizer: Tokenizer) -> networks.Network:
    """The network without parameters.

    Raises:
      ValueError: an unknown family, or sizes that do not go together.
    """
    sizes = config.network.to_dict()
    directory = sizes.pop("directory")
    if directory:
        stored = json.loads((pathlib.Path(directory) / "config.json").read_text())
        computed = {name: sizes[name] for name in ("dtype", "param_dtype", "remat")}
        return networks.decoder(families.from_huggingface(stored, **computed))
    if sizes["family"] not in families.FAMILIES:
        raise ValueError(f"config.network.family is {sizes['family']!r}; it must be one of {sorted(families.FAMILIES)}")
    tokens = {"eos_ids": tokenizer.stop_ids, "pad_id": tokenizer.pad_id, "bos_id": tokenizer.bos_id}
    traits = families.FAMILIES[sizes["family"]].traits
    return networks.decoder(
        networks.DecoderConfig(vocab_size=tokenizer.vocab_size, tie_embeddings=True, **traits, **tokens, **sizes)
    )


def build_rewards(config: ConfigDict) -> dict[str, Callable]:
    """Reward functions of training and evaluation by name.

    Raises:
      ValueError: a name that `jaxrl_llm.rewards` does not have, or that cannot be imported.
    """
    names = [*config.rewards.names, *filter(None, [config.evaluation.reward])]
    return {name: load_reward(name) for name in names}


def load_reward(name: str) -> Callable:
    """A reward of `jaxrl_llm.rewards`, or the function that "package.module:function" names."""
    if ":" not in name:
        if name not in rewards.NAMED:
            raise ValueError(f"reward {name!r} is unknown; give 'package.module:function' or one of {sorted(rewards.NAMED)}")
        return rewards.NAMED[name]
    module, function = name.split(":", 1)
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward {name!r} cannot be imported: {error}; is its module on PYTHONPATH?") from error


def training_sampling(config: ConfigDict, tokenizer: Tokenizer) -> dict[str, Any]:
    """How the RL phase samples: keyword arguments of `sampling.generate`."""
    chosen = {name: config.rl[name] for name in ("max_new_tokens", "temperature", "top_k", "top_p", "min_p")}
    return chosen | _stopping(config, tokenizer)


def evaluation_sampling(config: ConfigDict, tokenizer: Tokenizer) -> dict[str, Any]:
    """How held-out completions are sampled: by settings of their own, never by those of training."""
    chosen = {"max_new_tokens": config.rl.max_new_tokens, "temperature": config.evaluation.temperature}
    return chosen | _stopping(config, tokenizer)


def _stopping(config: ConfigDict, tokenizer: Tokenizer) -> dict[str, Any]:
    strings = tuple(config.rl.stop_strings)
    texts = {"stop_strings": strings, "detokenize": tokenizer.decode} if strings else {}
    return {"stop_ids": tokenizer.stop_ids} | texts


def build_optimizer(settings: ConfigDict, total_steps: int, factor: float = 1.0) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW with a schedule over `total_steps` updates."""
    schedule = build_schedule(settings, total_steps, factor)
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity(),
        optax.adamw(schedule, b1=settings.beta1, b2=settings.beta2, weight_decay=settings.weight_decay),
    )


def build_schedule(settings: ConfigDict, total_steps: int, factor: float = 1.0) -> optax.Schedule:
    """Linear warm-up to the learning rate, then one of `config.DECAYS` to 0 at `total_steps`.

    Raises:
      ValueError: an unknown decay.
    """
    if settings.decay not in DECAYS:
        raise ValueError(f"optimizer.decay is {settings.decay!r}; it must be one of {DECAYS}")
    peak, warmup = settings.learning_rate * factor, settings.warmup_steps
    rest = max(total_steps - warmup, 1)
    decays = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), decays[settings.decay]], [warmup])
