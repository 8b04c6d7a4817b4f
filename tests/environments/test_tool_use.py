"""Chats with tools: what is called is answered, and the turn without a call is rewarded."""

import pytest

from jaxrl_llm.environments import tool_use

EXAMPLE = {"prompt": "How much is 12 times 34?", "answer": "408"}


def test_calls_are_answered_until_none_is_made():
    chat = tool_use(cost=0.1, malformed=0.5)
    assert [tool["function"]["name"] for tool in chat.tools] == ["calculator"]
    state, prompt = chat.reset(EXAMPLE, 0)
    assert prompt == [{"role": "user", "content": EXAMPLE["prompt"]}]
    text = 'So <tool_call>{"name": "calculator", "arguments": {"expression": "12*34"}}</tool_call>'
    called = chat.step(state, text)
    assert called.reply == [{"role": "tool", "name": "calculator", "content": "408"}] and not called.done
    assert called.reward == -0.1 and called.facts["calls"] == 1 and called.facts["first_call"] == 3
    wrong = chat.step(called.state, '<tool_call>{"name": "oracle", "arguments": {}}</tool_call>')
    assert wrong.reward == pytest.approx(-0.6) and "oracle" in wrong.reply[0]["content"]
    right, other = chat.step(wrong.state, "It is 408."), chat.step(wrong.state, "It is 409.")
    assert (right.reward, right.done, other.reward) == (1.0, True, 0.0)
    assert right.facts == {"malformed_calls": 1, "failed_calls": 0}


def test_what_cannot_be_is_refused_by_name():
    for options, words in (({"answer": "guess"}, "guess"), ({"style": "morse"}, "morse"), ({"tools": ("abacus",)}, "abacus")):
        with pytest.raises(ValueError, match=words):
            tool_use(**options)
    with pytest.raises(ValueError, match="'answer'"):
        tool_use().reset({"prompt": "?"}, 0)
