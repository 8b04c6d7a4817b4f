"""Strategies with made-up draws and samples: which prompts, how many, what stays."""

import numpy as np
import pytest

from jaxrl_llm.rollouts import Collection, dynamic_sampling, grouped, grouped_with_anchors, grouped_with_greedy, guided
from jaxrl_llm.types import Rollouts


class Source:
    """Prompts 0, 1, 2... whose samples get the rewards of `table[prompt]`; remembers what was asked of it."""

    def __init__(self, table):
        self.table, self.draws, self.collections, self.answers = table, [], [], []

    def draw(self, cursor, count):
        numbers = list(range(cursor, cursor + count))
        self.draws.append((cursor, count))
        return [{"prompt": str(number)} for number in numbers], numbers, cursor + count

    def collect(self, examples, prompt_ids, num_samples, first_uid, answers="sampled"):
        self.answers.append(answers)
        rows = len(examples) * num_samples
        self.collections.append((list(prompt_ids), range(first_uid, first_uid + rows)))
        rewards = np.array([self.table(number, sample) for number in prompt_ids for sample in range(num_samples)], np.float32)
        rollouts = Rollouts(
            tokens=np.repeat(np.asarray(prompt_ids, np.int32), num_samples)[:, None] * np.ones((1, 3), np.int32),
            length=np.full(rows, 3, np.int32),
            mask=np.ones((rows, 3), np.float32),
            rewards=rewards.reshape(rows, -1),
            group=np.repeat(np.arange(len(examples), dtype=np.int32), num_samples),
            prompt_id=np.repeat(np.asarray(prompt_ids, np.int32), num_samples),
        )
        return Collection(rollouts, [{"prompt": example["prompt"]} for example in examples for _ in range(num_samples)])


def informative(prompts):
    """Reward 1 for the first sample only, of the given prompts; 0 otherwise."""
    return lambda number, sample: float(number in prompts and sample == 0)


def test_grouped_samples_each_prompt():
    source = Source(informative({1}))
    collection, cursor, metrics = grouped(samples=3)(source.draw, source.collect, 10, 2)
    assert (cursor, metrics) == (12, {})
    np.testing.assert_array_equal(collection.rollouts.prompt_id, [10, 10, 10, 11, 11, 11])
    assert source.collections == [([10, 11], range(6))]


def test_dynamic_sampling_keeps_only_informative_groups_until_there_are_enough():
    source = Source(informative({1, 4, 5, 6, 7}))
    collection, cursor, metrics = dynamic_sampling(samples=2)(source.draw, source.collect, 0, 3)
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
    collection, cursor, _ = dynamic_sampling(samples=2)(source.draw, source.collect, 0, 2)
    np.testing.assert_array_equal(collection.rollouts.prompt_id, [0, 0, 1, 1])
    assert cursor == 2
    source = Source(informative({1, 2, 3}))
    collection, cursor, _ = dynamic_sampling(samples=2)(source.draw, source.collect, 0, 2)
    np.testing.assert_array_equal(collection.rollouts.prompt_id, [1, 1, 2, 2])
    assert cursor == 4


def test_numbers_of_samples_differ_between_rounds():
    source = Source(informative(set()))
    dynamic_sampling(samples=4, max_rounds=3)(source.draw, source.collect, 0, 2)
    uids = [uid for _, numbers in source.collections for uid in numbers]
    assert len(uids) == len(set(uids)) == 3 * 2 * 4


def test_rounds_end():
    source = Source(informative({3}))
    collection, cursor, metrics = dynamic_sampling(samples=2, max_rounds=4)(source.draw, source.collect, 0, 2)
    assert len(source.draws) == 4 and cursor == 8
    np.testing.assert_array_equal(collection.rollouts.prompt_id, [3, 3])
    assert metrics == {"dynamic_sampling/rounds": 4.0, "dynamic_sampling/kept": 1 / 8}


def test_where_nothing_is_informative_the_last_round_stands():
    source = Source(informative(set()))
    collection, cursor, metrics = dynamic_sampling(samples=2, max_rounds=3)(source.draw, source.collect, 0, 2)
    np.testing.assert_array_equal(collection.rollouts.prompt_id, [4, 4, 5, 5])
    assert cursor == 6 and metrics["dynamic_sampling/kept"] == 0.0
    assert len(collection.records) == 4


def test_missing_rewards_do_not_make_a_group_informative():
    """Prompt 0: one reward and one missing; prompt 1: all missing; prompt 2: components that cancel; prompt 3: real."""
    rewards = {0: [(1, np.nan), (np.nan, np.nan)], 1: [(np.nan, np.nan)] * 2, 2: [(1, 0), (0, 1)], 3: [(1, np.nan), (0, 0)]}
    source = Source(lambda number, sample: rewards[number][sample])
    collection, _, _ = dynamic_sampling(samples=2, max_rounds=1)(source.draw, source.collect, 0, 4)
    np.testing.assert_array_equal(collection.rollouts.prompt_id, [3, 3])


def test_no_rounds_at_all_are_refused():
    source = Source(informative(set()))
    with pytest.raises(ValueError, match="max_rounds is 0"):
        dynamic_sampling(max_rounds=0)(source.draw, source.collect, 0, 2)


def test_strategies_print_and_compare():
    assert repr(dynamic_sampling(samples=4)) == "dynamic_sampling(samples=4)"
    assert grouped(samples=8) == grouped() and hash(grouped()) == hash(grouped(samples=8))


def test_greedy_completions_are_a_baseline_beside_the_rollouts():
    source = Source(lambda number, sample: 10 * number + sample)
    strategy = grouped_with_greedy(samples=2)
    collection, cursor, metrics = strategy(source.draw, source.collect, 1, 2)
    np.testing.assert_array_equal(collection.rollouts.extras["greedy_reward"], [10, 10, 20, 20])
    np.testing.assert_array_equal(collection.rollouts.rewards[:, 0], [10, 11, 20, 21])
    assert source.answers == ["sampled", "greedy"] and source.collections[1] == ([1, 2], range(4, 6))
    assert cursor == 3 and metrics == {"greedy_reward": 15.0} and strategy.provides == {"greedy_reward"}


def test_demonstrations_join_the_groups_of_their_prompts():
    source = Source(informative({0}))
    collection, cursor, _ = guided(samples=2, demonstrations=1)(source.draw, source.collect, 0, 2)
    np.testing.assert_array_equal(collection.rollouts.group, [0, 0, 1, 1, 0, 1])
    np.testing.assert_array_equal(collection.rollouts.prompt_id, [0, 0, 1, 1, 0, 1])
    assert source.answers == ["sampled", "given"] and len(collection.records) == 6 and cursor == 2


def test_anchors_are_rewards_of_the_reference_policy():
    source = Source(lambda number, sample: 10 * number + sample)
    strategy = grouped_with_anchors(samples=2, anchors=3)
    collection, _, metrics = strategy(source.draw, source.collect, 1, 2)
    found = collection.rollouts.extras
    np.testing.assert_array_equal(found["anchor_rewards"], [[10, 11, 12]] * 2 + [[20, 21, 22]] * 2)
    np.testing.assert_array_equal(found["anchor_reward"], [11, 11, 21, 21])
    assert source.answers == ["sampled", "reference"] and source.collections[1] == ([1, 2], range(4, 10))
    assert metrics == {"anchor_reward": 16.0} and strategy.annotations == {"reference_samples"}
