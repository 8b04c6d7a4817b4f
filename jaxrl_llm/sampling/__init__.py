"""Autoregressive sampling: `generate` for lists of token ids, `decode` as its jitted core, `stream` for chat."""

from jaxrl_llm.sampling.decode import decode
from jaxrl_llm.sampling.draw import draw, inverse_cdf
from jaxrl_llm.sampling.generate import generate, stream
from jaxrl_llm.sampling.harvest import Changing
from jaxrl_llm.sampling.records import LENGTH, RUNNING, STOP, Samples, Sampling, finish_name, make_sampling, row_keys

__all__ = [
    "LENGTH", "RUNNING", "STOP", "Changing", "Samples", "Sampling", "decode", "draw", "finish_name", "generate", "inverse_cdf",
    "make_sampling", "row_keys", "stream",
]  # fmt: skip
