"""Compiles the update and the sampler of a network for a slice of 16 TPU chips, without one; prints a JSON object.

compile_for_tpu.py TOPOLOGY NETWORK [TOKENS ROWS]

A program of its own, as libtpu can be loaded once in a process. The update is of 64 rows of a forest of 1024 columns, half as
many actions; given others, of those, without the sampler.
"""

import dataclasses
import functools
import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl_llm import methods
from jaxrl_llm.distributed import batch_sharding, make_mesh, parameter_shardings, sampling_mesh, sharded
from jaxrl_llm.networks import as_computed, config, decoder
from jaxrl_llm.sampling.decode import decode
from jaxrl_llm.sampling.records import make_sampling
from jaxrl_llm.training import TrainState, make_update
from jaxrl_llm.types import Batch, Forest

COMPUTED = {"dtype": "bfloat16", "remat": "full", "attention": "pallas"}
CONFIGS = {
    "dense": config("qwen3-0.6b", **COMPUTED),
    "split columns": config("qwen3-0.6b", **COMPUTED),
    # Windows, two kinds of layers, capped logits. All that differs from a whole one is the number of layers, here and below.
    "local and global": config(
        "gemma-2-2b", **COMPUTED, param_dtype="bfloat16", num_layers=8, layer_types=("sliding", "full") * 4
    ),
    "experts": config("qwen3-30b-a3b", **COMPUTED, param_dtype="bfloat16", num_layers=8),
}
# Of the others: data=2, fsdp=4, tensor=2.
MESHES = {"experts": {"fsdp": 2, "tensor": 2, "expert": 4}, "split columns": {"fsdp": 4, "tensor": 2, "context": 2}}
ROWS, TOKENS, PROMPTS = 64, 1024, 8


def new_params(network):
    return network.init(jax.random.key(0))


def placed(tree, shardings):
    """Shapes of arrays that lie on the mesh; one sharding serves a whole tree."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=at), tree, shardings)


def forest_batch(rows: int, tokens: int) -> Batch:
    """Rows of forests, with half as many actions as columns, in up to four micro-batches of rows for each of eight devices."""
    integers, floats = (np.zeros((rows, tokens // 2), dtype) for dtype in ("int32", "float32"))
    columns = np.zeros((rows, tokens), np.int32)
    places = {"index": integers, "column": integers, "segment": integers, "positions": integers, "rollout": integers}
    forest = Forest(tokens=columns, positions=columns, reach=columns)
    known = {"advantage": floats, "behavior_logp": floats, "reference_logp": floats}
    parts = np.zeros(math.gcd(4, rows // 8), np.int32)
    return Batch(tokens=integers, mask=floats, forest=forest, parts=parts, **known, **places).replace(step=None)


def compiled_update(network, mesh, rows: int = ROWS, tokens: int = TOKENS):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6))
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_parameter = parameter_shardings(network, mesh)
    state = jax.eval_shape(lambda: TrainState.create(new_params(network), optimizer))
    like_params = functools.partial(optax.tree_map_params, optimizer, lambda _, sharding: sharding)
    shardings = jax.tree.map(lambda _: everywhere, state).replace(
        params=by_parameter, opt_state=like_params(state.opt_state, by_parameter, transform_non_params=lambda _: everywhere)
    )
    update = make_update(network, methods.get("grpo").objective, optimizer)
    donating = jax.jit(update, donate_argnums=0)
    batch = forest_batch(rows, tokens)
    by_row = placed(batch.replace(parts=None), batch_sharding(mesh))
    inputs = placed(state, shardings), by_row.replace(parts=placed(batch.parts, everywhere))
    with sharded(mesh):
        return donating.lower(*inputs).compile()


def compiled_sampler(network, mesh):
    """In the layout of sampling, with the copy of the parameters that is sampled with; of four layers, which are unrolled."""
    types = network.config.layer_types[:4]
    network, mesh = (
        decoder(dataclasses.replace(network.config, num_layers=4, layer_types=types)),
        sampling_mesh(mesh.devices, mesh.shape["tensor"]),
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    columns = TOKENS // 2
    params = jax.eval_shape(lambda: as_computed(network, new_params(network)))
    params = placed(params, parameter_shardings(network, mesh))
    prompts, lengths = np.zeros((PROMPTS, TOKENS - columns), np.int32), np.ones(PROMPTS, np.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), ROWS))
    sampling = jax.eval_shape(lambda: make_sampling(ROWS, network.config.vocab_size, max_new_tokens=columns))
    inputs = placed((prompts, lengths, keys, sampling), everywhere)
    with sharded(mesh):
        return decode.lower(network, params, *inputs, max_new_tokens=columns).compile()


def largest_gather(compiled) -> int:
    """Most elements that one of its all-gathers gives a chip; only chips without asynchronous collectives give such text."""
    shapes = re.findall(r"= \(?([^=]*?)\)? all-gather(?:-start)?\(", compiled.as_text())
    arrays = [array for shape in shapes for array in re.findall(r"\[([\d,]+)\]", shape)]
    return max((math.prod(map(int, array.split(","))) for array in arrays), default=0)


def figures(compiled) -> dict[str, float]:
    """Sizes per chip in GB."""
    memory = compiled.memory_analysis()
    fields = ("argument", "output", "alias", "temp")
    sizes = {name: getattr(memory, f"{name}_size_in_bytes") / 1e9 for name in fields}
    return sizes | {"total": sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]}


def main(topology: str, name: str, tokens: str = "", rows: str = ""):
    network = decoder(CONFIGS[name])
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    mesh = make_mesh(**MESHES.get(name, {"data": 2, "fsdp": 4, "tensor": 2}), devices=devices)
    if tokens:
        found = {"update": figures(compiled_update(network, mesh, int(rows), int(tokens)))}
    else:
        programs = {"update": compiled_update(network, mesh), "sampler": compiled_sampler(network, mesh)}
        found = {name: figures(one) | {"largest_gather": largest_gather(one)} for name, one in programs.items()}
    leaves = jax.tree.leaves(jax.eval_shape(lambda: new_params(network)))
    size, width = network.config.vocab_size, network.config.hidden_size
    found |= {"parameters": sum(leaf.size for leaf in leaves), "bytes": leaves[0].dtype.itemsize, "head": size * width}
    found["shards"] = mesh.size // mesh.shape["data"]
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
