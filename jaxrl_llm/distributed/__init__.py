"""Meshes of devices, and how parameters, rows and activations lie on them.

Example:
  >>> mesh = make_mesh(fsdp=len(jax.devices()))
  >>> params = shard_params(params, network, mesh)
  >>> with sharded(mesh):
  ...     state, metrics = jax.jit(update)(TrainState.create(params, optimizer), shard_rows(batch, mesh))

A program of several hosts calls `jax.distributed.initialize()` first; the rest is the same on all of them.
"""

from jaxrl_llm.distributed.mesh import AXES, make_mesh
from jaxrl_llm.distributed.sharding import RULES, batch_sharding, parameter_shardings, shard_params, shard_rows, sharded

__all__ = [
    "AXES",
    "RULES",
    "batch_sharding",
    "make_mesh",
    "parameter_shardings",
    "shard_params",
    "shard_rows",
    "sharded",
]
