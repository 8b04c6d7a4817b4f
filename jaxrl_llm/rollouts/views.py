"""Views: the same answers behind other prompts, for whoever scores them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxrl_llm.data.tokenizers import Tokenizer
from jaxrl_llm.rollouts.collect import Collection
from jaxrl_llm.rollouts.requests import Prompt, Request, prompt_ids_of
from jaxrl_llm.types import Rollouts

_MULTIPLE = 64  # of the width of views, so that few are compiled


def seen_as(collection: Collection, view: Callable[[Request], Prompt], tokenizer: Tokenizer) -> tuple[Rollouts, np.ndarray]:
    """The rows with the prompts of the view in front of their completions, and where those begin, int [N]."""
    rollouts, requests = collection.rollouts, collection.requests
    prompts = [prompt_ids_of(tokenizer, view(request), request.example.get("tools")) for request in requests]
    starts = np.array([len(prompt) for prompt in prompts], np.int32)
    moved = starts - collection.prompt_length
    length = np.asarray(rollouts.length) + moved
    width = -(-int(length.max()) // _MULTIPLE) * _MULTIPLE
    tokens, mask = np.zeros((len(prompts), width), np.int32), np.zeros((len(prompts), width), np.float32)
    for row, prompt in enumerate(prompts):
        own = slice(int(collection.prompt_length[row]), int(rollouts.length[row]))
        place = slice(len(prompt), int(length[row]))
        tokens[row, : len(prompt)], tokens[row, place] = prompt, rollouts.tokens[row, own]
        mask[row, place] = rollouts.mask[row, own]
    return Rollouts(tokens=tokens, length=length, mask=mask, rewards=np.asarray(rollouts.rewards), group=rollouts.group), starts


def at_home(values: np.ndarray, collection: Collection, starts: np.ndarray) -> np.ndarray:
    """Values [N, W, ...] of views at the places of the rows' own tokens, [N, T, ...]; 0 at prompts and padding."""
    rollouts = collection.rollouts
    found = np.zeros((*rollouts.tokens.shape, *values.shape[2:]), values.dtype)
    for row, start in enumerate(starts):
        own = slice(int(collection.prompt_length[row]), int(rollouts.length[row]))
        found[row, own] = values[row, start : start + own.stop - own.start]
    return found
