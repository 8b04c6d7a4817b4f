"""Building `Rollouts` from samples, and joining them."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from jaxrl_llm.estimators import row_scores
from jaxrl_llm.rewards import LARGEST_REWARD
from jaxrl_llm.sampling import Samples
from jaxrl_llm.types import Rollouts


def make_rollouts(
    prompts: Sequence[Sequence[int]],
    samples: Samples,
    rewards: np.ndarray,
    prompt_ids: Sequence[int],
    *,
    width: int,
    version: int = 0,
) -> Rollouts:
    """One row for each sample: its prompt, then its completion, from column 0.

    Args:
      prompts: token ids of P prompts.
      samples: P * G rows, the G samples of a prompt together.
      rewards: [P * G, K], within +-1e6, NaN where missing.
      prompt_ids: number of each prompt in its data set.
      width: T, columns of the result.
      version: training step of the parameters that sampled.

    Returns:
      Rollouts of NumPy arrays; `behavior_logp` is that of the tempered policy, without truncation. Where the samples
      have routes, so has `extras["routes"]`, int16 [N, T, layers, k].

    Raises:
      ValueError: a prompt and its completion do not fit into `width`, or a reward that is infinite or larger than
        `rewards.LARGEST_REWARD`, 1e6: squares of such rewards would not stay finite in float32.
    """
    _check_range(rewards)
    rows = len(samples.length)
    per_prompt = rows // max(len(prompts), 1)
    tokens, mask, behavior_logp = (np.zeros((rows, width), kind) for kind in (np.int32, np.float32, np.float32))
    length, extras = np.zeros(rows, np.int32), {}
    if samples.routes is not None:
        extras["routes"] = np.full((rows, width, *samples.routes.shape[2:]), -1, np.int16)
    for row in range(rows):
        prompt = prompts[row // per_prompt]
        count = int(samples.length[row])
        start, length[row] = len(prompt), len(prompt) + count
        if length[row] > width:
            raise ValueError(f"row {row} has {length[row]} tokens, more than width = {width}: raise it to the longest row")
        tokens[row, :start] = prompt
        tokens[row, start : length[row]] = samples.tokens[row, :count]
        behavior_logp[row, start : length[row]] = samples.tempered_logp[row, :count]
        mask[row, start : length[row]] = 1.0
        if extras:
            extras["routes"][row, :start] = samples.prompt_routes[row // per_prompt, :start]
            extras["routes"][row, start : length[row]] = samples.routes[row, :count]
    return Rollouts(
        tokens=tokens,
        length=length,
        mask=mask,
        rewards=np.asarray(rewards, np.float32),
        group=(np.arange(rows) // per_prompt).astype(np.int32),
        prompt_id=np.repeat(np.asarray(prompt_ids, np.int32), per_prompt),
        behavior_logp=behavior_logp,
        version=np.full((rows, width), version, np.int32),
        extras=extras,
    )


def _check_range(rewards: np.ndarray) -> None:
    outside = np.argwhere(np.abs(np.nan_to_num(rewards, nan=0.0, posinf=np.inf, neginf=-np.inf)) > LARGEST_REWARD)
    if len(outside):
        row, component = outside[0]
        raise ValueError(
            f"reward {component} of row {row} is {rewards[row][component]}; rewards, times their weights, lie within "
            f"+-{LARGEST_REWARD:g}: scale it, or give NaN where it is missing"
        )


def select_rows(rollouts: Rollouts, rows: np.ndarray) -> Rollouts:
    """The given rows, their groups numbered anew from 0 in order of appearance."""
    chosen = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], rollouts.replace(group=np.zeros_like(rollouts.group)))
    _, first, renumbered = np.unique(np.asarray(rollouts.group)[rows], return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    return chosen.replace(group=order[renumbered].astype(np.int32))


def concatenate(parts: Sequence[Rollouts]) -> Rollouts:
    """All rows of `parts`, which have equal widths; groups of different parts stay apart."""
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0] + [len(part.length) for part in parts[:-1]])
    group = np.concatenate([np.asarray(part.group) + offset for part, offset in zip(parts, offsets, strict=True)])
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts).replace(group=group)


def informative_groups(rollouts: Rollouts) -> np.ndarray:
    """Numbers, in rising order, of the groups whose total rewards differ; rows without any reward have no part.

    It decides by the scores of `estimators.row_scores`, so that all who ask find the same groups uniform.
    """
    score, present = (np.asarray(x) for x in row_scores(rollouts))
    group = np.asarray(rollouts.group)
    counted = present > 0
    return np.array([g for g in np.unique(group[counted]) if np.ptp(score[counted & (group == g)]) > 0], np.int32)
