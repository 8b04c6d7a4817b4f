"""Imitation of given tokens."""

from __future__ import annotations

from jaxrl_llm.compose import composable
from jaxrl_llm.numerics import without_infinities
from jaxrl_llm.types import Batch, Scores


@composable
def negative_log_likelihood(scores: Scores, batch: Batch, *, coefficient: float = 1.0):
    """-`coefficient` log pi(token) of each token of the mask, in nats."""
    del batch
    return -coefficient * without_infinities(scores.logp), {}
