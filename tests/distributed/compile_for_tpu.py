"""Compiles the update of a network for a slice of 16 TPU chips, and its sampling, without one; prints a JSON object.

compile_for_tpu.py TOPOLOGY NETWORK [TOKENS ROWS]

A program of its own, as libtpu can be loaded once in a process. The programs are those of a plan, with as many samples as fill
64 rows of 1024 tokens; given others, those, and no sampling.
"""

import dataclasses
import json
import sys

import jax

from jaxrl_llm.distributed import chips
from jaxrl_llm.networks import decoder
from jaxrl_llm.training import build, default_config, plan, programs

# Name, layers in place of those of the whole one (all that differs from it), the type of parameters, and the mesh.
NETWORKS = {
    "dense": ("qwen3-0.6b", None, "float32", {"data": 2, "fsdp": 4, "tensor": 2}),
    "split columns": ("qwen3-0.6b", None, "float32", {"fsdp": 4, "tensor": 2, "context": 2}),
    # Windows, two kinds of layers, capped logits.
    "local and global": ("gemma-2-2b", 8, "bfloat16", {"data": 2, "fsdp": 4, "tensor": 2}),
    "experts": ("qwen3-30b-a3b", 8, "bfloat16", {"fsdp": 2, "tensor": 2, "expert": 4}),
}
SAMPLED_LAYERS = 4  # of decoding, which are unrolled
structure = build.network_structure


def planned(config, wanted, layers: int | None, name: str) -> tuple[plan.Planned, programs.PlannedRun]:
    """The program of this name, of a network of so many layers, and its run."""

    def shortened(*arguments):
        whole = structure(*arguments).config
        count = layers or whole.num_layers
        types = whole.layer_types and whole.layer_types[:count]
        return decoder(dataclasses.replace(whole, num_layers=count, layer_types=types))

    build.network_structure = shortened
    run = programs.planned_run(config, chips.topology_devices(wanted))
    memory = wanted.chip.memory / wanted.chip.devices
    return plan.planned(next(one for one in programs.all_programs(run, memory) if one.name == name), run, wanted), run


def main(topology: str, name: str, tokens: str = "1024", rows: str = "64"):
    model, layers, dtype, mesh = NETWORKS[name]
    config, wanted = default_config(), chips.parse_topology(topology)
    config.network.update(name=model, dtype="bfloat16", remat="full", param_dtype=dtype)
    config.task.max_prompt_tokens = int(tokens) // 2
    config.method.options.samples = 8
    config.rl.update(prompts=int(rows) // 8, max_new_tokens=int(tokens) // 2)
    config.mesh.update(**mesh)
    update, run = planned(config, wanted, layers, "update")
    found = {"update": dataclasses.asdict(update)}
    if tokens == "1024":
        found["sampler"] = dataclasses.asdict(planned(config, wanted, SAMPLED_LAYERS, "sample")[0])
    leaves, network = jax.tree.leaves(run.network.params), run.network.config
    found |= {"parameters": sum(leaf.size for leaf in leaves), "bytes": leaves[0].dtype.itemsize}
    found |= {"head": network.vocab_size * network.hidden_size, "shards": run.mesh.size // run.mesh.shape["data"]}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
