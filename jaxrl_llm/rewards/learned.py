"""Rewards that were learned: networks with a head of one output."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

SMALLEST_WIDTH = 16


def reward_model(network: Any, encode: Callable[[Any, str], list[int]], *, batch: int = 32) -> "RewardModel":
    """Reward: what the head of `network` says of the last token of prompt and completion.

    It runs in the process that it is called in, on its accelerator, and no deadline applies.

    Args:
      network: with its parameters and a value head of one output, such as `networks.load_huggingface` gives for a
        `*ForSequenceClassification` checkpoint, or `training.policies.load_policy` for a run that trained one.
      encode: `(prompt, completion) -> ids` of the tokens to score, the end token included. The prompt is a text; or the
        chat messages of it, where the column "conversation" has them.
      batch: rows that are scored at a time; with a mesh, a multiple of its devices along data and fsdp.

    Raises ValueError: the network has no parameters, or no head of one output.
    """
    if network.params is None:
        raise ValueError("network.params is None; give a network with parameters, as network.with_params(params)")
    outputs = int(network.config.value_head)
    if outputs != 1:
        raise ValueError(f"network.config.value_head is {outputs}; a reward model has a head of 1 output")
    return RewardModel(network, encode, batch)


@dataclasses.dataclass(frozen=True, eq=False)
class RewardModel:
    """A reward as a value; see `reward_model`."""

    network: Any
    encode: Callable[[Any, str], list[int]]
    batch: int
    in_process = True

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[str], conversation: Sequence[Any] | None = None, **columns: Any
    ) -> list[float]:
        asked = prompts if conversation is None else [c or p for c, p in zip(conversation, prompts, strict=True)]
        rows = [self.encode(prompt, completion) for prompt, completion in zip(asked, completions, strict=True)]
        parts = [rows[start : start + self.batch] for start in range(0, len(rows), self.batch)]
        return [value for part in parts for value in self._score(part)]

    def _score(self, rows: list[list[int]]) -> list[float]:
        import numpy as np

        from jaxrl_llm.distributed import fetch

        # Powers of two, and always all rows of a batch: few shapes, so that few programs are ever compiled.
        width = max(SMALLEST_WIDTH, 1 << (max(map(len, rows)) - 1).bit_length())
        tokens, length = np.zeros((self.batch, width), np.int32), np.ones(self.batch, np.int32)
        for place, row in enumerate(rows):
            tokens[place, : len(row)], length[place] = row, len(row)
        values = _scorer(self.network.without_params())(self.network.params, tokens, length)
        return fetch(values)[: len(rows)].tolist()


@functools.lru_cache(maxsize=4)
def _scorer(network: Any) -> Callable:
    """`(params, tokens [B, T], length [B]) -> values [B]` at the last token of each row, compiled."""
    import jax  # only here: the workers of the pool import this room too, and do without it
    import jax.numpy as jnp

    def score(params, tokens, length):
        segments = (jnp.arange(tokens.shape[1]) < length[:, None]).astype(jnp.int32)
        values = network.value(params, network.hidden(params, tokens, None, segments))
        return jnp.take_along_axis(values, length[:, None] - 1, axis=1)[:, 0]

    return jax.jit(score)
