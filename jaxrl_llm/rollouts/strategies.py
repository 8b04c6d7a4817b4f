"""Strategies: which prompts are sampled, how often, and what of it is kept.

A strategy is `(draw, collect, cursor, prompts) -> (Collection, cursor, metrics)`, with
`draw(cursor, count) -> (examples, prompt_ids, cursor)` and
`collect(examples, prompt_ids, num_samples, first_uid, answers="sampled") -> Collection`, see `rollouts.collect`; with
`answers="reference"` the reference policy samples, for strategies that ask for "reference_samples".
"""

from __future__ import annotations

import numpy as np

from jaxrl_llm.compose import composable
from jaxrl_llm.rollouts.collect import Collection
from jaxrl_llm.rollouts.records import concatenate, informative_groups, select_rows


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
        groups = informative_groups(collection.rollouts)[: prompts - found]
        found += len(groups)
        if len(groups):
            kept.append(_take_groups(collection, groups))
    metrics = {"dynamic_sampling/rounds": float(rounds), "dynamic_sampling/kept": found / sampled}
    if not kept:
        return collection, cursor, metrics
    rollouts = concatenate([part.rollouts for part in kept])
    return Collection(rollouts, [record for part in kept for record in part.records]), cursor, metrics


@composable(provides=("greedy_reward",))
def grouped_with_greedy(draw, collect, cursor, prompts: int, *, samples: int = 1):
    """`samples` completions of each prompt, and the total reward of a greedy one in `extras["greedy_reward"]` [N].

    The greedy completions are a baseline and no part of the rollouts. A reward that is missing counts as 0.

    Source: ReMax, https://arxiv.org/abs/2310.10505
    """
    examples, prompt_ids, cursor = draw(cursor, prompts)
    collection = collect(examples, prompt_ids, samples, 0)
    greedy = collect(examples, prompt_ids, 1, prompts * samples, answers="greedy").rollouts
    rewards = np.nansum(np.asarray(greedy.rewards, np.float32), axis=1)
    extras = collection.rollouts.extras | {"greedy_reward": np.repeat(rewards, samples)}
    rollouts = collection.rollouts.replace(extras=extras)
    return Collection(rollouts, collection.records), cursor, {"greedy_reward": float(rewards.mean())}


@composable(annotations=("reference_samples",), provides=("anchor_reward", "anchor_rewards"))
def grouped_with_anchors(draw, collect, cursor, prompts: int, *, samples: int = 8, anchors: int = 8):
    """`samples` completions of each prompt, and the total rewards of `anchors` completions of the reference policy.

    Those stand in `extras["anchor_rewards"]` [N, anchors], their mean in `extras["anchor_reward"]` [N]; the reference's
    completions themselves are no part of the rollouts. A reward that is missing counts as 0.

    Source: PVPO, https://arxiv.org/abs/2508.21104; A*-PO, https://arxiv.org/abs/2505.20686, which sample them beforehand,
      once for each prompt of the data; here they are drawn when the prompt is
    """
    examples, prompt_ids, cursor = draw(cursor, prompts)
    collection = collect(examples, prompt_ids, samples, 0)
    of_reference = collect(examples, prompt_ids, anchors, prompts * samples, answers="reference").rollouts
    rewards = np.nansum(np.asarray(of_reference.rewards, np.float32), axis=1).reshape(prompts, anchors)
    added = {"anchor_rewards": np.repeat(rewards, samples, axis=0)}
    added["anchor_reward"] = added["anchor_rewards"].mean(axis=1)
    rollouts = collection.rollouts.replace(extras=collection.rollouts.extras | added)
    return Collection(rollouts, collection.records), cursor, {"anchor_reward": float(rewards.mean())}


@composable(provides=("rows_of_demonstrations",))
def guided(draw, collect, cursor, prompts: int, *, samples: int = 7, demonstrations: int = 1):
    """`samples` completions of each prompt and `demonstrations` copies of the example's own completion, in one group.

    The copies have source 1 and a `behavior_logp` of 0.

    Source: LUFFY, https://arxiv.org/abs/2504.14945, with one demonstration for seven samples
    """
    examples, prompt_ids, cursor = draw(cursor, prompts)
    sampled = collect(examples, prompt_ids, samples, 0)
    given = collect(examples, prompt_ids, demonstrations, prompts * samples, answers="given")
    rollouts = concatenate([sampled.rollouts, given.rollouts])
    group = np.concatenate([sampled.rollouts.group, given.rollouts.group])
    return Collection(rollouts.replace(group=group), sampled.records + given.records), cursor, {}


def _take_groups(collection: Collection, groups: np.ndarray) -> Collection:
    rows = np.flatnonzero(np.isin(collection.rollouts.group, groups))
    return Collection(select_rows(collection.rollouts, rows), [collection.records[row] for row in rows])
