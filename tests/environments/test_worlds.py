"""Lakes, words, worlds and the calculator: what they answer, and that their states are values."""

import collections
import pickle

import pytest

from jaxrl_llm.environments import frozen_lake, inline_calculator, text_world, word_game
from jaxrl_llm.environments.base import Transition, check_transition
from jaxrl_llm.environments.grids import MOVES, drawn
from jaxrl_llm.environments.inline_calculator import calculated
from jaxrl_llm.environments.words import judged
from jaxrl_llm.environments.worlds import DIRECTIONS


def solved(environment, state, commands):
    """The fewest turns to the end, and the rewards on the way, by a search that goes on from states twice."""
    queue, known = collections.deque([(state, 0, 0.0)]), {state}
    while queue:
        own, turns, total = queue.popleft()
        for command in commands:
            moved = environment.step(own, command)
            if moved.done and moved.reward > 0:
                return turns + 1, total + moved.reward
            fresh = moved.state._replace(steps=0) if hasattr(moved.state, "steps") else moved.state
            if not moved.done and fresh not in known:
                known.add(fresh)
                queue.append((fresh, turns + 1, total + moved.reward))
    return None


@pytest.mark.parametrize("seed", range(8))
def test_every_lake_has_a_way(seed):
    lake = frozen_lake(4, holes=0.6)
    state, prompt = lake.reset({}, seed)
    assert prompt == drawn(state) and prompt[0] == "@" and prompt.count("/") == 3
    assert solved(lake, state, MOVES) == (6, 1.0)
    assert pickle.loads(pickle.dumps(state)) == state and lake.reset({}, seed) == (state, prompt)


def test_moves_on_a_lake():
    lake = frozen_lake(2, holes=0.0)
    state, _ = lake.reset({}, 0)
    assert lake.step(state, "u").state.place == (0, 0)
    moved = lake.step(state, "go r")
    assert (moved.state.place, moved.reply, moved.reward) == ((0, 1), ".@/.G:", 0.0)
    assert lake.step(moved.state, "d")[2:4] == (1.0, True)
    assert lake.step(state, "stay").reward == -0.1
    slippery = frozen_lake(2, holes=0.0, slippery=0.999)
    assert slippery.step(slippery.reset({}, 0)[0], "u").state.place == (0, 1)


def test_words_are_judged_letter_by_letter():
    assert judged("apple", "paper") == "??+?-"
    assert judged("water", "water") == "+++++" and judged("train", "river") == "??---"
    assert judged("abbey", "babes") == "??++-"
    assert judged("abcde", "aaaaa") == "+----"


def test_a_word_is_found_or_not():
    game = word_game(("abc", "abd"), guesses=2, partial=0.5)
    state, prompt = game.reset({"word": "abc"}, 0)
    assert prompt == "3:"
    moved = game.step(state, "I say ABD")
    assert (moved.reply, moved.done) == (" ++-\n", False)
    assert game.step(moved.state, "abc")[2:4] == (1.0, True)
    assert game.step(moved.state, "xyzw")[2:4] == (0.5 * 2 / 3, True)
    assert game.reset({}, 5)[0] == game.reset({}, 5)[0]
    with pytest.raises(ValueError, match="one length"):
        word_game(("ab", "abc"))


@pytest.mark.parametrize("seed", range(8))
def test_every_world_can_be_solved(seed):
    world = text_world(6)
    state, prompt = world.reset({}, seed)
    commands = [f"go {name}" for name in DIRECTIONS] + ["take the key", "open chest"]
    turns, total = solved(world, state, commands)
    assert total == 1.0 and turns >= 3 and "hall" in prompt
    refused = world.step(state, "fly")
    assert refused.state == state and "cannot be done" in refused.reply


def test_the_calculator_is_exact_and_bounded():
    terms = {
        "37+45": "82",
        "7/2": "3.5",
        "-(2+3)*4": "-20",
        "1/3": "1/3 (about 0.333333333333)",
        "0.1+0.2": "0.3",
        "2**9": "512",
    }
    terms |= {"1/0": "error", "open(1)": "error", "9" * 500: "error", "True+1": "error", "": "error", "1e999": "error"}
    assert {term: calculated(term) for term in terms} == terms
    talk = inline_calculator()
    state, prompt = talk.reset({"answer": "82"}, 0)
    assert prompt is None
    moved = talk.step(state, "so [37+45]")
    assert (moved.reply, moved.done, moved.facts) == ("82", False, {"calls": 1, "first_call": 3})
    assert talk.step(moved.state, "#82")[2:4] == (1.0, True)
    assert talk.step(moved.state, "82")[2:4] == (0.0, True)
    with pytest.raises(ValueError, match="no 'answer'"):
        talk.reset({}, 0)


def test_transitions_are_checked():
    for wrong, named in (({"reward": float("inf")}, "reward"), ({"facts": {"x": "y"}}, "'x'"), ({"reply": 3}, "reply")):
        with pytest.raises(ValueError, match=named):
            check_transition(Transition(None, **wrong))
    assert check_transition(Transition(None, facts={"state": 3, "won": True})).facts == {"state": "3", "won": 1}
