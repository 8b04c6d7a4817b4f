"""Chats with tools: what is called is answered, and the turn without a call is rewarded."""

import pytest
from data.chat_templates import write_family

from jaxrl_llm.data import encode_prompt, load_tokenizer
from jaxrl_llm.data.chat import encode_rendered
from jaxrl_llm.data.dialogues import continue_dialogue
from jaxrl_llm.environments import style_of, tool_use

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


def test_turns_of_gpt_oss_go_on_from_what_was_sampled(tmp_path):
    """Calls on their way to a final answer, as that family writes them; one of a tool that there is not, and one cut short."""
    tokenizer = load_tokenizer(write_family(tmp_path, "harmony"))
    style = style_of(tokenizer.chat_template)
    chat = tool_use(style=style, answer="exact_match")
    state, messages = chat.reset({"prompt": "How much is 12 times 34?", "answer": "408 it is"}, 0)
    tools = list(chat.tools)
    ids = encode_prompt(tokenizer, messages, tools=tools)
    result = "<|start|>functions.{}<|channel|>commentary<|message|>{}<|end|><|start|>assistant"
    turns = {
        "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>commentary to=functions.calculator "
        '<|constrain|>json<|message|>{"expression": "12*34"}<|call|>': ("calculator to=assistant", '"408"'),
        " to=functions.oracle<|channel|>commentary json<|message|>{}<|call|>": ("oracle to=assistant", '"Error in call 1'),
        ' to=functions.calculator<|channel|>commentary json<|message|>{"expression": "2"}': ("calculator to=assistant", '"2"'),
        "<|channel|>analysis<|message|>408.<|end|><|start|>assistant<|channel|>final<|message|>408 it is<|return|>": (),
    }
    for turn, answered in turns.items():
        said = encode_rendered(tokenizer, turn)
        ids = [*ids, *said]
        text = tokenizer.decode(said[:-1] if said[-1] in tokenizer.stop_ids else said, skip_special_tokens=False)
        found = chat.step(state, text)
        assert found.done == (not answered)
        if answered:
            state, messages = found.state, [*messages, {"role": "assistant", "content": text}, *found.reply]
            longer = continue_dialogue(tokenizer, ids, messages, tools=tools)
            added = tokenizer.decode(longer[len(ids) :], skip_special_tokens=False)
            head, tail = result.format(*answered).split("<|end|>")
            # A turn that ran to its limit is ended first.
            assert added.removeprefix("<|call|>").startswith(head) and added.endswith("<|end|>" + tail)
            assert added.startswith("<|call|>") == (not turn.endswith("<|call|>")) and longer[: len(ids)] == ids
            ids = longer
    assert found.reward == 1.0 and found.facts["malformed_calls"] == 1
    asked = [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": "Sure?"}]
    behind = continue_dialogue(tokenizer, ids, asked, tools=tools)[len(ids) :]
    assert tokenizer.decode(behind, skip_special_tokens=False) == "<|start|>user<|message|>Sure?<|end|><|start|>assistant"


def test_what_cannot_be_is_refused_by_name():
    for options, words in (({"answer": "guess"}, "guess"), ({"style": "morse"}, "morse"), ({"tools": ("abacus",)}, "abacus")):
        with pytest.raises(ValueError, match=words):
            tool_use(**options)
    with pytest.raises(ValueError, match="'answer'"):
        tool_use().reset({"prompt": "?"}, 0)
