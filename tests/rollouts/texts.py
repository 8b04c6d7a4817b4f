"""Collections of given texts, for tests of what happens to samples after they were taken."""

import numpy as np

from jaxrl_llm.data import load_tokenizer
from jaxrl_llm.rollouts import Collection, Request
from jaxrl_llm.types import Rollouts

BYTES = load_tokenizer("bytes")


def collection_of(*texts, prompt="?"):
    """One row a text behind the prompt, every character of one byte a token; each row a group."""
    ids = [BYTES.encode(prompt + text) for text in texts]
    tokens = np.zeros((len(ids), max(map(len, ids))), np.int32)
    for row, own in enumerate(ids):
        tokens[row, : len(own)] = own
    length, start = np.array([len(own) for own in ids], np.int32), np.full(len(ids), len(BYTES.encode(prompt)), np.int32)
    places = np.arange(tokens.shape[1])
    mask = ((places >= start[:, None]) & (places < length[:, None])).astype(np.float32)
    rollouts = Rollouts(
        tokens=tokens, length=length, mask=mask, rewards=np.zeros((len(ids), 1), np.float32), behavior_logp=-mask
    )
    return Collection(rollouts, [{"completion": text} for text in texts], [Request(prompt)] * len(ids), start)
