"""Calls of tools between what a model writes and what clients read."""

import dataclasses
import json

import pytest

from jaxrl_llm.data import load_tokenizer
from jaxrl_llm.serving.tool_calls import for_template, parser_of

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {}, "b": {}}}}}]
CALLS = {
    "<tool_call>": 'Well. <tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>',
    "<|start_header_id|>": '<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": 2}}',
    "<start_of_turn>": "Well.\n```tool_code\nadd(1, b=2)\n```",
    "<|channel|>": '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1, "b": 2}<|call|>',
}


def tokenizer(template):
    return dataclasses.replace(load_tokenizer("bytes"), chat_template=template)


@pytest.mark.parametrize("mark", CALLS)
def test_calls_of_each_style_become_those_of_clients(mark):
    content, (call,) = parser_of(tokenizer(mark))(CALLS[mark], TOOLS)
    assert content == ("Well." if CALLS[mark].startswith("Well.") else "")
    assert call["function"]["name"] == "add" and json.loads(call["function"]["arguments"]) == {"a": 1, "b": 2}
    (message,) = for_template([{"role": "assistant", "content": content, "tool_calls": [call]}])
    assert message["tool_calls"][0]["function"]["arguments"] == {"a": 1, "b": 2}


def test_other_texts_stay_texts():
    parse = parser_of(tokenizer("<tool_call>"))
    assert parse("no call", TOOLS) == ("no call", [])
    assert parse("<tool_call>{broken</tool_call>", TOOLS) == ("<tool_call>{broken</tool_call>", [])
    assert parser_of(tokenizer(None)) is None
    with pytest.raises(ValueError, match="'add' are no JSON"):
        for_template([{"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "{"}}]}])
