"""Rollouts from samples, chosen rows, and joined parts."""

import chex
import numpy as np
import pytest

from jaxrl_llm.rollouts import concatenate, make_rollouts, select_rows
from jaxrl_llm.sampling import Samples

EOS = 0


def samples_of(completions, columns=4) -> Samples:
    rows = len(completions)
    tokens, logp = np.zeros((rows, columns), np.int32), np.zeros((rows, columns), np.float32)
    for row, completion in enumerate(completions):
        tokens[row, : len(completion)] = completion
        logp[row, : len(completion)] = -1.0 - np.arange(len(completion))
    length = np.array([len(completion) for completion in completions], np.int32)
    return Samples(
        tokens=tokens,
        logp=logp,
        tempered_logp=2 * logp,
        sampling_logp=3 * logp,
        entropy=5 * logp,
        length=length,
        finish_reason=np.ones(rows, np.int32),
    )


def two_prompts():
    samples = samples_of([[7, EOS], [EOS], [8, 9, 8, 9], [5, 5, EOS]])
    rewards = np.array([[1.0], [np.nan], [0.5], [0.0]])
    return make_rollouts([[3, 4, 5], [6]], samples, rewards, [40, 41], width=8, version=12)


def test_rows_are_prompt_then_completion():
    rollouts = two_prompts()
    np.testing.assert_array_equal(
        rollouts.tokens,
        [[3, 4, 5, 7, 0, 0, 0, 0], [3, 4, 5, 0, 0, 0, 0, 0], [6, 8, 9, 8, 9, 0, 0, 0], [6, 5, 5, 0, 0, 0, 0, 0]],
    )
    np.testing.assert_array_equal(rollouts.length, [5, 4, 5, 4])
    np.testing.assert_array_equal(rollouts.group, [0, 0, 1, 1])
    np.testing.assert_array_equal(rollouts.prompt_id, [40, 40, 41, 41])
    assert (rollouts.version == 12).all()


def test_the_end_is_an_action_though_padding_has_the_same_id():
    """The mask comes from lengths: the end-of-sequence token 0 is learnt, the padding 0 after it is not."""
    np.testing.assert_array_equal(
        two_prompts().mask,
        [[0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0]],
    )


def test_behavior_logp_is_that_of_the_tempered_policy():
    rollouts = two_prompts()
    np.testing.assert_array_equal(rollouts.behavior_logp[0], [0, 0, 0, -2, -4, 0, 0, 0])
    np.testing.assert_array_equal(rollouts.behavior_logp[2], [0, -2, -4, -6, -8, 0, 0, 0])


def test_rewards_stay_real_numbers():
    rollouts = two_prompts()
    assert rollouts.rewards.dtype == np.float32
    np.testing.assert_array_equal(rollouts.rewards[:, 0], np.float32([1.0, np.nan, 0.5, 0.0]))
    fraction = make_rollouts([[1]], samples_of([[2]]), np.array([[0.25]]), [0], width=4)
    assert float(fraction.rewards[0, 0]) == 0.25


def test_a_completion_may_be_empty():
    rollouts = make_rollouts([[1, 2]], samples_of([[], [5]]), np.zeros((2, 1)), [0], width=4)
    np.testing.assert_array_equal(rollouts.length, [2, 3])
    assert not rollouts.mask[0].any()


def test_rows_that_are_too_long_are_refused():
    with pytest.raises(ValueError, match="width"):
        make_rollouts([[1, 2]], samples_of([[5, 5, 5]]), np.zeros((1, 1)), [0], width=4)


def test_select_rows_numbers_groups_anew():
    chosen = select_rows(two_prompts(), np.array([3, 2, 0]))
    np.testing.assert_array_equal(chosen.group, [0, 0, 1])
    np.testing.assert_array_equal(chosen.prompt_id, [41, 41, 40])
    np.testing.assert_array_equal(chosen.length, [4, 5, 5])


def test_select_no_row_at_all():
    chosen = select_rows(two_prompts(), np.array([], np.int64))
    assert chosen.tokens.shape == (0, 8) and chosen.group.shape == (0,)


def test_concatenated_groups_stay_apart():
    part = two_prompts()
    joined = concatenate([part, select_rows(part, np.array([0])), part])
    np.testing.assert_array_equal(joined.tokens, np.concatenate([part.tokens, part.tokens[:1], part.tokens]))
    assert len(set(joined.group[:4]) | set(joined.group[4:5]) | set(joined.group[5:])) == 5
    np.testing.assert_array_equal(joined.group[:4], part.group)
    assert joined.group.max() < len(joined.length)


def test_concatenating_one_part_changes_nothing():
    part = two_prompts()
    chex.assert_trees_all_equal(concatenate([part]), part)


def test_extras_travel():
    part = two_prompts().replace(extras={"score": np.arange(4.0)})
    joined = concatenate([select_rows(part, np.array([2])), part])
    np.testing.assert_array_equal(joined.extras["score"], [2, 0, 1, 2, 3])
