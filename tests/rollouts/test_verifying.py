"""Verifiers and spoilers of answers, with made-up texts: what they are asked, and what becomes of what they say."""

import dataclasses

import numpy as np
import pytest
from rollouts.texts import BYTES, collection_of

from jaxrl_llm.rollouts import Io, spoiled, verified


class Scripted(Io):
    """Whose samples are the texts of `said`, in their order, with rewards; it remembers what was asked of it."""

    def __init__(self, *said):
        nothing = dict.fromkeys(("policies", "sampling", "max_prompt_tokens", "seed", "step"))
        super().__init__(**nothing, tokenizer=BYTES, drawing=self.drawn, cursor=0)
        self.said, self.asked = iter(said), []

    def drawn(self, cursor, count, weights):
        return [{"prompt": f"p{number}"} for number in range(count)], list(range(count)), cursor + count

    def sample(self, requests, *, rewarded=True):
        self.asked.append(requests)
        rows = [request for request in requests for _ in range(request.samples)]
        texts, rewards = zip(*[next(self.said) for _ in rows], strict=True)
        found = collection_of(*texts)
        values = np.array(rewards, np.float32)[:, None] if rewarded else np.full((len(rows), 1), np.nan, np.float32)
        told = found.rollouts.replace(rewards=values, group=np.array([row.group for row in rows], np.int32))
        records = [
            record | {"rewards": own.tolist() if rewarded else None, "by": row.by}
            for record, own, row in zip(found.records, values, rows, strict=True)
        ]
        return dataclasses.replace(found, rollouts=told, records=records, requests=rows)


def test_a_verifier_judges_steps_and_the_whole():
    answers = [("a\nb\ncc", 1.0), ("dddd\ne", 0.0), ("ffffff", 0.0), ("gggg\nh", 1.0)]
    judged = [("+-+1  ", None), ("++1   ", None), ("- 0   ", None), ("+     ", None)]
    source = Scripted(*answers, *judged)
    strategy = verified(samples=2, template="{prompt}|{completion}?", format_reward=0.25)
    found, _, metrics = strategy.run(source, strategy.init(), 2)
    rollouts = found.rollouts
    assert [request.prompt for request in source.asked[1]] == ["p0|a\nb\ncc?", "p0|dddd\ne?", "p1|ffffff?", "p1|gggg\nh?"]
    assert {request.by for request in source.asked[1]} == {"verifier"}
    assert rollouts.group.tolist()[:4] == [0, 0, 1, 1]
    assert len(set(rollouts.group.tolist()[:4]) | set(rollouts.group.tolist()[4:])) == 4
    # Three steps: behind "a\n", "b\n" and at the end; verdicts right, wrong, right.
    expected = np.zeros((4, 7), np.float32)
    expected[0, [2, 4, 6]] = 1 / 3, -1 / 3, 1 / 3
    expected[1, [5, 6]] = 0.5
    expected[2, 6] = -1.0
    expected[3, 5] = 0.5  # of the second step nothing was said
    np.testing.assert_allclose(rollouts.extras["step_reward"][:4], expected)
    assert not rollouts.extras["step_reward"][4:].any()
    assert rollouts.turn[0].tolist() == [0, 0, 0, 1, 1, 2, 2] and rollouts.turn[2].tolist() == [0] * 7
    assert rollouts.extras["right"].tolist() == [1, 0, 0, 1] * 2
    # True, and complete; false; true; no verdict of the whole.
    np.testing.assert_allclose(rollouts.rewards[:, 0], [1, 0, 0, 1, 1.25, 0.25, 1.25, 0.0])
    assert metrics == {"verifier/true": 0.5, "verifier/complete": 0.75}
    assert found.written_by(("verifier",)).tolist() == [4, 5, 6, 7]
    assert [record["rewards"] for record in found.records[4:]] == [[1.25], [0.25], [1.25], [0.0]]


def test_right_answers_are_spoiled():
    source = Scripted(("aa", 0.0), ("bb", 1.0), ("cc", 1.0), ("dd", 0.0), ("ee", 0.0), ("ff", 0.0), ("b!", 0.0))
    strategy = spoiled(samples=3, template="{completion}?")
    found, _, metrics = strategy.run(source, strategy.init(), 2)
    assert [request.prompt for request in source.asked[1]] == ["bb?"]  # the first right one
    assert found.rollouts.valid.tolist() == [1] * 6 + [0] and found.rollouts.group.tolist() == [0, 0, 0, 1, 1, 1, 0]
    assert metrics == {"spoiled/wrong": 1.0} and strategy.annotations == {"reference_samples"}
    nothing = Scripted(*[("aa", 0.0)] * 6)
    found, _, metrics = strategy.run(nothing, (), 2)
    assert len(found.records) == 6 and metrics == {"spoiled/wrong": 0.0}


@pytest.mark.parametrize("by, asked", [("teacher", {"teacher_samples"}), ("verifier", set())])
def test_who_is_asked(by, asked):
    assert spoiled(by=by).annotations == asked == verified(by=by).annotations
