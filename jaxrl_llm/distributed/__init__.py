"""Meshes of devices, and how parameters, rows and activations lie on them.

Example:
  >>> mesh = make_mesh(fsdp=len(jax.devices()))
  >>> params = shard_params(params, network, mesh)
  >>> with sharded(mesh):
  ...     state, metrics = jax.jit(update)(TrainState.create(params, optimizer), shard_rows(batch, mesh))

A program of several hosts calls `start()` first; the rest is the same on all of them.
"""

from jaxrl_llm.distributed.hosts import check_same, end, fetch, gathered, is_first, is_own, put, start
from jaxrl_llm.distributed.mesh import AXES, make_mesh
from jaxrl_llm.distributed.sharding import (
    RULES, SAMPLING_RULES, abstract_params, batch_sharding, copy_program, for_sampling, init_params, parameter_shardings,
    row_shards, rules_of, sampling_mesh, shard_params, shard_rows, sharded,
)  # fmt: skip

__all__ = [
    "AXES", "RULES", "SAMPLING_RULES", "abstract_params", "batch_sharding", "check_same", "copy_program", "end", "fetch",
    "for_sampling", "gathered", "init_params", "is_first", "is_own", "make_mesh", "parameter_shardings", "put", "row_shards",
    "rules_of", "sampling_mesh", "shard_params", "shard_rows", "sharded", "start",
]  # fmt: skip
