"""What is measured of the samples of a step."""

import numpy as np

from jaxrl_llm.rollouts import informative_groups
from jaxrl_llm.training.run import Run
from jaxrl_llm.types import Rollouts


def rollout_metrics(run: Run, rollouts: Rollouts, records) -> dict[str, float]:
    """Rewards, lengths and entropy of what was sampled; see `metrics.DEFINITIONS`."""
    rewards = np.array([record["rewards"] for record in records], np.float64)
    totals = np.nansum(np.asarray(rollouts.rewards, np.float64), axis=1)
    groups = [totals[rollouts.group == group] for group in np.unique(rollouts.group)]
    actions = rollouts.mask.sum()
    components = {
        f"reward/{name}": float(np.nanmean(column)) if not np.isnan(column).all() else float("nan")
        for name, column in zip(run.config.rewards.names, rewards.T, strict=True)
    }
    lengths = rollouts.mask.sum(axis=1)
    if run.environment is not None:
        ended = [record["ended"] for record in records]
        components |= {"episode/calls": float(np.mean(rollouts.extras["calls"]))} if "calls" in rollouts.extras else {}
        components |= {
            "episode/turns": float(np.mean([record["turns"] for record in records])),
            "episode/failed": ended.count("failed") / len(ended),
            "episode/cut": (ended.count("turns") + ended.count("length")) / len(ended),
        }
    return components | {
        "reward": float(totals.mean()),
        "reward_std": float(np.mean([group.std() for group in groups])),
        "reward_missing": float(np.isnan(rewards).mean()),
        "uniform_groups": 1.0 - len(informative_groups(rollouts)) / len(groups),
        "entropy": float(-(rollouts.behavior_logp * rollouts.mask).sum() / max(actions, 1.0)),
        "length/mean": float(lengths.mean()),
        "length/max": float(lengths.max()),
        "truncated": float(np.mean([record["finish_reason"] == "length" for record in records])),
        "tokens": float(rollouts.length.sum()),
    }
