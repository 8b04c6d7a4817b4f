"""A store of rows: a ring of fixed size in the state of a strategy, and so in the checkpoint."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrl_llm.compose import require
from jaxrl_llm.rollouts.collect import Collection, record_of
from jaxrl_llm.rollouts.io import Io
from jaxrl_llm.rollouts.records import PER_TOKEN
from jaxrl_llm.rollouts.requests import requests_for
from jaxrl_llm.sampling import LENGTH, STOP, finish_name
from jaxrl_llm.types import Rollouts

# Number of the source of rows that were sampled in earlier steps.
REPLAYED = 2
Store = dict[str, np.ndarray]


def empty_store(*, capacity: int, row_width: int = 768, components: int = 1, **options: Any) -> Store:
    """A store of `capacity` rows of `row_width` tokens with `components` rewards each; nothing is in it."""
    require(capacity >= 1, "capacity", capacity, "at least 1")
    columns = "at least 1, the columns of the rollouts: task.max_prompt_tokens + rl.max_new_tokens"
    require(row_width >= 1, "row_width", row_width, columns)
    store = {name: np.zeros((capacity, row_width), kind) for name, kind in PER_TOKEN.items()}
    store |= {name: np.zeros(capacity, np.int32) for name in ("length", "start", "prompt_id", "number", "ended")}
    return store | {"rewards": np.zeros((capacity, components), np.float32), "count": np.zeros((), np.int32)}


def put(store: Store, collection: Collection, rows: Sequence[int] | None = None) -> Store:
    """The store with rows of a collection, all by default, in place of the oldest ones; `number` counts them from 1.

    Raises ValueError: the rows have another width, or other rewards, than the store has room for.
    """
    rollouts, store = collection.rollouts, {name: np.array(value) for name, value in store.items()}
    for name, field in (("row_width", "tokens"), ("components", "rewards")):
        wanted, found = store[field].shape[1], getattr(rollouts, field).shape[1]
        if found != wanted:
            raise ValueError(f"the store has {name}={wanted}, and the rollouts {found}; make it with {name}={found}")
    ended = [record["finish_reason"] == finish_name(STOP) for record in collection.records]
    per_row = {"length": rollouts.length, "start": collection.prompt_length, "prompt_id": rollouts.prompt_id, "ended": ended}
    capacity = len(store["number"])
    for row in range(len(rollouts.length)) if rows is None else rows:
        place = int(store["count"]) % capacity
        for name in PER_TOKEN:
            store[name][place] = getattr(rollouts, name)[row]
        for name, values in per_row.items():
            store[name][place] = values[row]
        store["rewards"][place] = rollouts.rewards[row]
        store["count"] += 1
        store["number"][place] = store["count"]
    return store


def of_prompt(store: Store, prompt_id: int) -> np.ndarray:
    """Places of the rows of a prompt, the newest first."""
    found = np.flatnonzero((store["number"] > 0) & (store["prompt_id"] == prompt_id))
    return found[np.argsort(-store["number"][found])]


def stored(store: Store, places: Sequence[int], io: Io, group: Sequence[int] | None = None) -> Collection:
    """Rows of a store as a collection, of source `REPLAYED`, with the log-probabilities and versions that they were put with.

    Args:
      places: of the rows in the store.
      io: of the run that looks up the examples of the prompts.
      group: of each row; by default rows of one prompt are a group.
    """
    places = np.asarray(places, np.int32)
    numbers = store["prompt_id"][places]
    groups = np.unique(numbers, return_inverse=True)[1] if group is None else np.asarray(group)
    fields = {name: store[name][places] for name in (*PER_TOKEN, "length", "prompt_id", "rewards")}
    source = np.full(len(places), REPLAYED, np.int32)
    rollouts = Rollouts(**fields, group=groups.astype(np.int32), source=source)
    requests = requests_for([io.example(int(number)) for number in numbers], numbers)
    start, reasons = store["start"][places], np.where(store["ended"][places], STOP, LENGTH)
    rows = zip(requests, rollouts.tokens, start, rollouts.length, reasons, strict=True)
    records = [
        record_of(io.tokenizer, *row) | {"rewards": [None if np.isnan(value) else float(value) for value in rewards]}
        for row, rewards in zip(rows, rollouts.rewards, strict=True)
    ]
    return Collection(rollouts, records, requests, start)
