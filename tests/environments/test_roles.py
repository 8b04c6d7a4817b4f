"""Roles round other environments: advisers before actors, and discussions."""

import pickle

import pytest

from jaxrl_llm.environments import advised, discussion, frozen_lake


def test_an_adviser_gets_what_the_actor_is_given():
    lake, both = frozen_lake(2, holes=0.0), advised("frozen_lake", {"size": 2, "holes": 0.0}, action="{advice}>{observation}")
    state, prompt = both.reset({}, 3)
    inner, shown = lake.reset({}, 3)
    assert prompt.startswith(shown) and both.roles == 2
    rewards, told = [], None
    for text in ("right ", "r", "down", "x", "down", "d"):
        state = pickle.loads(pickle.dumps(state))
        told = both.step(state, text)
        state = told.state
        rewards.append(told.reward)
        assert told.done or told.role == (1 if text in ("right ", "down") else 0)
        if text == "right ":
            assert told.reply == f"right>{shown}"
    assert rewards == [0.0, 0.0, 0.0, -0.1, 0.0, 1.0] and told.done and told.outcome == (0.9, 0.0)
    for inner, words in (("kuhn_poker", "2 roles"), ("nowhere", "nowhere"), ("json:lake", "inner 'json:lake' cannot")):
        with pytest.raises(ValueError, match=words):
            advised(inner, {"opponent": ""} if inner == "kuhn_poker" else None)


def test_a_score_is_shared_out_between_solver_and_critic():
    talk = discussion(evaluate="{solution}?", score="{solution}!{evaluation}")
    state, prompt = talk.reset({"prompt": "1 + 1"}, 0)
    assert prompt == "1 + 1\nSolution: " and talk.roles == 3
    first = talk.step(state, " 2 ")
    second = talk.step(first.state, "nothing")
    assert (first.reply, first.role, second.reply, second.role) == ("2?", 1, "2!nothing", 2)
    for said, outcome in (("so 1, no: 3.", (1.0, 0.0, 0.0)), ("2", (0.5, 0.5, 0.0)), ("?", (0.0, 0.0, -1.0))):
        last = talk.step(second.state, said)
        assert last.done and last.outcome == outcome
