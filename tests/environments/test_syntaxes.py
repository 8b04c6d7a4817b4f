"""Calls as each family of models writes them, and what is no call or a broken one."""

import json
import random

import pytest
from data.chat_templates import CHATML, GEMMA, HARMONY, LLAMA, MISTRAL

from jaxrl_llm.environments import STYLES, Call, call, calls_in, style_of, tool

ADD, SUB = Call("add", {"a": 1, "b": [2.5, "é"]}), Call("sub", {})
ADD_JSON = '{"a": 1, "b": [2.5, "é"]}'


@pytest.mark.parametrize(
    ("style", "text", "calls"),
    [
        ("hermes", '<tool_call>\n{"name": "add", "arguments": GIVEN}\n</tool_call><|im_end|>', [ADD]),
        ("hermes", '2.\n<tool_call>{"name": "add", "arguments": GIVEN}</tool_call>\n<tool_call>\n{"name": "sub"}', [ADD, SUB]),
        ("hermes", '<tool_call>{"name": "add", "arguments": QUOTED}</tool_call>', [ADD]),
        ("hermes", '<think>\n<tool_call>{"name": "sub"}</tool_call></think>\n\n5', []),
        ("hermes", 'I would write {"name": "add"}.', []),
        ("llama", '{"name": "add", "parameters": GIVEN}<|eot_id|>', [ADD]),
        ("llama", '<|python_tag|>{"name": "add", "parameters": GIVEN}; {"name": "sub"}<|eom_id|>', [ADD, SUB]),
        ("llama", '[{"name": "add", "parameters": GIVEN}, {"name": "sub"}]', [ADD, SUB]),
        ("llama", '{"type": "function", "function": {"name": "add", "parameters": GIVEN}}', [ADD]),
        ("llama", "[add(a=1, b=[2.5, 'é']), sub()]", [ADD, SUB]),
        ("llama", '<|python_tag|>search.call(query="x")', [Call("search.call", {"query": "x"})]),
        ("llama", '{"result": 4}', []),
        ("llama", "The sum (of two) is 5.", []),
        ("gemma", "```tool_code\nadd(a=1, b=[2.5, 'é'])\n```<end_of_turn>", [ADD]),
        ("gemma", "So:\n```tool_code\nprint(add(1, b=[2.5, 'é']))\nsub()\n```", [Call("add", {"b": [2.5, "é"]}, (1,)), SUB]),
        ("gemma", '```json\n{"name": "add", "parameters": GIVEN}\n```', [ADD]),
        ("gemma", '{"name": "add", "parameters": GIVEN}', [ADD]),
        ("gemma", "[add(a=1, b=[2.5, 'é'])]", [ADD]),
        ("gemma", "```tool_code\nadd(**{'a': 1})\n```", [Call("add", {"**": {"a": 1}})]),
        ("gemma", "It is `add(1)`.", []),
        ("gemma", "Write:\n```python\nadd(1)\n```\nwhich prints:\n```json\n{}\n```", []),
        ("harmony", "<|channel|>analysis<|message|>Add them.<|end|><|start|>assistant<|channel|>commentary to=functions.add "
         "<|constrain|>json<|message|>GIVEN<|call|>", [ADD]),
        ("harmony", "<|start|>assistant to=functions.add<|channel|>commentary json<|message|>GIVEN<|call|>", [ADD]),
        ("harmony", "analysisI call to=functions.sub now.commentary to=functions.add jsonGIVEN", [ADD]),
        ("harmony", "<|channel|>commentary to=functions.add <|constrain|>json<|message|>GIVEN<|end|><|start|>assistant"
         "<|channel|>commentary to=functions.sub<|message|>{}<|call|>", [ADD, SUB]),
        ("harmony", "<|channel|>final<|message|>5<|return|>", []),
    ],
)  # fmt: skip
def test_calls_are_read(style, text, calls):
    text = text.replace("GIVEN", ADD_JSON).replace("QUOTED", json.dumps(ADD_JSON))
    assert calls_in(text, style) == calls


@pytest.mark.parametrize(
    ("style", "text", "name", "fault"),
    [
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": }</tool_call>', "", "it is no valid JSON (Expecting value"),
        ("hermes", "<tool_call></tool_call>", "", "there are 0 calls between the marks"),
        ("hermes", '<tool_call>{"name": "a"} {"name": "b"}</tool_call>', "", "there are 2 calls between the marks"),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>', "", "it has no name; write {"),
        ("hermes", '<tool_call>{"name": "add", "arguments": "{"}</tool_call>', "add", "its arguments are no valid JSON"),
        ("hermes", "<tool_call>" + "[" * 10**5 + "</tool_call>", "", "it is no valid JSON (RecursionError)"),
        ("llama", '{"name": "add", "parameters": {"a": 1', "", "it is no valid JSON"),
        ("llama", "<|python_tag|>import os", "", "it is no call of Python"),
        ("gemma", "```tool_code\nadd(a=x + 1)\n```", "add", "its arguments must be values"),
        ("gemma", "```tool_code\nadd(a=1\n```", "", "it is no call of Python"),
        ("gemma", "```tool_code\nadd(*[1])\n```", "add", "its arguments must be values"),
        ("harmony", "<|channel|>commentary to=functions.add<|message|>a=1<|call|>", "add", "its arguments are no valid JSON"),
    ],
)
def test_broken_calls_say_what_is_wrong(style, text, name, fault):
    (found,) = calls_in(text, style)
    assert found.name == name and found.fault.startswith(fault)


def add(a: int, b: list[float] | None = None) -> int:
    """Adds.

    Args:
      a: A number.
      b: More.
    """
    return a + sum(b or ())


@pytest.mark.parametrize("style", STYLES)
def test_no_text_raises(style):
    pieces = [
        "<tool_call>", "</tool_call>", "{", "}", "[", "]", '"name"', ":", '"a"', "(", ")", "add", "=", "1", "```tool_code\n",
        ",", "```", "<|python_tag|>", " to=functions.add", "<|message|>", "<|call|>", "\n", "\0", "*", "lambda", "é", ";",
        "\ud800",
    ]  # fmt: skip
    draws = random.Random(0)
    for _ in range(2000):
        text = "".join(draws.choices(pieces, k=draws.randint(1, 12)))
        messages, counts = call([tool(add)], text, style)
        assert all(isinstance(message["content"], str) for message in messages) and counts.calls == len(calls_in(text, style))


def test_styles_are_told_by_their_template():
    assert style_of(CHATML) == "hermes" and style_of(LLAMA) == "llama" and style_of(GEMMA) == "gemma"
    assert style_of(HARMONY) == "harmony"
    with pytest.raises(ValueError, match="has none of the marks"):
        style_of(MISTRAL)
    with pytest.raises(ValueError, match="style is 'qwen'; it must be one of"):
        calls_in("", "qwen")
