"""Stores of rows: what goes in comes out, by the rules; drafts and rows that go on."""

import dataclasses

import numpy as np
import pytest
from rollouts.test_forks import EXAMPLES, drawing, parity
from rollouts.test_requests import LIMIT, PROMPT, answers, io
from rollouts.texts import BYTES, collection_of

from jaxrl_llm.rollouts import empty_store, put, replayed, requests_for, resumed, speculative, stored
from jaxrl_llm.rollouts.replay import _chosen
from jaxrl_llm.rollouts.store import of_prompt

WIDTH = LIMIT + PROMPT


def told(*texts, prompt_ids, rewards, reasons=None):
    found = collection_of(*texts)
    rollouts = found.rollouts.replace(prompt_id=np.array(prompt_ids, np.int32), rewards=np.array(rewards, np.float32)[:, None])
    reasons = reasons or ["stop"] * len(texts)
    records = [record | {"finish_reason": reason} for record, reason in zip(found.records, reasons, strict=True)]
    return dataclasses.replace(found, rollouts=rollouts, records=records)


def plain():
    return io(drawing=drawing, cursor=0, examples=EXAMPLES, rewards=parity)


def test_rows_come_out_of_a_store_as_they_went_in_and_the_oldest_fall_out():
    store = empty_store(capacity=3, row_width=4)
    store = put(store, told("abc", "de", prompt_ids=[7, 8], rewards=[1, 0]))
    store = put(store, told("fg", "hij", prompt_ids=[7, 7], rewards=[0.5, 2]), rows=[1])
    store = put(store, told("kl", "mno", prompt_ids=[9, 7], rewards=[3, 4], reasons=["length", "stop"]))
    assert int(store["count"]) == 5 and sorted(store["number"].tolist()) == [3, 4, 5]
    assert of_prompt(store, 7).tolist() == [1, 2] and of_prompt(store, 8).tolist() == []
    source = dataclasses.replace(plain(), tokenizer=BYTES, examples={7: {"prompt": "?"}, 9: {"prompt": "?", "answer": "5"}})
    found = stored(store, [1, 0, 2], source)
    assert [record["completion"] for record in found.records] == ["mno", "kl", "hij"]
    assert [record["finish_reason"] for record in found.records] == ["stop", "length", "stop"]
    assert found.rollouts.rewards[:, 0].tolist() == [4, 3, 2] and found.rollouts.group.tolist() == [0, 1, 0]
    assert found.rollouts.source.tolist() == [2, 2, 2] and found.records[1]["answer"] == "5"
    np.testing.assert_array_equal(found.rollouts.mask[1], [0, 1, 1, 0])
    with pytest.raises(ValueError, match="the store has row_width=3, and the rollouts 4; make it with row_width=4"):
        put(empty_store(capacity=1, row_width=3), told("abc", prompt_ids=[0], rewards=[0]))


def test_rules_of_replay():
    store = empty_store(capacity=6, row_width=2)
    store = put(store, told(*"abcdef", prompt_ids=[0] * 6, rewards=[0.5, 0, 1, 0.6, 1, 0]))
    pool = np.arange(6)
    assert _chosen(store, pool, 2, "recent", None).tolist() == [5, 4]
    assert _chosen(store, pool, 3, "best", None).tolist() == [4, 2, 3]
    assert sorted(_chosen(store, pool, 4, "variance", None).tolist()) == [1, 2, 4, 5]
    rewards = store["rewards"][_chosen(store, pool, 3, "variance", None), 0]
    assert rewards.var() == pytest.approx(2 / 9)
    source = plain()
    first = _chosen(store, pool, 4, "random", source)
    assert len(set(first)) == 4 and (first == _chosen(store, pool, 4, "random", source)).all()
    assert (
        _chosen(store, pool, 6, "random", dataclasses.replace(source, step=9)) != _chosen(store, pool, 6, "random", source)
    ).any()


def test_replayed_rows_stand_in_the_groups_of_their_prompts():
    strategy = replayed(samples=2, capacity=16, row_width=WIDTH, taken=3, rule="recent")
    first, store, metrics = strategy.run(plain(), strategy.init(), 2)
    assert metrics == {"replay/rows": 0.0} and not first.rollouts.source.any()
    later = dataclasses.replace(plain(), step=6)
    found, store, metrics = strategy.run(later, store, 2)
    assert metrics == {"replay/rows": 4.0, "replay/age": 2.0} and int(store["count"]) == 8
    assert found.rollouts.group.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert found.rollouts.prompt_id.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    np.testing.assert_array_equal(found.rollouts.behavior_logp[[4, 5]], first.rollouts.behavior_logp[[1, 0]])
    np.testing.assert_array_equal(found.rollouts.tokens[[6, 7]], first.rollouts.tokens[[3, 2]])
    apart = replayed(samples=2, capacity=16, row_width=WIDTH, taken=3, apart=True)
    later.cursor = 0
    assert len(np.unique(apart.run(later, store, 2)[0].rollouts.group)) == 4
    anything = replayed(samples=2, capacity=16, row_width=WIDTH, taken=2, rule="random", of="any")
    assert anything.run(later, store, 2)[0].rollouts.source.tolist() == [0] * 4 + [2] * 4
    with pytest.raises(ValueError, match="rows of a store have no 'behavior_entropy'"):
        strategy.run(dataclasses.replace(later, keeps_entropy=True), store, 2)


def scores(shift):
    """A policy that finds every token of odd columns `shift` nats likelier than it was."""
    return lambda rollouts, by, names: {
        "logp": rollouts.behavior_logp + shift * (np.arange(rollouts.tokens.shape[1]) % 2) * rollouts.mask
    }


def test_drafts_stay_up_to_the_first_token_that_has_become_unlikely():
    strategy = speculative(samples=2, capacity=16, row_width=WIDTH, lenience=0.0)
    first, store, _ = strategy.run(plain(), strategy.init(), 2)
    same, _, metrics = strategy.run(dataclasses.replace(plain(), step=6, statistics=scores(0.0)), store, 2)
    for place, own in enumerate(answers(same)):
        # All stays but the last token, which is drawn anew; the newest draft comes first.
        draft = answers(first)[place // 2 * 2 + 1 - place % 2]
        assert own[: len(draft) - 1] == draft[:-1]
    assert metrics["speculative/kept"] > 0.5
    gone, _, metrics = strategy.run(dataclasses.replace(plain(), step=6, statistics=scores(-50.0)), store, 2)
    drafts = [answers(first)[place] for place in (1, 0, 3, 2)]
    for row, (request, draft) in enumerate(zip(gone.requests, drafts, strict=True)):
        kept = 0 if request.prefix is None else len(request.prefix.tokens)
        start = gone.prompt_length[row]
        assert kept <= 1 and gone.rollouts.mask[row, start : start + kept].all() and answers(gone)[row][:kept] == draft[:kept]
    assert (gone.rollouts.version[gone.rollouts.mask > 0] == 6).all()


def test_rows_go_on_in_the_next_step_until_their_group_is_over():
    window = 3
    strategy = resumed(samples=2, capacity=16, row_width=WIDTH, window=window)
    source, store = plain(), strategy.init()
    seen, cursor = [], 0
    for number in range(4, 9):
        asked = dataclasses.replace(source, step=number, cursor=cursor, examples=EXAMPLES * 9, drawing=cycling)
        found, store, metrics = strategy.run(asked, store, 2)
        cursor = asked.cursor
        rollouts = found.rollouts
        assert np.bincount(rollouts.group).tolist() == [2] * (len(rollouts.length) // 2)
        assert metrics["resumed/waiting"] == int(store["count"]) / 2
        for row, own in enumerate(answers(found)):
            ends = found.records[row]["finish_reason"] == "stop"
            assert ends or len(own) == LIMIT
            versions = rollouts.version[row, found.prompt_length[row] : rollouts.length[row]]
            assert (np.diff(versions) >= 0).all() and len(np.unique(versions)) <= -(-LIMIT // window)
            seen.append(len(np.unique(versions)))
            assert rollouts.source[row] == (0 if set(versions) == {number} else 2)
        assert not np.isnan(rollouts.rewards).any()
    assert max(seen) > 1  # some rows were written by several policies
    with pytest.raises(ValueError, match="capacity is 3; it must be at least 4"):
        resumed(samples=2, capacity=3, row_width=WIDTH).run(plain(), empty_store(capacity=3, row_width=WIDTH), 2)


def cycling(cursor, count, weights):
    numbers = [number % len(EXAMPLES) for number in range(cursor, cursor + count)]
    return [EXAMPLES[number] for number in numbers], numbers, cursor + count


def test_fresh_samples_are_those_of_a_plain_group():
    strategy = replayed(samples=2, capacity=16, row_width=WIDTH)
    found = strategy.run(plain(), strategy.init(), 2)[0]
    alone = plain()
    assert answers(found) == answers(alone.sample(requests_for(*alone.draw(2), samples=2)))
