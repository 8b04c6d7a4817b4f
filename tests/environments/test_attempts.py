"""Several attempts at tasks of reasoning-gym, with the points of each in between."""

import pickle

import pytest

from jaxrl_llm.data import reasoning_gym_source
from jaxrl_llm.environments import attempts


def test_points_of_attempts_add_up_to_the_best():
    pytest.importorskip("reasoning_gym")
    example = reasoning_gym_source("leg_counting", 2, 0)[1]
    tries = attempts(most=4, discount=0.5)
    state, prompt = tries.reset(example, 0)
    assert prompt == example["prompt"]
    wrong = tries.step(state, "<answer>-1</answer>")
    assert not wrong.done and 0 <= wrong.reward < 1 and "Attempts left: 3" in wrong.reply
    state = pickle.loads(pickle.dumps(wrong.state))
    right = tries.step(state, f"<answer>{example['answer']}</answer>")
    assert right.done and right.reward == 0.5 * (1.0 - wrong.reward) and right.facts["attempts"] == 2
    # States are values: another way on from the same one.
    again = tries.step(state, "<answer>-1</answer>")
    assert (again.reward, again.done) == (0.0, False) and again.state.count == 2
    state = again.state
    for left in (1, 0):
        last = tries.step(state, "nothing")
        assert last.done == (left == 0)
        state = last.state


def test_other_verifiers_score_attempts_too():
    tries = attempts("exact_match", most=2, feedback="No, {answer} has {score:.0f}.")
    state, _ = tries.reset({"prompt": "1 + 1?", "answer": "2"}, 0)
    assert tries.step(state, "3").reply == "No, 3 has 0." and tries.step(state, "2").reward == 1.0
    wrong = ({"score": "luck"}, "luck"), ({"most": 0}, "most is 0"), ({"feedback": "{hint}"}, "hint")
    missing = ({"score": "nosuch.module:f"}, "score 'nosuch.module:f' cannot be imported: No module named 'nosuch'")
    for options, words in (*wrong, missing):
        with pytest.raises(ValueError, match=words):
            attempts(**options)
