"""Forks of real samples: where rows are cut, what goes on from there, and what the learner sees of it."""

import dataclasses

import numpy as np
import pytest
from rollouts.test_requests import LIMIT, TOKENIZER, answers, io
from rollouts.texts import BYTES, collection_of

from jaxrl_llm.rollouts import begun, branching, budgeted, exits, fork, uncertain_tree, valued
from jaxrl_llm.rollouts.forks import budget_values, every, least_likely, separators, shares, unlikely

EXAMPLES = [{"prompt": f"{digit}+2=", "completion": "123456"} for digit in range(6)]


def drawing(cursor, count, weights):
    return EXAMPLES[cursor : cursor + count], list(range(cursor, cursor + count)), cursor + count


def parity(prompts, completions, columns, groups):
    """Right where the sum of the digits is even."""
    return np.array([[float(sum(map(int, filter(str.isdigit, text))) % 2 == 0)] for text in completions])


def step(strategy, prompts=2, **changes):
    source = io(drawing=drawing, cursor=0, examples=EXAMPLES, rewards=parity, **changes)
    return strategy.run(source, strategy.init(), prompts)[::2]


def test_rules_of_cuts():
    found = collection_of("ab\ncd\n\nef", prompt="??")
    logp = np.log(np.array([[1, 1, 0.5, 0.95, 0.5, 0.5, 0.99, 0.2, 0.5, 1, 1]], np.float32))
    found = dataclasses.replace(found, rollouts=found.rollouts.replace(behavior_logp=logp))
    told = type("Told", (), {"tokenizer": BYTES})
    assert every(tokens=4)(told, found, 0) == [6, 10]
    assert shares(count=2)(told, found, 0) == [5, 8]
    assert separators()(told, found, 0) == [5, 8, 9]
    assert separators(text="\n\n", most=1)(told, found, 0) == [9]
    # Unlikely: places 0, 2, 3, 5 and 6 of the completion; each second one of them.
    assert unlikely(interval=2)(told, found, 0) == [4, 7]
    assert least_likely(count=2)(told, found, 0) == [4, 7]
    assert separators()(told, collection_of("ab\n"), 0) == []


def test_a_fork_keeps_what_stands_in_front_of_it():
    found = collection_of("abcd")
    request = fork(found, 0, 3, limit=5)
    assert request.prefix.tokens.tolist() == BYTES.encode("ab") and request.prefix.logp.tolist() == [-1, -1]
    assert request.prefix.mask.tolist() == [1, 1] and (request.samples, request.limit) == (1, 5)
    assert fork(found, 0, 1).prefix is None


def test_values_of_states_are_means_of_completions_from_there():
    found, metrics = step(valued(samples=2, continuations=3, cuts=every(tokens=2)))
    rollouts, asked = found.rollouts, io(drawing=drawing, cursor=0, rewards=parity)
    asked.sampled = 4  # the rows of the step come first
    before, behind = rollouts.extras["value_before"], rollouts.extras["value_behind"]
    states = {}
    for row, start in enumerate(found.prompt_length):
        for column in range(start + 2, rollouts.length[row], 2):
            states.setdefault(rollouts.tokens[row, :column].tobytes(), fork(found, row, column))
    again = asked.sample([dataclasses.replace(request, samples=3) for request in states.values()])
    value = dict(zip(states, again.rollouts.rewards.reshape(-1, 3).mean(axis=1), strict=True))
    assert metrics["values/states"] == len(states) > 0
    for row, start in enumerate(found.prompt_length):
        root = rollouts.rewards[rollouts.group == rollouts.group[row]].mean()
        for column in range(start, rollouts.length[row]):
            first = start + (column - start) // 2 * 2
            own = root if first == start else value[rollouts.tokens[row, :first].tobytes()]
            end = (
                rollouts.rewards[row, 0]
                if first + 2 >= rollouts.length[row]
                else value[rollouts.tokens[row, : first + 2].tobytes()]
            )
            assert (before[row, column], behind[row, column]) == pytest.approx((own, end))
            assert rollouts.turn[row, column] == (column - start) // 2
        assert not before[row, :start].any() and not behind[row, rollouts.length[row] :].any()


def test_leaves_of_a_tree_share_their_ways_and_learn_them():
    found, metrics = step(branching(samples=8, widths=(2, 2, 2), segment=2))
    rollouts = found.rollouts
    for group in (0, 1):
        own = [row for row, number in zip(answers(found), rollouts.group, strict=True) if number == group]
        assert 2 <= len(own) <= 8
        firsts = {tuple(row[:2]) for row in own if len(row) > 2}
        assert len(firsts) <= 2 and all(len(row) <= LIMIT for row in own)
    assert metrics["tree/leaves"] == len(rollouts.length) / 2
    actions = np.arange(rollouts.tokens.shape[1])
    inside = (actions >= found.prompt_length[:, None]) & (actions < rollouts.length[:, None])
    np.testing.assert_array_equal(rollouts.mask > 0, inside)
    assert (rollouts.behavior_logp[inside] < 0).all() and not np.isnan(rollouts.rewards).any()
    with pytest.raises(ValueError, match="samples is 7; it must be 8"):
        step(branching(samples=7, widths=(2, 2, 2)))


def test_uncertain_tokens_are_forked():
    found, _ = step(uncertain_tree(samples=2, forks=1, width=2))
    rollouts, rows = found.rollouts, answers(found)
    assert np.bincount(rollouts.group).max() <= 6
    chains = [place for place in range(len(rows)) if found.requests[place].prefix is None]
    for place, request in enumerate(found.requests):
        if request.prefix is not None:
            own = request.prefix.tokens.tolist()
            assert any(rows[chain][: len(own)] == own and rollouts.group[chain] == rollouts.group[place] for chain in chains)


def test_exits_are_forced_by_a_text_that_nobody_learns():
    found, _ = step(exits(samples=1, text="=", cuts=shares(count=3)))
    rollouts, equals = found.rollouts, TOKENIZER.encode("=")
    paths = [row for row in range(len(rollouts.length)) if found.requests[row].prefix is None]
    assert len(paths) == 2
    for row, start in enumerate(found.prompt_length):
        cut = rollouts.extras["cut"][row]
        if row in paths:
            assert cut == rollouts.length[row]
            continue
        (path,) = [other for other in paths if rollouts.group[other] == rollouts.group[row]]
        np.testing.assert_array_equal(rollouts.tokens[row, :cut], rollouts.tokens[path, :cut])
        assert rollouts.tokens[row, cut : cut + 1].tolist() == equals and rollouts.mask[row, cut] == 0
        assert rollouts.mask[row, start:cut].all() and rollouts.mask[row, cut + 1 : rollouts.length[row]].all()
        np.testing.assert_array_equal(rollouts.behavior_logp[row, start:cut], rollouts.behavior_logp[path, start:cut])


def test_beginnings_are_given_and_shrink():
    found, metrics = step(begun(samples=2, tokens=4, shrinks_over=8))  # of step 4
    assert metrics["begun/tokens"] == 2
    for row, start in enumerate(found.prompt_length):
        assert found.rollouts.tokens[row, start : start + 2].tolist() == TOKENIZER.encode("12")
        assert not found.rollouts.mask[row, : start + 2].any() and found.rollouts.mask[row, start + 2]
    assert not found.rollouts.source.any()
    _, none = step(begun(samples=2, share=0.0))
    assert none["begun/tokens"] == 0
    _, other = step(begun(samples=1, by="reference", tokens=3))
    assert 0 < other["begun/tokens"] <= 3
    assert begun(by="teacher").annotations == {"teacher_samples"} and begun().annotations == frozenset()
    with pytest.raises(ValueError, match="shrinks_over is 5"):
        step(begun(shrinks_over=5))


def budget_oracle(reward, group, prior):
    worth, baseline = np.zeros(reward.shape), np.zeros(reward.shape)
    rows, count = reward.shape
    for row in range(rows):
        for j in range(count):
            worth[row, j] = sum(prior[k] * reward[row, k] for k in range(j, count))
    for row in range(rows):
        mates = [other for other in range(rows) if group[other] == group[row]]
        for j in range(count):
            first = 0.0
            if j:
                first = sum(2**i * reward[row, i] for i in range(j)) / sum(2**i for i in range(j)) * sum(prior[j:])
            baseline[row, j] = j / count * first + (count - j) / count * np.mean([worth[other, j] for other in mates])
    return worth, baseline


def test_values_of_budgets_are_those_of_the_formula():
    reward, group = np.random.default_rng(0).random((5, 4)), np.array([0, 0, 1, 1, 1])
    prior = np.array([0.1, 0.2, 0.3, 0.4])
    for found, expected in zip(budget_values(reward, group, prior), budget_oracle(reward, group, prior), strict=True):
        np.testing.assert_allclose(found, expected)


def test_thoughts_are_cut_and_answered():
    found, metrics = step(budgeted(samples=2, budgets=(2, 4), summaries=3, text="="))
    rollouts, equals = found.rollouts, TOKENIZER.encode("=")[0]
    assert set(metrics) == {"budget/2", "budget/4"}
    thoughts = 4
    for row in range(thoughts, len(rollouts.length)):
        start, prefix = found.prompt_length[row], len(found.requests[row].prefix.tokens)
        assert prefix - 1 in (2, 4) and rollouts.tokens[row, start + prefix - 1] == equals
        assert not rollouts.mask[row, : start + prefix].any() and rollouts.mask[row, start + prefix]
        mates = rollouts.group == rollouts.group[row]
        assert mates.sum() == 3
        assert rollouts.extras["value_before"][row, -1] == pytest.approx(rollouts.rewards[mates].mean())
        assert rollouts.extras["value_behind"][row, -1] == rollouts.rewards[row, 0]
    assert (rollouts.length[:thoughts] - found.prompt_length[:thoughts] <= 4).all()
    gain = rollouts.extras["value_behind"] - rollouts.extras["value_before"]
    for row in range(thoughts):  # the first segment against the group: both thoughts of a prompt sum to nothing
        mate = row ^ 1
        assert gain[row, found.prompt_length[row]] == pytest.approx(-gain[mate, found.prompt_length[mate]], abs=1e-6)
