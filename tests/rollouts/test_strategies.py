"""Strategies with made-up draws and samples: which prompts, how many, what stays."""

import numpy as np
import pytest

from jaxrl_llm.rollouts import (
    Collection,
    Io,
    dynamic_sampling,
    grouped,
    grouped_with_anchors,
    grouped_with_greedy,
    guided,
    stateful_strategy,
)
from jaxrl_llm.types import Rollouts


class Source(Io):
    """Prompts 0, 1, 2... whose samples get the rewards of `table[prompt]`; remembers what was asked of it."""

    def __init__(self, table, cursor=0):
        nothing = dict.fromkeys(("tokenizer", "policies", "sampling", "max_prompt_tokens", "seed", "step"))
        super().__init__(**nothing, drawing=self.drawn, cursor=cursor)
        self.table, self.draws, self.asked = table, [], []

    def drawn(self, cursor, count, weights):
        numbers = list(range(cursor, cursor + count))
        self.draws.append((cursor, count))
        return [{"prompt": str(number)} for number in numbers], numbers, cursor + count

    def sample(self, requests, *, rewarded=True):
        self.asked.append(requests)
        rows = [(request, sample) for request in requests for sample in range(request.samples)]
        rewards = np.array([self.table(request.prompt_id, sample) for request, sample in rows], np.float32)
        numbers = np.array([request.prompt_id for request, _ in rows], np.int32)
        rollouts = Rollouts(
            tokens=numbers[:, None] * np.ones((1, 3), np.int32),
            length=np.full(len(rows), 3, np.int32),
            mask=np.ones((len(rows), 3), np.float32),
            rewards=rewards.reshape(len(rows), -1),
            group=np.array([request.group for request, _ in rows], np.int32),
            prompt_id=numbers,
        )
        records = [{"prompt": request.example["prompt"]} for request, _ in rows]
        return Collection(rollouts, records, [request for request, _ in rows], np.ones(len(rows), np.int32))


def run(strategy, source, prompts):
    """Collection, cursor and metrics of a step of a strategy without state."""
    collection, state, metrics = strategy.run(source, strategy.init(), prompts)
    assert state == ()
    return collection, source.cursor, metrics


def informative(prompts):
    """Reward 1 for the first sample only, of the given prompts; 0 otherwise."""
    return lambda number, sample: float(number in prompts and sample == 0)


def test_grouped_samples_each_prompt():
    source = Source(informative({1}), cursor=10)
    collection, cursor, metrics = run(grouped(samples=3), source, 2)
    assert (cursor, metrics) == (12, {})
    np.testing.assert_array_equal(collection.rollouts.prompt_id, [10, 10, 10, 11, 11, 11])
    assert [(request.prompt_id, request.samples) for request in source.asked[0]] == [(10, 3), (11, 3)]


def test_dynamic_sampling_keeps_only_informative_groups_until_there_are_enough():
    source = Source(informative({1, 4, 5, 6, 7}))
    collection, cursor, metrics = run(dynamic_sampling(samples=2), source, 3)
    rollouts = collection.rollouts
    np.testing.assert_array_equal(rollouts.prompt_id, [1, 1, 4, 4, 5, 5])
    assert [record["prompt"] for record in collection.records] == list("114455")
    assert len(np.unique(rollouts.group)) == 3
    assert all(len(set(rollouts.prompt_id[rollouts.group == group])) == 1 for group in rollouts.group)
    assert rollouts.group.max() < len(rollouts.length)
    assert source.draws == [(0, 3), (3, 3)] and cursor == 6
    assert metrics == {"dynamic_sampling/rounds": 2.0, "dynamic_sampling/kept": 0.5}


def test_further_prompts_beyond_the_wanted_are_left_out():
    source = Source(informative(set(range(9))))
    collection, cursor, _ = run(dynamic_sampling(samples=2), source, 2)
    np.testing.assert_array_equal(collection.rollouts.prompt_id, [0, 0, 1, 1])
    assert cursor == 2
    source = Source(informative({1, 2, 3}))
    collection, cursor, _ = run(dynamic_sampling(samples=2), source, 2)
    np.testing.assert_array_equal(collection.rollouts.prompt_id, [1, 1, 2, 2])
    assert cursor == 4


def test_rounds_end():
    source = Source(informative({3}))
    collection, cursor, metrics = run(dynamic_sampling(samples=2, max_rounds=4), source, 2)
    assert len(source.draws) == 4 and cursor == 8
    np.testing.assert_array_equal(collection.rollouts.prompt_id, [3, 3])
    assert metrics == {"dynamic_sampling/rounds": 4.0, "dynamic_sampling/kept": 1 / 8}


def test_where_nothing_is_informative_the_last_round_stands():
    source = Source(informative(set()))
    collection, cursor, metrics = run(dynamic_sampling(samples=2, max_rounds=3), source, 2)
    np.testing.assert_array_equal(collection.rollouts.prompt_id, [4, 4, 5, 5])
    assert cursor == 6 and metrics["dynamic_sampling/kept"] == 0.0
    assert len(collection.records) == 4


def test_missing_rewards_do_not_make_a_group_informative():
    """Prompt 0: one reward and one missing; prompt 1: all missing; prompt 2: components that cancel; prompt 3: real."""
    rewards = {0: [(1, np.nan), (np.nan, np.nan)], 1: [(np.nan, np.nan)] * 2, 2: [(1, 0), (0, 1)], 3: [(1, np.nan), (0, 0)]}
    source = Source(lambda number, sample: rewards[number][sample])
    collection, _, _ = run(dynamic_sampling(samples=2, max_rounds=1), source, 4)
    np.testing.assert_array_equal(collection.rollouts.prompt_id, [3, 3])


def test_no_rounds_at_all_are_refused():
    source = Source(informative(set()))
    with pytest.raises(ValueError, match="max_rounds is 0"):
        run(dynamic_sampling(max_rounds=0), source, 2)


def test_strategies_print_and_compare():
    assert repr(dynamic_sampling(samples=4)) == "dynamic_sampling(samples=4)"
    assert grouped(samples=8) == grouped() and hash(grouped()) == hash(grouped(samples=8))


def test_greedy_completions_are_a_baseline_beside_the_rollouts():
    source = Source(lambda number, sample: 10 * number + sample, cursor=1)
    strategy = grouped_with_greedy(samples=2)
    collection, cursor, metrics = run(strategy, source, 2)
    np.testing.assert_array_equal(collection.rollouts.extras["greedy_reward"], [10, 10, 20, 20])
    np.testing.assert_array_equal(collection.rollouts.rewards[:, 0], [10, 11, 20, 21])
    assert [(request.prompt_id, request.temperature, request.samples) for request in source.asked[1]] == [(1, 0, 1), (2, 0, 1)]
    assert cursor == 3 and metrics == {"greedy_reward": 15.0} and strategy.provides == {"greedy_reward"}


def test_demonstrations_join_the_groups_of_their_prompts():
    source = Source(informative({0}))
    collection, cursor, _ = run(guided(samples=2, demonstrations=1), source, 2)
    np.testing.assert_array_equal(collection.rollouts.group, [0, 0, 1, 1, 0, 1])
    np.testing.assert_array_equal(collection.rollouts.prompt_id, [0, 0, 1, 1, 0, 1])
    assert [request.by for request in source.asked[0]] == ["policy", "policy", "given", "given"]
    assert len(collection.records) == 6 and cursor == 2


def test_anchors_are_rewards_of_the_reference_policy():
    source = Source(lambda number, sample: 10 * number + sample, cursor=1)
    strategy = grouped_with_anchors(samples=2, anchors=3)
    collection, _, metrics = run(strategy, source, 2)
    found = collection.rollouts.extras
    np.testing.assert_array_equal(found["anchor_rewards"], [[10, 11, 12]] * 2 + [[20, 21, 22]] * 2)
    np.testing.assert_array_equal(found["anchor_reward"], [11, 11, 21, 21])
    assert [(request.by, request.prompt_id, request.samples) for request in source.asked[1]] == [
        ("reference", 1, 3), ("reference", 2, 3),
    ]  # fmt: skip
    assert metrics == {"anchor_reward": 16.0} and strategy.annotations == {"reference_samples"}


@stateful_strategy(lambda *, samples: np.zeros(4, np.int32))
def counted(io, state, prompts, *, samples=2):
    """Counts how often each prompt was drawn."""
    collection, _, _ = grouped(samples=samples).run(io, (), prompts)
    return collection, state + np.bincount(collection.rollouts.prompt_id, minlength=4), {}


def test_the_state_of_a_strategy_goes_from_step_to_step():
    strategy, source = counted(), Source(informative({0}))
    state = strategy.init()
    for expected in ([2, 2, 0, 0], [2, 2, 2, 2]):
        _, state, _ = strategy.run(source, state, 2)
        np.testing.assert_array_equal(state, expected)
    assert strategy == counted(samples=2) and strategy.options == {"samples": 2} and repr(strategy) == "counted()"
