"""Whether sampler and learner are one policy: held-out samples, scored by the learner's network as in training."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_llm import distributed
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.training.layout import lay_out, micro_batches_of
from jaxrl_llm.types import Batch, Rollouts


class Agreement(NamedTuple):
    """What a comparison of sampler and learner found.

    Attributes:
      gap: largest |learner's - sampler's| log-probability of a sampled token, nats.
      tokens: number of sampled tokens.
      short: number of those whose log-probability falls short of the learner's largest by more than the bound: none in greedy
        samples of one policy.
    """

    gap: float = 0.0
    tokens: int = 0
    short: int = 0

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(max(self.gap, other.gap), self.tokens + other.tokens, self.short + other.short)


Agree = Callable[[Rollouts, int], Agreement]


def make_agree(
    network,
    params,
    *,
    temperature: float,
    bound: float,
    width: int = 0,
    parts: int = 0,
    shards: int = 1,
    place: Callable[[Batch], Batch] = lambda batch: batch,
) -> Agree:
    """Builds `agree(rollouts, count) -> Agreement` of the first `count` rows: one forward pass over them, packed.

    Args:
      network: hashable, without parameters.
      params: its parameters.
      temperature: that the rows were sampled at; 0 (greedy) counts as 1.
      bound: nats, by which log-probabilities may differ.
      width: tokens of a packed row, as in `lay_out`, like the next two.
      parts: number of parts that the rows are scored in, one after the other.
      shards: devices that share out the rows.
      place: lays a part out on the devices.
    """
    score = _scorer(network, temperature or 1.0)

    def agree(rollouts: Rollouts, count: int) -> Agreement:
        keep = np.arange(len(rollouts.length)) < count
        pieces = micro_batches_of(lay_out(network, rollouts, width, parts, shards=shards, keep=keep))
        return sum((_compared(*distributed.fetch(score(params, place(piece))), piece, bound) for piece in pieces), Agreement())

    return agree


@functools.cache
def _scorer(network, temperature: float):
    """Compiled once for all evaluations of a run."""
    score = make_scorer(network, {"max_logp"}, temperature=temperature)

    def both(params, batch: Batch):
        scores = score(params, batch)
        return scores.logp, scores.max_logp

    return jax.jit(both)


def _compared(logp: Any, largest: Any, batch: Batch, bound: float) -> Agreement:
    sampled = np.asarray(batch.mask) > 0
    gap = np.abs(logp - batch.behavior_logp)[sampled].max(initial=0.0)
    return Agreement(float(gap), int(sampled.sum()), int((largest - logp > bound)[sampled].sum()))
