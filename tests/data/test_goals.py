"""Pairs with goals: each is turned round where the prompt asks for the score of the worse text."""

import pytest

from jaxrl_llm.data.goals import goal_conditioned, revised

PAIR = {"prompt": "2+2=", "chosen": "4", "rejected": "5", "chosen_score": 9, "rejected_score": 2, "margin": 1.0}
CHAT = PAIR | {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]}


def test_each_pair_comes_twice():
    source = goal_conditioned([PAIR, PAIR | {"chosen_score": 7}])
    assert len(source) == 4
    first, second, third = source[0], source[1], source[2]
    assert (first["prompt"], first["chosen"], first["rejected"]) == ("overall score: 9\n2+2=", "4", "5")
    assert (second["prompt"], second["chosen"], second["rejected"]) == ("overall score: 2\n2+2=", "5", "4")
    assert third["prompt"].startswith("overall score: 7") and second["completion"] == "5" and "margin" not in first


def test_goals_of_chats_are_system_messages():
    prompt = goal_conditioned([CHAT], goal="Score: {}")[1]["prompt"]
    assert prompt == [{"role": "system", "content": "Be brief.\nScore: 2"}, {"role": "user", "content": "2+2?"}]
    bare = goal_conditioned([CHAT | {"prompt": CHAT["prompt"][1:]}])[0]["prompt"]
    assert bare[0] == {"role": "system", "content": "overall score: 9"} and bare[1:] == CHAT["prompt"][1:]
    assert CHAT["prompt"][0]["content"] == "Be brief."


@pytest.mark.parametrize("fault", [{"chosen_score": None}, {"rejected_score": 10}])
def test_pairs_without_an_order_are_refused(fault):
    with pytest.raises(ValueError, match="examples 0: .*give two scores"):
        goal_conditioned([PAIR | fault])[1]


def test_revisions_are_prompts_that_show_an_answer():
    found = revised([PAIR, CHAT], template="{answer};{prompt}")
    assert len(found) == 2 and found[0] == PAIR | {"revisions": {"chosen": "4;2+2=", "rejected": "5;2+2="}}
    chats = found[1]["revisions"]
    assert chats["rejected"] == [CHAT["prompt"][0], {"role": "user", "content": "5;2+2?"}]
    odd = revised([PAIR | {"prompt": "{answer}="}], template="{prompt}{answer}")[0]
    assert odd["revisions"]["chosen"] == "{answer}=4"
    with pytest.raises(ValueError, match=r"it must have {prompt} and {answer}"):
        revised([PAIR], template="{prompt}")
    with pytest.raises(ValueError, match="examples 0: there is no 'rejected'; revisions are of pairs"):
        revised([{"prompt": "1", "chosen": "2"}], template="{prompt}{answer}")[0]
