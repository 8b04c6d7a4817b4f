"""From a configuration to the things it names."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from jaxrl_llm import data, distributed, environments, methods, networks, reading, rewards
from jaxrl_llm.compose import require
from jaxrl_llm.data import Tokenizer
from jaxrl_llm.data.chat import encode_rendered, with_options
from jaxrl_llm.networks import families
from jaxrl_llm.training.combining import depth, split_first
from jaxrl_llm.training.config import DECAYS, REWARD_MODEL, preference_method, reinforcement_method
from jaxrl_llm.training.given import NOTHING, Given, as_source, own_copy
from jaxrl_llm.training.methods_of import texts_of
from jaxrl_llm.training.wrapping import Wrap, rule_of

SOURCES = ("arithmetic", "numbered", "programs", "jsonl", "tfds", "reasoning_gym", "preferences")


def build_tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer that the configuration names, or that lies with the checkpoint."""
    name = tokenizer_name(config)
    if not name:
        raise ValueError("config.tokenizer and config.network.directory are both empty; give one of them")
    tokenizer, options = data.load_tokenizer(name), config.task.template_options.to_dict()
    try:
        return with_options(tokenizer, options) if options else tokenizer
    except ValueError as error:
        raise ValueError(f"config.task.template_options: {error}") from error


def tokenizer_name(config: ConfigDict) -> str:
    """What `build_tokenizer` loads; "" for nothing."""
    return config.tokenizer or config.network.directory or config.network.tokenizer


def build_source(
    config: ConfigDict, tokenizer: Tokenizer, *, test: bool = False, vocab_size: int | None = None, given: Given = NOTHING,
    counts: dict[str, int] | None = None,
) -> Sequence[dict[str, Any]]:  # fmt: skip
    """Examples to train on, or held-out ones (`task.options` updated by `task.test_options`), all of them encoded once.

    Nothing of them is to be found wrong by the step that draws it.

    Args:
      config: its sections `task` and `preference` count.
      tokenizer: by which prompts are measured.
      test: whether those are wanted that are held out.
      vocab_size: number of the tokens that the network knows; by default it is not looked at.
      given: rows that stand in the place of the task's source; without held-out ones, those to train on are measured.
      counts: gets the number of the examples that fit, and of those that were dropped.

    Raises ValueError: an unknown source, options it does not take, or prompts that are too long.
    """
    task = config.task
    options = task.options.to_dict() | (task.test_options.to_dict() if test else {})
    source = _given_source(config, given, test) or _open_source(task.source, options)
    if task.chat:
        source = data.as_chat(source, system=task.system or None, suffix=task.suffix)
    elif task.system or task.suffix:
        raise ValueError("config.task.system and config.task.suffix would change nothing: config.task.chat is False")
    if task.tools:
        schemas = [each.schema for each in environments.load_tools(task.tools)]
        source = data.map_source(source, functools.partial(_with_tools, schemas))
    if task.goal:
        source = data.goal_conditioned(source, goal=task.goal)
    if task.revision:
        source = data.revised(source, template=task.revision)
    checks = {"drop": task.drop_long, "vocab_size": vocab_size}
    source, dropped = data.filter_long(source, tokenizer, task.max_prompt_tokens, **checks)
    if config.sft.steps and not test:
        source, more = data.filter_long_examples(source, tokenizer, **_row_limit(config, "sft"), **checks)
        dropped += more
    if config.preference.steps:
        texts = texts_of(preference_method(config))
        source, more = data.filter_long_pairs(source, tokenizer, **_row_limit(config, "preference"), texts=texts, **checks)
        dropped += more
    if counts is not None:
        counts |= (
            {"held_out": len(source), "held_out_dropped": dropped} if test else {"examples": len(source), "dropped": dropped}
        )
    if REWARD_MODEL in (*config.rewards.names, config.evaluation.reward):
        source = data.map_source(source, _with_conversation)
    return source


def _given_source(config: ConfigDict, given: Given, test: bool) -> data.Source | None:
    name = "held_out" if test and "held_out" in config.given else "data"
    if name not in config.given:
        return None
    rows = getattr(given, name)
    if rows is None:
        raise ValueError(
            f"config.given.{name} are {config.given[name].rows} rows that train() was given in Python, which no folder holds; "
            "say with --config=FILE what to take instead"
        )
    return as_source(rows, name, pairs=bool(config.preference.steps))


def _row_limit(config: ConfigDict, phase: str) -> dict[str, Any]:
    """The width of the rows of a phase, and what to do about texts that it does not hold."""
    mend = f"raise config.{phase}.row_tokens, or set config.task.drop_long=True to leave longer ones out"
    return {"width": config[phase].row_tokens, "mend": mend}


def _with_tools(schemas: list[dict[str, Any]], example: dict[str, Any]) -> dict[str, Any]:
    if isinstance(example.get("prompt"), str) or example.get("tools"):
        mend = "set config.task.chat=True, leave the column 'tools' out, or set config.task.tools=()"
        raise ValueError(f"config.task.tools has no place in a prompt that is a text or has tools of its own; {mend}")
    return example | {"tools": schemas}


def _with_conversation(example: dict[str, Any]) -> dict[str, Any]:
    """Rewards get the last message of a chat as a text; a reward model reads all of them in a column."""
    return example | ({} if isinstance(example["prompt"], str) else {"conversation": example["prompt"]})


def _open_source(name: str, options: dict[str, Any]):
    openers = {
        "arithmetic": data.arithmetic_source,
        "numbered": data.numbered_source,
        "programs": data.program_source,
        "jsonl": data.jsonl_source,
        "tfds": data.tfds_source,
        "reasoning_gym": data.reasoning_gym_source,
        "preferences": _preferences,
    }
    require(name in openers, "config.task.source", name, f"one of {SOURCES}")
    try:
        return openers[name](**options)
    except TypeError as error:
        raise ValueError(f"config.task.options for {name!r} are {sorted(options)}: {error}") from error


def _preferences(path: str = "", **options):
    """The pairs of a file, or without one those of the built-in task."""
    return data.preference_source(path, **options) if path else data.arithmetic_preferences(**options)


def build_network(
    config: ConfigDict, tokenizer: Tokenizer, mesh: jax.sharding.Mesh | None = None,
    report: Callable[[Callable[..., networks.QuantizationGap]], None] | None = None, given: networks.Network | None = None,
) -> networks.Network:  # fmt: skip
    """The checkpoint's network with its parameters, or one from scratch, initialised by the seed; laid out on the mesh.

    A base that is to be quantised is, and an adapter lies over it. `report` is told of the former: it is given a function
    `(tokens, segments) -> QuantizationGap`, while both bases are there. A network that is `given` is the base.
    """
    wanted, network = config.network, base_network(config, tokenizer, mesh, given)
    network, params = network.without_params(), network.params
    if wanted.quantization:
        exact = network, params
        network, params = networks.quantize(network, params, wanted.quantization)
        if report is not None:
            report(functools.partial(networks.quantization_gap, *exact, network, params))
        del exact
    if wanted.adapter.pattern:
        # Apart from the key of the base, so that neither repeats the other's noise.
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        network, params = networks.add_adapter(network, params, networks.AdapterConfig(**wanted.adapter), key)
    changed, network = wanted.quantization or wanted.adapter.pattern, with_cache(network, wanted.cache_dtype)
    return network.with_params(distributed.shard_params(params, network, mesh) if mesh is not None and changed else params)


def with_cache(network: networks.Network, dtype: str) -> networks.Network:
    """The network with a cache of that dtype in decoding; "" leaves the one that it has."""
    if not dtype:
        return network
    if not isinstance(network.config, networks.DecoderConfig):
        raise ValueError(f"config.network.cache_dtype is {dtype!r}, and the given network keeps no cache; leave it ''")
    return networks.decoder(dataclasses.replace(network.config, cache_dtype=dtype))


def base_network(
    config: ConfigDict, tokenizer: Tokenizer, mesh: jax.sharding.Mesh | None = None, given: networks.Network | None = None
) -> networks.Network:
    """The network as it is stored, initialised or given, without what the configuration lays over it."""
    if given is not None:
        return _given_network(config, given, mesh)
    network, wanted = base_structure(config, tokenizer), config.network
    if wanted.directory:
        computed = {"compute_dtype": wanted.dtype, "remat": wanted.remat} | _value_head(config)
        if mesh is not None:
            computed |= {"shardings": functools.partial(distributed.parameter_shardings, mesh=mesh)}
        return networks.load_huggingface(wanted.directory, wanted.param_dtype, **computed)
    return network.with_params(distributed.init_params(network, jax.random.key(config.seed), mesh))


def _given_network(config: ConfigDict, given: networks.Network, mesh: jax.sharding.Mesh | None) -> networks.Network:
    """A copy of the given network, with a value head of zeros where the run trains one that it does not have."""
    network, params = own_copy(given), None
    head = _value_head(config)
    if head and given.value is None:
        network = networks.decoder(dataclasses.replace(given.config, **head))
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(network.init, jax.random.key(0)))
        params |= own_copy(given).params
    params = network.params if params is None else params
    return network.with_params(params if mesh is None else distributed.shard_params(params, network, mesh))


def with_new_parts(network: networks.Network, params: Any, whole: Any, seed: int) -> Any:
    """`params`, and those parameters of the network that `whole` lacks, such as a value head's, initialised by the seed."""
    known = flatten_dict(whole)

    @jax.jit  # which makes no others
    def made(key):
        return {path: leaf for path, leaf in flatten_dict(network.init(key)).items() if path not in known}

    return unflatten_dict(flatten_dict(params) | made(jax.random.key(seed)))


def network_structure(config: ConfigDict, tokenizer: Tokenizer) -> networks.Network:
    """The network of the run without parameters.

    Raises ValueError: an unknown family, sizes that do not go together, a pattern that is found nowhere, or columns that
      devices are to share out under layers with a state.
    """
    wanted, base = config.network, base_structure(config, tokenizer)
    whole = config.mesh.context == 1 or base.config.delta is None
    require(
        whole, "config.mesh.context", config.mesh.context, "1, as the network has layers whose state goes through whole rows"
    )
    quantization = networks.QuantizationConfig(wanted.quantization) if wanted.quantization else None
    adapter = networks.AdapterConfig(**wanted.adapter) if wanted.adapter.pattern else None
    return networks.decoder(dataclasses.replace(base.config, quantization=quantization, adapter=adapter))


def trained_and_frozen(config: ConfigDict, params: Any) -> tuple[Any, Any]:
    """The parameters that train, and the others; None for these where all train.

    Of several networks, those of the policy's own may train.

    Raises ValueError: `config.network.trains` is found in no path, or in one of codes.
    """
    trains = config.network.trains or (rf"{networks.ADAPTER}|^value_head$" if config.network.adapter.pattern else "")

    def split(own):
        return networks.split_params(own, trains) if trains else (own, None)

    return split_first(depth(config), params, split)


def base_structure(config: ConfigDict, tokenizer: Tokenizer) -> networks.Network:
    """The structure of `base_network`, before any parameter is read; its `config.vocab_size` are the tokens that it has.

    Raises ValueError: what `networks.huggingface_config` and `check_stop_ids` refuse, or an unknown family or name.
    """
    sizes = config.network.to_dict()
    laid_over = ("adapter", "quantization", "trains", "router", "tokenizer", "cache_dtype")
    laid_over += ("combined", "grammar", "entropy_temperature")
    directory, named, *_ = (sizes.pop(name) for name in ("directory", "name", *laid_over))
    computed = {name: sizes[name] for name in ("dtype", "param_dtype", "remat")} | _value_head(config)
    if "network" in config.given:
        return networks.decoder(dataclasses.replace(given_structure(config), **_value_head(config)))
    if directory:
        dtypes = {"compute_dtype": computed.pop("dtype"), "dtype": computed.pop("param_dtype")}
        found = networks.huggingface_config(directory, **dtypes, **computed)
        check_stop_ids(tokenizer, found.vocab_size, directory)
        return networks.decoder(found)
    if named:
        return networks.decoder(_named_config(named, tokenizer, computed))
    if sizes["family"] not in families.FAMILIES:
        raise ValueError(f"config.network.family is {sizes['family']!r}; it must be one of {sorted(families.FAMILIES)}")
    tokens = {"eos_ids": tokenizer.stop_ids, "pad_id": tokenizer.pad_id, "bos_id": tokenizer.bos_id}
    traits = families.FAMILIES[sizes["family"]].traits
    return networks.decoder(
        networks.DecoderConfig(
            vocab_size=tokenizer.vocab_size, tie_embeddings=True, **traits, **tokens, **sizes, **_value_head(config)
        )
    )


def check_stop_ids(tokenizer: Tokenizer, vocab_size: int, place: str | pathlib.Path) -> None:
    """Refuses tokens that are to end a generation and that the network does not have.

    A tokenizer may know more tokens than its network, as long as none of them is used: `base_structure` tells cheaply how
    many the network has.

    Raises ValueError: such a token; the message begins with `place`.
    """
    outside = [token for token in tokenizer.stop_ids if token >= vocab_size]
    if outside:
        raise ValueError(
            f"{place}: token {outside[0]} is to end a generation, but the network has {vocab_size} tokens; correct "
            "eos_token_id in generation_config.json and eos_token in tokenizer_config.json, or take the network's own tokenizer"
        )


def given_structure(config: ConfigDict) -> networks.DecoderConfig:
    """Configuration of the network that `train` was given in Python.

    Raises ValueError: it was a function of the user's own.
    """
    fields = config.given.network.to_dict()["config"]
    if isinstance(fields, str):
        raise ValueError(f"config.given.network is the function {fields}, which no folder holds; use it in Python")
    return reading.build(networks.DecoderConfig, fields, "config.given.network: ")


def _named_config(name: str, tokenizer: Tokenizer, computed: dict[str, Any]) -> networks.DecoderConfig:
    found = networks.config(name, **computed)
    if tokenizer.vocab_size > found.vocab_size:
        raise ValueError(
            f"config.tokenizer has {tokenizer.vocab_size} tokens; config.network.name={name!r} knows {found.vocab_size}: "
            "take the tokenizer that belongs to it"
        )
    return found


def _value_head(config: ConfigDict) -> dict[str, int]:
    """The value head of the network that the run trains, where it is to give values itself."""
    if config.critic.shared:
        return {"value_head": reinforcement_method(config).critic.outputs}
    phases = ((config.preference.steps, config.preference.method), (config.rl.steps, config.method.name))
    needed = any(steps and methods.get(name).needs_value_head for steps, name in phases)
    return {"value_head": 1} if needed else {}


def training_sampling(config: ConfigDict, tokenizer: Tokenizer) -> dict[str, Any]:
    """How the RL phase samples: keyword arguments of `sampling.generate`."""
    chosen = {name: config.rl[name] for name in ("max_new_tokens", "temperature", "top_k", "top_p", "min_p")}
    chosen |= {"record_routes": config.network.router.replay}
    return chosen | _slots(config) | stopping(tokenizer, config.rl.stop_strings)


def evaluation_sampling(config: ConfigDict, tokenizer: Tokenizer) -> dict[str, Any]:
    """How held-out completions are sampled: by settings of their own, never by those of training."""
    chosen = {"max_new_tokens": config.rl.max_new_tokens, "temperature": config.evaluation.temperature}
    return chosen | _slots(config) | stopping(tokenizer, config.rl.stop_strings)


def _slots(config: ConfigDict) -> dict[str, int]:
    return {"slots": config.rl.slots} if config.rl.slots else {}


def stopping(tokenizer: Tokenizer, further: Sequence[str] = ()) -> dict[str, Any]:
    """What ends a sample: keyword arguments of `sampling.generate`, of the tokenizer's stops and `further` strings.

    A string that is a special token becomes a stop token, as no text shows it.

    Raises ValueError: a string that no text can show, since a special token is part of it.
    """
    ids, strings = list(tokenizer.stop_ids), []
    for string in dict.fromkeys((*tokenizer.stop_strings, *further)):
        written = encode_rendered(tokenizer, string)
        shown = tokenizer.decode(written)
        if len(written) == 1 and not shown:
            ids += written
        elif len(shown) < len(string) and tokenizer.decode(written, skip_special_tokens=False).strip() != shown.strip():
            fault = f"the stop string {string!r} holds a special token, and texts show none"
            raise ValueError(f"{fault}; give the special token alone, in config.rl.stop_strings or generation_config.json")
        else:
            strings.append(string)
    texts = {"stop_strings": tuple(strings), "detokenize": tokenizer.decode} if strings else {}
    return {"stop_ids": tuple(dict.fromkeys(ids))} | texts


def build_optimizer(
    settings: ConfigDict, total_steps: int, factor: float = 1.0, wrap: Wrap | None = None
) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW with a schedule over `total_steps` updates, or the rule of `wrap`."""
    schedule = build_schedule(settings, total_steps, factor)
    rule = rule_of(wrap or {}, schedule)
    return rule or optax.chain(
        optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity(),
        optax.adamw(schedule, b1=settings.beta1, b2=settings.beta2, weight_decay=settings.weight_decay),
    )


def build_schedule(settings: ConfigDict, total_steps: int, factor: float = 1.0) -> optax.Schedule:
    """Linear warm-up to the learning rate, then one of `config.DECAYS` to 0 at `total_steps`.

    Raises ValueError: an unknown decay.
    """
    require(settings.decay in DECAYS, "optimizer.decay", settings.decay, f"one of {DECAYS}")
    peak, warmup = settings.learning_rate * factor, settings.warmup_steps
    rest = max(total_steps - warmup, 1)
    decays = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), decays[settings.decay]], [warmup])


def build_pool(config: ConfigDict) -> rewards.RewardPool:
    """The workers that evaluate rewards."""
    settings = config.rewards
    return rewards.RewardPool(settings.workers, timeout_value=settings.timeout_value, memory_gb=settings.memory_gb)
