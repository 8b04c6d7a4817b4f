"""The programs of a step of the RL phase with the shapes of their inputs, for devices that need not be there.

They are those of the loop, made by its own functions; in place of parameters there are shapes, and in place of samples, samples
all as long as the configuration allows.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxrl_llm import distributed, networks
from jaxrl_llm.data import byte_tokenizer
from jaxrl_llm.networks.blocks import visible_pairs
from jaxrl_llm.networks.kernels import block_of
from jaxrl_llm.sampling import make_sampling
from jaxrl_llm.sampling.decode import decode
from jaxrl_llm.sampling.engine import STRIDE
from jaxrl_llm.sampling.memory import most_slots
from jaxrl_llm.training import build, combining, company, meshes, reinforcement
from jaxrl_llm.training.config import check_config, preference_method, reinforcement_method, supervised_method
from jaxrl_llm.training.layout import micro_batches_of
from jaxrl_llm.training.method_state import coefficients, initial_method_state
from jaxrl_llm.training.run import Run
from jaxrl_llm.types import Batch, Rollouts

WITHOUT_WINDOW = 2**30


class Program(NamedTuple):
    """A program and what is known of it before it is compiled."""

    name: str  # "update", "score", "sample" or "copy"
    function: Any  # jitted
    inputs: dict[str, Any]  # shapes with their shardings, by what they are; some may be unused
    arguments: tuple  # in the order of the function
    options: dict[str, Any]  # keyword arguments that are static
    mesh: Mesh  # that it is compiled for
    beside: dict[str, Any]  # what else lies on the devices while it runs, by what it is
    times: int  # how often it runs in a step
    tokens: int  # that networks read in a run
    learned: int  # tokens whose logits a run needs
    seen: float = 0.0  # share of the keys of a row that its queries see, as attention's kernel takes them, in whole blocks
    loops: tuple[int, ...] = (1,)  # how often its loops of unknown length run, see `hlo.read_hlo`
    filled: float = 1.0  # share of its micro-batches that hold something


class PlannedRun(Run):
    """A run whose parameters are shapes."""

    def base_params(self, directory: str):
        """Parameters of the beginning, for what an optimizer derives from them; inside of a trace."""
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.network.params)


def planned_run(config: ConfigDict, devices) -> PlannedRun:
    """The run of a configuration on these devices, without weights, data or rewards.

    Raises ValueError: an impossible configuration, one without an RL phase, or one that needs a teacher.
    """
    check_config(config)
    if combining.laid_around(config):
        raise ValueError(f"no plan has the programs of several networks or of temperatures by entropy yet; {combining.ONE}")
    if config.modules:
        raise ValueError(f"config.modules has {sorted(config.modules)}, whose programs no plan has yet; plan without them")
    method = reinforcement_method(config)
    if not config.rl.steps:
        raise ValueError("config.rl.steps is 0; a plan is of the RL phase: set it to at least 1")
    if method.needs_teacher:
        raise ValueError(f"{method.name!r} has a teacher, whose programs no plan has yet; choose another method")
    if method.evolution:
        raise ValueError(f"{method.name!r} has no update by gradients, and no plan has its programs yet; choose another method")
    tokenizer = build.build_tokenizer(config) if build.tokenizer_name(config) else byte_tokenizer()
    mesh = meshes.build_mesh(config, devices)
    network = build.with_cache(build.network_structure(config, tokenizer), config.network.cache_dtype)
    if network.config.attention == "auto" and devices[0].platform == "tpu":  # of which this process has none
        network = networks.decoder(dataclasses.replace(network.config, attention="pallas"))
    trained, frozen = build.trained_and_frozen(config, distributed.abstract_params(network, mesh))
    return PlannedRun(
        config=config, workdir=pathlib.Path(), tokenizer=tokenizer, network=network.with_params(trained), frozen=frozen,
        mesh=mesh, sampling_mesh=meshes.build_sampling_mesh(config, mesh, devices), source=(), test_source=(), method=method,
        preference_method=preference_method(config), supervised_method=supervised_method(config), pool=None, rewards={},
    )  # fmt: skip


def all_programs(run: PlannedRun, memory: float) -> list[Program]:
    """The update, each scoring pass, sampling, and the copy of the parameters that is sampled with.

    Args:
      run: see `planned_run`.
      memory: bytes of a device.
    """
    state = placed_state(run)
    reference = company.policy_params(run, state)
    reference = reference if run.method.needs_reference and not run.config.rl.reference.every else None
    scores, rollouts = _scoring(run, state, reference)
    update = _update(run, state, reference, rollouts)
    return [update, *scores, _sampling(run, state, reference, memory), _copying(run, state, reference)]


def placed_state(run: PlannedRun):
    """The state before the first update, in shapes that lie as its arrays do: what is like a parameter lies as it does."""
    state = jax.eval_shape(lambda params: reinforcement.initial_state(run, params), run.network.params)
    everywhere = NamedSharding(run.mesh, PartitionSpec())
    own = dict(jax.tree_util.tree_leaves_with_path(run.network.params))

    def put(path, leaf):
        like = next((own[path[start:]] for start in range(len(path)) if path[start:] in own), None)
        sharding = like.sharding if like is not None and like.shape == leaf.shape else everywhere
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(put, state)


def _rollouts(run: PlannedRun) -> Rollouts:
    """What a step samples: all prompts and completions as long as they may be, those of a group behind one prompt."""
    rl, prompt = run.config.rl, run.config.task.max_prompt_tokens
    samples, random = _samples(run), np.random.default_rng(0)
    rows, width = rl.prompts * samples, prompt + rl.max_new_tokens
    tokens = random.integers(0, run.network.config.vocab_size, (rows, width)).astype(np.int32)
    group = np.repeat(np.arange(rl.prompts, dtype=np.int32), samples)
    tokens[:, :prompt] = tokens[group * samples, :prompt]
    mask = np.broadcast_to((np.arange(width) >= prompt).astype(np.float32), tokens.shape)
    rewards = np.zeros((rows, len(run.config.rewards.names)), np.float32)
    extras = {"answer": np.zeros(rows, np.int32)} if "answer" in run.method.needs else {}
    return Rollouts(
        tokens=tokens, length=np.full(rows, width, np.int32), mask=mask, rewards=rewards, group=group,
        behavior_logp=np.zeros(tokens.shape, np.float32), extras=extras,
    )  # fmt: skip


def _samples(run: PlannedRun) -> int:
    return int(dict(run.method.options).get("samples", 1))


def _scoring(run: PlannedRun, state, reference) -> tuple[list[Program], Rollouts]:
    """The scoring passes, and the rollouts with what they add."""
    rollouts, found = _rollouts(run), []
    for number in range(len(reinforcement.all_passes(run, reference))):

        def scored(state, reference, frozen, batch, number=number):
            whole = dataclasses.replace(run, frozen=frozen)
            return reinforcement.all_passes(whole, reference)[number](state, batch)

        batch = run.pack(rollouts, run.config.rl.row_tokens, run.config.rl.micro_batches, step=0)
        pieces = micro_batches_of(batch)
        arguments = state, reference, run.frozen, _placed_batch(run, pieces[0])
        inputs = {"parameters": (state.params, run.frozen), "reference": reference, "batch": arguments[-1]}
        beside = {"optimizer": state.opt_state}
        counts = {"times": len(pieces), "tokens": _read(pieces[0]), "learned": pieces[0].tokens.size}
        seen = _seen(run, pieces[0])
        found.append(Program("score", jax.jit(scored), inputs, arguments, {}, run.mesh, beside, seen=seen, **counts))
        added = jax.eval_shape(scored, *arguments)
        extras = {name: np.zeros((*rollouts.tokens.shape, *leaf.shape[2:]), leaf.dtype) for name, leaf in added.items()}
        rollouts = rollouts.replace(extras=rollouts.extras | extras)
    return found, rollouts


def _update(run: PlannedRun, state, reference, rollouts: Rollouts) -> Program:
    rl, method_state = run.config.rl, initial_method_state(run.method)
    shapes, _ = jax.eval_shape(run.method.estimator.update, rollouts, method_state["estimator"], jax.random.key(0))
    estimated = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    kept = {name: getattr(rollouts, name) for name in ("tokens", "length", "mask", "group")}
    rows = reinforcement.minibatch_rows(run, len(rollouts.length), 0, 0)[0]
    scalars = coefficients(run.method, method_state, 0) | {"reward": np.float32(0.0)}
    batch = reinforcement.update_batch(run, estimated.replace(**kept), rows, 0, scalars)
    arguments = state, _placed_batch(run, batch), reinforcement.frozen_params(run)
    inputs = {"parameters": (state.params, run.frozen), "optimizer": state.opt_state}
    inputs |= {"method": (state.method_state, state.step, state.key, state.skipped), "batch": arguments[1]}
    filled = 1.0 if batch.parts is None else float((batch.parts > 0).mean())
    counts = {"tokens": round(_read(batch) * filled), "learned": round(batch.tokens.size * filled)}
    function, times = reinforcement.compiled_update(run), rl.epochs * rl.minibatches
    beside = {"reference": reference}
    # Rows of experts that a device shares out come in blocks of half of what is even, see `networks.mixture`.
    counts |= {"seen": _seen(run, batch), "filled": filled, "loops": (1 if run.network.config.experts is None else 2,)}
    return Program("update", function, inputs, arguments, {}, run.mesh, beside, times=times, **counts)


def _sampling(run: PlannedRun, state, reference, memory: float) -> Program:
    """Sampling by the slot engine in one program, `decode`: as many slots as `generate` takes, their tails at full width."""
    rl, samples, mesh = run.config.rl, _samples(run), run.sampling_mesh
    network, rows = run.network.without_params(), run.config.rl.prompts * _samples(run)
    shards = distributed.row_shards(mesh)
    slots = min(rl.slots or shards * most_slots(network, rl.max_new_tokens, int(memory)), rows)
    prompts = max(slots // samples, 1)
    while prompts * samples % shards or prompts % shards:
        prompts += 1
    slots, everywhere = prompts * samples, NamedSharding(mesh, PartitionSpec())
    computed = jax.eval_shape(lambda params: networks.as_computed(network, params), run.whole(run.network.params))
    params = jax.tree.map(_placed, computed, distributed.parameter_shardings(network, mesh))
    limits = {name: rl[name] for name in ("temperature", "top_k", "top_p", "min_p")}
    chosen = make_sampling(slots, network.config.vocab_size, max_new_tokens=rl.max_new_tokens, stop_ids=(0,), **limits)
    tokens = np.zeros((prompts, run.config.task.max_prompt_tokens), np.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), slots))
    others = jax.tree.map(lambda leaf: _placed(leaf, everywhere), (tokens, np.ones(prompts, np.int32), keys, chosen))
    tails = jax.eval_shape(lambda: network.init_tails(slots // shards, rl.max_new_tokens))
    inputs = {"parameters": params, "batch": others}
    # Split by rows alone here, and perhaps by heads in the program: at most so much.
    tensor = mesh.size // shards
    split = tensor if network.config.num_kv_heads % tensor == 0 else 1
    cache = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((leaf.size // split,), leaf.dtype), tails)
    beside = {"training": (state, reference, run.frozen)}
    options = {"max_new_tokens": rl.max_new_tokens, "record_routes": run.config.network.router.replay}
    read = tokens.size + slots * rl.max_new_tokens
    loops = (rl.max_new_tokens, 1) if shards == 1 else (-(-rl.max_new_tokens // STRIDE), STRIDE, 1)
    return Program(
        "sample", decode, inputs | {"cache": cache}, (network, params, *others), options, mesh, beside,
        times=-(-rows // slots), tokens=read, learned=slots * rl.max_new_tokens, seen=0.5, loops=loops,
    )  # fmt: skip


def _copying(run: PlannedRun, state, reference) -> Program:
    """From the layout of training to that of sampling."""
    function = distributed.copy_program(run.network.without_params(), run.sampling_mesh)
    params = company.policy_params(run, state)
    whole = run.whole(params)
    beside = {"training": (state.replace(params=None), reference)}
    return Program("copy", function, {"parameters": whole}, (whole,), {}, run.mesh, beside, times=1, tokens=0, learned=0)


def _placed(leaf, sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=sharding)


def _placed_batch(run: PlannedRun, batch: Batch) -> Batch:
    """As `distributed.shard_rows` places it."""

    def put(path, leaf):
        by_row = jnp.ndim(leaf) and path[-1:] != (jax.tree_util.GetAttrKey("parts"),)
        return _placed(leaf, distributed.batch_sharding(run.mesh) if by_row else NamedSharding(run.mesh, PartitionSpec()))

    return jax.tree_util.tree_map_with_path(put, batch)


def _read(batch: Batch) -> int:
    """Places that networks read, filling included."""
    return (batch if batch.forest is None else batch.forest).tokens.size


def _seen(run: PlannedRun, batch: Batch) -> float:
    """The mean over layers and rows that hold something of the blocks that the kernel computes, as a share of all pairs."""
    if batch.forest is None:
        return 0.5
    reach = batch.forest.reach
    padding = -reach.shape[1] % 128
    reach, positions = (np.pad(array, ((0, 0), (0, padding))) for array in (reach, batch.forest.positions))
    kinds = run.network.config.kinds
    windows = [WITHOUT_WINDOW if kind.window is None else kind.window for kind in kinds]
    pairs = [np.asarray(visible_pairs(reach, positions, window, block_of(reach.shape[1]))) for window in windows]
    filled = (reach > 0).any(axis=1)
    shares = [float(pair[filled].mean()) for pair in pairs]
    return float(np.mean([shares[kind] for kind in run.network.config.kind_of_layer]))
