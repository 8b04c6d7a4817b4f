"""Strategies: which prompts are sampled, how often, and what of it is kept.

A strategy is `(draw, collect, cursor, prompts) -> (Collection, cursor, metrics)`, with
`draw(cursor, count) -> (examples, prompt_ids, cursor)` and
`collect(examples, prompt_ids, num_samples, first_uid) -> Collection`.
"""

from __future__ import annotations

import numpy as np

from jaxrl_llm.compose import composable
from jaxrl_llm.rollouts.collect import Collection
from jaxrl_llm.rollouts.records import concatenate, select_rows


@composable
def grouped(draw, collect, cursor, prompts: int, *, samples: int = 8):
    """`samples` completions of each of `prompts` prompts."""
    examples, prompt_ids, cursor = draw(cursor, prompts)
    return collect(examples, prompt_ids, samples, 0), cursor, {}


@composable
def dynamic_sampling(draw, collect, cursor, prompts: int, *, samples: int = 16, max_rounds: int = 8):
    """Draws further prompts until `prompts` groups have rewards that differ, or `max_rounds` rounds are over.

    Groups without signal are left out, and so are informative ones beyond `prompts`. Where the rounds end too early,
    the groups found stand alone; where there is none, the last round stands, and the step changes nothing.

    Returns:
      With the metrics "dynamic_sampling/rounds" and "dynamic_sampling/kept" (share of sampled groups that are kept).

    Raises:
      ValueError: `max_rounds` is below 1.

    Source: DAPO, section 3.2, https://arxiv.org/abs/2503.14476
    """
    if max_rounds < 1:
        raise ValueError(f"max_rounds is {max_rounds}; it must be at least 1")
    kept, found, sampled, rounds = [], 0, 0, 0
    while found < prompts and rounds < max_rounds:
        examples, prompt_ids, cursor = draw(cursor, prompts)
        collection = collect(examples, prompt_ids, samples, sampled * samples)
        sampled, rounds = sampled + prompts, rounds + 1
        groups = _informative_groups(collection)[: prompts - found]
        found += len(groups)
        if len(groups):
            kept.append(_take_groups(collection, groups))
    metrics = {"dynamic_sampling/rounds": float(rounds), "dynamic_sampling/kept": found / sampled}
    if not kept:
        return collection, cursor, metrics
    rollouts = concatenate([part.rollouts for part in kept])
    return Collection(rollouts, [record for part in kept for record in part.records]), cursor, metrics


def _informative_groups(collection: Collection) -> np.ndarray:
    """Numbers of the groups whose total rewards, missing ones left out, differ."""
    rewards, group = collection.rollouts.rewards, np.asarray(collection.rollouts.group)
    scored = ~np.isnan(rewards).all(axis=1)
    totals = np.nansum(rewards, axis=1)
    numbers = np.unique(group)
    return np.array([g for g in numbers if np.unique(totals[(group == g) & scored]).size > 1], np.int32)


def _take_groups(collection: Collection, groups: np.ndarray) -> Collection:
    rows = np.flatnonzero(np.isin(collection.rollouts.group, groups))
    return Collection(select_rows(collection.rollouts, rows), [collection.records[row] for row in rows])
