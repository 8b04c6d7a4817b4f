"""How the loop lays rollouts out for a network, and scores them in the parts of an update."""

from collections.abc import Callable

import jax
import numpy as np

from jaxrl_llm import distributed
from jaxrl_llm.data import pack, pack_forest
from jaxrl_llm.networks import Network
from jaxrl_llm.networks.axes import current_column_shards
from jaxrl_llm.networks.recurrent import SLOTS, chunks_of
from jaxrl_llm.types import Batch, Rollouts

# Tokens of a micro-batch on each device: what fits into the caches of a processor, and what keeps an accelerator busy.
CPU_PART_TOKENS = 2048
PART_TOKENS = 16_384


def lay_out(
    network: Network, rollouts: Rollouts, width: int = 0, micro_batches: int = 0, *, shards: int = 1, part_tokens: int = 0,
    columns: int = 0, platform: str | None = None, **options,
) -> Batch:  # fmt: skip
    """Packed rows for a network: a forest where it reads forests, a segment for each rollout elsewhere.

    A forest with more forks open at once than layers with a state have room for is laid out by segments, too.

    Args:
      network: that reads them.
      rollouts: host arrays of N rows.
      width: tokens of a row; 0 for rows that the longest rollout fits into. Filled up where devices share out columns.
      micro_batches: parts of the batch; 0 for as many as `part_tokens` make.
      shards: devices that share out the rows.
      part_tokens: of a part on each device; 0 for `PART_TOKENS`, or `CPU_PART_TOKENS` on a CPU.
      columns: devices that share out the columns; 0 for those of the mesh that is set.
      platform: of the devices; by default that of this process.
      **options: `keep`, `step` and `coefficients`, as of `data.pack`.
    """
    usual = CPU_PART_TOKENS if (platform or jax.default_backend()) == "cpu" else PART_TOKENS
    columns = columns or current_column_shards()
    tokens = (part_tokens or usual) * shards * columns
    options |= {"columns": columns, "multiple": shards, "parts": micro_batches, "part_tokens": tokens}
    if network.reads_forests:
        batch = pack_forest(rollouts, width or None, **options)
        if getattr(network.config, "delta", None) is None or open_forks(batch.forest.reach) <= SLOTS[-1]:
            return batch
    return pack(rollouts, width or rollouts.tokens.shape[1], **options)


def open_forks(reach: np.ndarray) -> int:
    """The most forks of a row [B, W] that are open where a chunk of columns begins, see `networks.recurrent`."""
    return int(jax.jit(chunks_of)(reach).most)


def micro_batches_of(batch: Batch) -> list[Batch]:
    """The parts of a batch of `lay_out` that hold something."""
    rows = batch.replace(step=None, coefficients={}, parts=None)
    count, used = len(batch.parts), max(int((batch.parts > 0).sum()), 1)
    pieces = [jax.tree.map(lambda leaf, part=part: leaf[part::count], rows) for part in range(used)]
    return [piece.replace(step=batch.step, coefficients=batch.coefficients) for piece in pieces]


def in_parts(score: Callable, batch: Batch):
    """What `score(micro-batch)` gives of all rows of a batch of `lay_out`, as NumPy arrays; 0 for parts that are empty."""
    count = len(batch.parts)
    found = [distributed.fetch(score(piece)) for piece in micro_batches_of(batch)]
    return jax.tree.map(lambda *leaves: _woven(leaves, count), *found)


def _woven(leaves, count: int) -> np.ndarray:
    """Rows m, m + count, ... of the m-th of `leaves`, 0 where there are fewer than `count`."""
    whole = np.zeros((count * len(leaves[0]), *leaves[0].shape[1:]), leaves[0].dtype)
    for part, leaf in enumerate(leaves):
        whole[part::count] = leaf
    return whole
