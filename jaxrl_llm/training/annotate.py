"""What a method needs in the rollouts beside what was sampled or given: one scoring pass for each network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxrl_llm.data import pack
from jaxrl_llm.data.packing import unpack
from jaxrl_llm.training.run import Run
from jaxrl_llm.types import Batch, Rollouts

Pass = Callable[[Any, Batch], Any]


def make_annotate(run: Run, passes: Mapping[str, Pass], *, width: int, parts: int) -> Callable[[Any, Rollouts], Rollouts]:
    """Builds `annotate(state, rollouts) -> rollouts` that fills `extras`.

    Args:
      run: the run.
      passes: `(state, batch) -> values [B, T]` by the name in `extras`.
      width: tokens of a packed row.
      parts: number of parts that the rows are scored in.
    """

    def annotate(state, rollouts: Rollouts) -> Rollouts:
        if not passes:
            return rollouts
        batch = pack(rollouts, width, multiple=run.row_multiple(parts))
        extras = dict(rollouts.extras)
        for name, score in passes.items():
            extras[name] = unpack(in_parts(run, score, state, batch, parts), batch, *rollouts.tokens.shape)
        return rollouts.replace(extras=extras)

    return annotate


def in_parts(run: Run, score: Pass, state, batch: Batch, parts: int):
    """What `score(state, batch)` gives, as NumPy arrays, its rows scored in as many `parts` as those of an update."""
    rows, scalars = batch.replace(step=None, coefficients={}), {"step": batch.step, "coefficients": batch.coefficients}
    pieces = [jax.tree.map(lambda leaf, part=part: np.array_split(leaf, parts)[part], rows) for part in range(parts)]
    found = [jax.device_get(score(state, run.place(piece.replace(**scalars)))) for piece in pieces]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)
