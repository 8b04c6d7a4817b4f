"""Advantages in trees, segments and exits against loops over sets of rows."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import trees as oracle

from jaxrl_llm.estimators import exit_rewards, segment_advantage, tree_advantage
from jaxrl_llm.types import Rollouts

KINDS = ("parent", "global_and_local", "ancestors", "depth")


def rollouts_of(texts, rewards, groups, missing=(), width=0):
    """Rows of tokens behind one token of prompt."""
    width = width or 1 + max(map(len, texts))
    tokens, mask = np.zeros((len(texts), width), np.int32), np.zeros((len(texts), width), np.float32)
    for row, text in enumerate(texts):
        tokens[row, 0], tokens[row, 1 : 1 + len(text)], mask[row, 1 : 1 + len(text)] = 9, text, 1
    rewards = np.array(rewards, np.float32)[:, None]
    rewards[list(missing)] = np.nan
    length = np.array([1 + len(text) for text in texts], np.int32)
    return Rollouts(tokens=tokens, mask=mask, length=length, rewards=rewards, group=np.array(groups, np.int32))


def updated(estimator, rollouts):
    return jax.jit(estimator.update)(rollouts, estimator.init(), jax.random.key(0))[0]


def advantages(estimator, rollouts):
    return np.asarray(updated(estimator, rollouts).advantage)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_tree_advantages_are_those_of_sets_of_rows(kind, data):
    rows, groups = 6, [0, 0, 0, 0, 1, 1]
    # The end of a row is a token, so that no row is the beginning of another.
    texts = [[*data.draw(st.lists(st.integers(1, 2), max_size=4)), 3] for _ in range(rows)]
    rewards = data.draw(st.lists(st.sampled_from([0.0, 1.0, 0.25]), min_size=rows, max_size=rows))
    missing = data.draw(st.sets(st.integers(0, 5), max_size=2))
    found = advantages(tree_advantage(kind=kind), rollouts_of(texts, rewards, groups, missing, width=6))
    expected = oracle.tree_advantage(texts, rewards, groups, kind, [row not in missing for row in range(rows)])
    for row, text in enumerate(texts):
        close = {"atol": 2e-3 if kind == "depth" else 1e-5}
        np.testing.assert_allclose(found[row, 1 : 1 + len(text)], expected[row], **close)
        assert not found[row, 1 + len(text) :].any()


def test_a_tree_by_hand():
    # Root of four leaves with mean 1/2; the first two share [1], of which one is right.
    texts, rewards = [[1, 1], [1, 2], [2, 1], [2, 2]], [1.0, 0.0, 1.0, 0.0]
    rollouts = rollouts_of(texts, rewards, [0] * 4)

    def advantage(kind):
        return advantages(tree_advantage(kind=kind), rollouts)[:, 1:]

    np.testing.assert_allclose(advantage("parent"), [[0, 0.5], [0, -0.5], [0, 0.5], [0, -0.5]])
    np.testing.assert_allclose(advantage("global_and_local"), np.array([[0, 1], [0, -1], [0, 1], [0, -1]]) * 4 / 3, rtol=1e-6)
    np.testing.assert_allclose(advantage("ancestors"), np.array([[0.5, 0.5], [-0.5, -0.5]] * 2))
    np.testing.assert_allclose(advantage("depth"), [[0, 1], [0, -1], [0, 1], [0, -1]], atol=1e-5)


def test_segments_get_the_difference_of_values_and_likely_tokens_leave_the_loss():
    rollouts = rollouts_of([[1, 2, 3]], [1.0], [0])
    before, behind = np.array([[0, 0.5, 0.5, 0.25]]), np.array([[0, 0.25, 0.25, 1.0]])
    rollouts = rollouts.replace(
        extras={"value_before": before, "value_behind": behind},
        behavior_logp=np.log([[1.0, 0.5, 0.95, 0.5]]).astype(np.float32),
    )
    found = updated(segment_advantage(), rollouts)
    np.testing.assert_allclose(found.advantage, [[0, -0.25, -0.25, 0.75]])
    values = before, behind, rollouts.mask, np.exp(rollouts.behavior_logp)
    np.testing.assert_allclose(found.advantage, oracle.segment_advantage(*values))
    found = updated(segment_advantage(below=0.9), rollouts)
    np.testing.assert_allclose(found.advantage, [[0, -0.25, 0, 0.75]])
    np.testing.assert_allclose(found.advantage, oracle.segment_advantage(*values, below=0.9))
    np.testing.assert_array_equal(found.mask, [[0, 1, 0, 1]])


def test_later_right_exits_earn_half_as_much_each():
    rollouts = rollouts_of([[1]] * 6, [1, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1], missing=(5,))
    rollouts = rollouts.replace(extras={"cut": np.array([4, 2, 8, 6, 3, 1], np.int32)})
    found = np.asarray(updated(exit_rewards(), rollouts).rewards)[:, 0]
    # In the order of cuts: row 1 is wrong, then rows 0, 3 and 2 are right.
    np.testing.assert_allclose(found[:5], [1, 0, 0.25, 0.5, 1])
    assert np.isnan(found[5])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_exits_are_rewarded_in_their_order(data):
    right, cut = ([data.draw(st.integers(0, high)) for _ in range(6)] for high in (1, 4))
    cut = [6 * own + row for row, own in enumerate(cut)]
    rollouts = rollouts_of([[1]] * 6, right, [0, 0, 0, 0, 1, 1]).replace(extras={"cut": np.array(cut, np.int32)})
    found = np.asarray(updated(exit_rewards(), rollouts).rewards)[:, 0]
    np.testing.assert_allclose(found, oracle.exit_rewards(right, cut, [0, 0, 0, 0, 1, 1]))
