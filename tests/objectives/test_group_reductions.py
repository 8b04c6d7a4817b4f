"""From tokens to rollouts and from rollouts to groups, against plain loops."""

import numpy as np
from hypothesis import given
from oracles import harness
from oracles.cases import batch_cases, brief
from oracles.contrast import members_of
from oracles.tiny_policy import jit

from jaxrl_llm.objectives import groups as ours
from jaxrl_llm.objectives.ranking import group_members


@jit
def reduced(batch):
    found = ours.find_groups(batch)
    score = ours.rollout_mean(batch.extras["score"], batch.mask, found.rollout)
    right = ours.rollout_mean(batch.extras["correct"], batch.mask, found.rollout)
    by_rollout = {
        "length": found.length,
        "counted": found.counted,
        "mean": ours.rollout_mean(batch.advantage, batch.mask, found.rollout),
        "group_sum": ours.group_sum(score, right, found),
        "group_count": ours.group_count(right, found),
        "group_mean": ours.group_mean(score, right, found),
        "group_max": ours.group_max(score, right, found),
        "group_logmeanexp": ours.group_logmeanexp(score, right, found),
    }
    slot, there = group_members(found, 4)
    return found.rollout, by_rollout, slot, there


@brief
@given(case=batch_cases())
def test_reductions(case):
    places, by_rollout, slot, there = reduced(harness.build(case)[1])
    rollouts = harness.rollouts_of(case)
    group_of = {n: numbers for numbers in members_of(case) for n in numbers}
    number_at = {int(places[where[0]]): n for n, where in rollouts.items()}
    for n, where in rollouts.items():
        here = {name: float(values[places[where[0]]]) for name, values in by_rollout.items()}
        assert here["length"] == len(where) and here["counted"] == (n in group_of)
        np.testing.assert_allclose(here["mean"], np.mean([case.advantage[p] for p in where]), rtol=1e-5, atol=1e-6)
        if n not in group_of:
            continue
        right = [m for m in group_of[n] if case.correct[rollouts[m][0]] > 0.5]
        scores = np.array([float(case.score[rollouts[m][0]]) for m in right] or [0.0])
        expected = {
            "group_sum": scores.sum(),
            "group_count": len(right),
            "group_mean": scores.mean(),
            "group_max": scores.max(),
            "group_logmeanexp": np.log(np.mean(np.exp(scores))),
        }
        np.testing.assert_allclose([here[name] for name in expected], list(expected.values()), rtol=1e-5, atol=1e-5)
        row = int(places[where[0]])
        listed = [number_at[int(s)] for s, known in zip(slot[row], there[row], strict=True) if known]
        assert sorted(listed) == sorted(group_of[n] if len(group_of[n]) <= 4 else [])
