"""Environments of other packages: their states are values, however they are come by."""

import importlib.util

import pytest

from jaxrl_llm.environments import adapters, gymnasium, textarena, verifiers


def trail(environment, seed, turns):
    """States, texts and what was answered."""
    state, *_ = environment.reset({}, seed)
    found = []
    for text in turns:
        answer = environment.step(state, text)
        found.append((state, text, answer))
        if answer.done:
            break
        state = answer.state
    return found


def same_by_replay(environment, found):
    """Each step alone, in any order, with nothing kept, and twice from one state."""
    for state, text, answer in reversed(found):
        adapters._kept.clear()
        assert environment.step(state, text) == answer
        assert environment.step(state, text) == answer


def test_lakes_of_gymnasium():
    pytest.importorskip("gymnasium")
    lake = gymnasium("FrozenLake-v1", actions=("left", "down", "right", "up"), is_slippery=True)
    _, prompt = lake.reset({}, 3)
    assert prompt.startswith("[S]FFF\nFHFH")
    found = trail(lake, 3, ["go right", "up", "nowhere", "left"])
    assert "say one of" in found[2][2].reply and found[2][2].facts["illegal"] == 1
    same_by_replay(lake, found)
    with pytest.raises(ValueError, match="Nothing-v0"):
        gymnasium("Nothing-v0")
    with pytest.raises(ValueError, match="a word for each"):
        gymnasium("FrozenLake-v1", actions=("left",))


def test_games_of_textarena():
    pytest.importorskip("textarena")
    guess = textarena("GuessTheNumber-v0")
    found = trail(guess, 7, ["[1]", "[20]", "[10]"])
    assert "higher" in found[0][2].reply and "lower" in found[1][2].reply
    same_by_replay(guess, found)
    game = textarena("TicTacToe-v0", roles=2)
    found = trail(game, 1, ["[4]", "[0]", "[1]", "[2]", "[7]"])
    assert [answer.role for _, _, answer in found[:-1]] == [1, 0, 1, 0] or [answer.role for _, _, answer in found[:-1]] == [
        0,
        1,
        0,
        1,
    ]
    assert found[-1][2].done and sorted(found[-1][2].outcome) == [-1.0, 1.0]
    same_by_replay(game, found)
    with pytest.raises(ValueError, match="Nothing-v0"):
        textarena("Nothing-v0")


def test_environments_of_verifiers_that_are_not_there_are_told():
    missing = importlib.util.find_spec("verifiers") is None
    with pytest.raises(ValueError, match=r"pip install 'jaxrl_llm\[verifiers\]'" if missing else "no environment .*nothing"):
        verifiers("nothing-there")
