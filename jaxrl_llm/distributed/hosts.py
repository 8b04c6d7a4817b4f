"""Several processes that run one program, each on its host with its own devices, by JAX's own runtime.

All of them read the same examples, draw the same numbers and hold the same host arrays; devices hold shares. What only one of
them can know (how long a reward took, whether it was told to stop) is gathered, so that all decide alike. The first one writes
the files of a run and speaks for all.
"""

import functools
import logging
import os
import pickle
import sys
import time
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jaxrl_llm.distributed.mesh import NO_MESH

HEARTBEAT_SECONDS = 30  # after which a process that says nothing counts as dead, and the runtime ends the others


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the other processes of the run; to be called before JAX looks for devices, with the same arguments on all.

    Without arguments the environment says who they are (Cloud TPU, GKE, Slurm, Open MPI, see `jax.distributed.initialize`);
    where it says nothing, this process is alone. A program that has joined them already is left as it is.

    Args:
      coordinator: HOST:PORT of the first process.
      processes: how many there are; 1 for a process that is alone whatever the environment says.
      process: number of this one, from 0.

    Raises ValueError: some arguments are given and others not, or they name no process, or the others cannot be joined.
    """
    given = (coordinator, processes, process)
    if processes == 1 or jax.distributed.is_initialized():
        return
    if None in given and any(value is not None for value in given):
        names = dict(zip(("--coordinator", "--processes", "--process"), given, strict=True))
        missing = ", ".join(name for name, value in names.items() if value is None)
        raise ValueError(f"{missing}: missing; several processes are described by all three, or by the environment alone")
    if processes is not None and not 0 <= process < processes:
        raise ValueError(f"--process={process} is none of --processes={processes}; they are numbered from 0")
    try:
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (ValueError, RuntimeError) as error:
        # Nothing says that there are others; or JAX is at work here already, as in a notebook, and knows of none.
        alone = "coordinator_address" in str(error) or "must be called before" in str(error)
        if coordinator is not None or not alone:
            raise ValueError(f"the processes of this run cannot join each other: {error}") from error
        return
    if not is_first():
        logging.getLogger("jaxrl_llm").setLevel(logging.ERROR)


def is_first() -> bool:
    """Whether this process writes files and speaks for all."""
    return jax.process_index() == 0


def gathered(value: Any) -> list[Any]:
    """What each process gives here, in their order; it must be such that `pickle` can carry it. All wait for each other."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    with jax.set_mesh(NO_MESH):
        sizes = multihost_utils.process_allgather(np.int32(data.size))
        # Powers of two: few shapes, so few programs.
        padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
        padded[: data.size] = data
        rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def check_same(value: dict[str, Any], what: str) -> None:
    """Refuses a run whose processes were started unlike each other.

    Raises ValueError: a process has another `value` than the first one; on all of them, and the message names process and key.
    """
    first, *others = gathered(value)
    for number, other in enumerate(others, 1):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"{what}{name} is {first.get(name)!r} in process 0 and {other.get(name)!r} in process {number}; "
                    "start all processes with the same command"
                )


def fetch(tree: Any) -> Any:
    """Host arrays of a tree whose arrays may lie on the devices of all processes; each gets all of them."""
    away = [leaf for leaf in jax.tree.leaves(tree) if _is_away(leaf)]
    if away:
        copies = iter(_copied(away[0].sharding.mesh)(away))
        tree = jax.tree.map(lambda leaf: next(copies) if _is_away(leaf) else leaf, tree)
    return jax.device_get(tree)


def _is_away(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)


@functools.lru_cache(maxsize=8)
def _copied(mesh: Mesh):
    """Arrays -> the same on every device, by one program."""
    return jax.jit(lambda arrays: arrays, out_shardings=NamedSharding(mesh, PartitionSpec()))


def put(leaf: Any, sharding: Sharding) -> jax.Array:
    """An array on devices, of which each process fills its own; all have the same one, and nobody looks whether they do."""
    if sharding.is_fully_addressable or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf, jnp.result_type(leaf))
    return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)


def is_own(row: int) -> bool:
    """Whether of the rows that all processes have this one is worked at here: every n-th is."""
    return row % jax.process_count() == jax.process_index()


def end(status: int, error: BaseException | None = None) -> int:
    """The exit status of a program that ends early. Of several processes this one ends here and now.

    The runtime would wait for the others at the exit, who wait for this one. After an error of JAX, which may say no more than
    that somebody has gone, it first waits until the runtime has found out who, says so, and ends this process.
    """
    if not (jax.distributed.is_initialized() and jax.process_count() > 1):
        return status
    if error is not None and status == 1:  # one that nobody has put into words
        traceback.print_exception(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
        print(f"process {jax.process_index()}: if another process has gone, its number follows", file=sys.stderr, flush=True)
        time.sleep(2 * HEARTBEAT_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
