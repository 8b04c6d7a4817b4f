"""Tools that are called from a text: what is run, what is answered, and what is counted."""

import json

import pytest
from data.chat_templates import write_family
from rewards.sandboxes import needs_sandbox

from jaxrl_llm import data
from jaxrl_llm.environments import calculator, call, load_tools, python, tool
from jaxrl_llm.environments.tools import MOST_RESULT


def divide(a: float, b: float = 2) -> float:
    """Divides.

    Args:
      a: What is divided.
      b: What it is divided by.
    """
    return a / b


def lines(count: int) -> dict:
    """Gives lines.

    Args:
      count: Of lines.
    """
    return {"lines": ["é"] * count}


TOOLS = [tool(divide), tool(lines)]


def hermes(*calls):
    return "\n".join(f"<tool_call>\n{json.dumps({'name': name, 'arguments': given})}\n</tool_call>" for name, given in calls)


def test_calls_are_answered_in_their_order():
    messages, counts = call(
        TOOLS, hermes(("divide", {"a": 3}), ("lines", {"count": 1}), ("divide", {"a": 1, "b": 0})), "hermes"
    )
    assert messages == [
        {"role": "tool", "name": "divide", "content": "1.5"},
        {"role": "tool", "name": "lines", "content": '{"lines": ["é"]}'},
        {"role": "tool", "name": "divide", "content": "Error in call 3 (divide): ZeroDivisionError: division by zero"},
    ]
    assert counts == (3, 0, 1)
    assert call(TOOLS, "It is 1.5.", "hermes") == ([], (0, 0, 0))


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (hermes(("multiply", {})), "Error in call 1 (multiply): there is no tool 'multiply'. The tools are: "
         "divide(a: number, b: number = ...); lines(count: integer)"),
        (hermes(("divide", {"a": "3"})), "Error in call 1 (divide): the argument 'a' is \"3\"; it must be number. "
         "Usage: divide(a: number, b: number = ...)"),
        ("<tool_call>{</tool_call>", "Error in call 1: it is no valid JSON (Expecting property name enclosed in "
         'double quotes at character 1); write {"name": "...", "arguments": {...}}. The tools are: '
         "divide(a: number, b: number = ...); lines(count: integer)"),
    ],
)  # fmt: skip
def test_malformed_calls_are_answered_with_what_is_wanted(text, content):
    messages, counts = call(TOOLS, text, "hermes")
    assert [message["content"] for message in messages] == [content] and counts == (1, 1, 0)


def test_answers_to_gemma_are_the_users():
    text = "```tool_code\ndivide(3)\nprint(lines(count=1))\ndivide(1, 2, 3)\ndivide(1, a=2)\n```"
    (message,), counts = call(TOOLS, text, "gemma")
    assert message["role"] == "user" and counts == (4, 2, 0)
    assert message["content"].startswith('```tool_output\n1.5\n```\n```tool_output\n{"lines": ["é"]}\n```\n')
    assert "there are 3 arguments and 2 parameters" in message["content"] and "'a' is given twice" in message["content"]


def test_long_results_are_cut():
    (message,), _ = call(TOOLS, hermes(("lines", {"count": 5000})), "hermes")
    assert len(message["content"]) < MOST_RESULT + 40 and message["content"].endswith(" characters more)")


def test_templates_take_schemas_and_answers(tmp_path):
    """The prompt of the next turn has both, from the ids that were sampled."""
    tokenizer = data.load_tokenizer(str(write_family(tmp_path / "chatml", "chatml")))
    tools, asked = [each.schema for each in TOOLS], [{"role": "user", "content": "3 / 2?"}]
    said = hermes(("divide", {"a": 3}))
    ids = [*data.encode_prompt(tokenizer, asked, tools=tools), *tokenizer.encode(said), tokenizer.eos_id]
    messages, _ = call(TOOLS, said, "hermes")
    dialogue = [*asked, {"role": "assistant", "content": said}, *messages]
    text = tokenizer.decode(data.continue_dialogue(tokenizer, ids, dialogue, tools=tools), skip_special_tokens=False)
    assert json.dumps(tools[0], ensure_ascii=False) in text and text.count(said) == 1
    assert text.endswith("<tool_response>\n1.5\n</tool_response><|im_end|>\n<|im_start|>assistant\n")


def test_tools_are_found_by_name():
    assert [each.name for each in load_tools(("calculator", f"{__name__}:divide"))] == ["calculator", "divide"]
    for names, message in [
        (("nosuch",), "tool 'nosuch' is unknown; give 'package.module:function' or one of"),
        (("nosuch.module:f",), "cannot be imported"),
        (("calculator", "calculator"), "two tools are called 'calculator'"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_tools(names)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("(1 + 2) * 3 / 4", "2.25"), ("0.1 + 0.2", "0.3"), ("1/3", "1/3 (about 0.333333333333)"), ("-7 // 2", "-4"),
        ("2 ^ 10", "1024"), ("2**-2", "0.25"), ("-0.05", "-0.05"), ("1_000 × 1e3 ÷ 2", "500000"), ("-7 % 3", "2"),
        ("0.12345678901234567890", "0.1234567890123456789"), ("123456789 ** 9", str(123456789**9)),
    ],
)  # fmt: skip
def test_the_calculator_is_exact(expression, result):
    assert calculator(expression) == result


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("9**9**9", "a power has more than 4096 bits"), ("2 ** 0.5", "the exponent 1/2 is not whole"), ("1 / 0", "Fraction"),
        ("x + 1", "'x' is none of numbers"), ("abs(1)", "is none of"), ("True", "is none of"), ("1 +", "is no expression"),
        ("1e999", "is none of"), ("'a' * 9", "is none of"), ("1" * 401, "has 401 characters"),
        ("(" * 199 + "1", "no expression"),
        ("[0] * 9", "is none of"), ("2 ** 4000 * 2 ** 4000", "a result has more than 4096 bits"),
        ("1j", "is none of"), ("\0", "no expression"),
    ],
)  # fmt: skip
def test_the_calculator_is_bounded(expression, message):
    with pytest.raises((ValueError, ZeroDivisionError), match=message):
        calculator(expression)


@needs_sandbox
def test_python_runs_in_the_sandbox():
    assert python("print(1 + 1)") == "2" and python("x = 1") == "(it printed nothing)"
    told = python("print(1)\nopen('/etc/passwd')")
    assert told.startswith("1\n") or "FileNotFoundError" in told
    assert told.endswith("(it ended with status 1)")
    (message,), counts = call(load_tools(["python"]), hermes(("python", {"code": "print('é')"})), "hermes")
    assert message["content"] == "é" and counts == (1, 0, 0)
