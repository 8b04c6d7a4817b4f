"""Rows of recorded calls, and bodies of requests."""

import pytest

from jaxrl_llm.serving.bodies import BadRequest, wanted_of_chat, wanted_of_text
from jaxrl_llm.serving.sessions import Call, Row, rows_of


def test_calls_that_go_on_are_one_row_and_rewritten_ones_branch():
    first = Call([1, 2], [3, 4], [-0.5, -0.25], "stop")
    second = Call([1, 2, 3, 4, 9, 9], [5], [-1.0], "length")
    rewritten = Call([1, 2, 3, 8], [6], [-2.0], "stop")
    again = Call([1, 2, 3, 8, 6, 7], [4], [-3.0], "stop")
    rows = rows_of([first, second, rewritten, again])
    assert rows == [
        Row([1, 2], [3, 4, 9, 9, 5], [1, 1, 0, 0, 1], [-0.5, -0.25, 0, 0, -1], [0, 0, 1, 1, 1], "length"),
        Row([1, 2, 3, 8], [6, 7, 4], [1, 0, 1], [-2, 0, -3], [0, 1, 1], "stop"),
    ]
    # Two answers to one prompt are two rows.
    assert [row.tokens for row in rows_of([first, Call([1, 2], [7], [-1.0], "stop")])] == [[3, 4], [7]]
    assert rows_of([]) == []


CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def test_bodies_are_read():
    wanted = wanted_of_chat(CHAT | {"n": 3, "max_tokens": 5, "stop": "x", "user": "me", "top_p": 0.5, "seed": None})
    assert (wanted.samples, wanted.limit, wanted.stop, wanted.top_p, wanted.seed) == (3, 5, ("x",), 0.5, None)
    assert wanted_of_chat(CHAT | {"max_tokens": 5, "max_completion_tokens": 6}).limit == 6
    assert wanted_of_text({"prompt": [1, 2], "logprobs": 1}).logprobs


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"messages": []}, "messages"), ({"messages": [{"content": "x"}]}, "messages[0]"), ({"n": 0}, "n"), ({"n": True}, "n"),
        ({"temperature": -1}, "temperature"), ({"temperature": "hot"}, "temperature"), ({"top_p": 0}, "top_p"),
        ({"stop": ["a", ""]}, "stop"), ({"stop": [1]}, "stop"), ({"stream": "yes"}, "stream"), ({"tools": [1]}, "tools"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"), ({"top_logprobs": 3}, "top_logprobs"), ({"colour": 1}, "colour"),
        ({"max_tokens": 0}, "max_tokens"), ({"seed": 1.5}, "seed"), ({"temperature": float("nan")}, "temperature"),
        ({"response_format": {"type": "json_object"}}, "response_format"), ({"logprobs": 2}, "logprobs"),
    ],
)  # fmt: skip
def test_bodies_that_ask_for_what_is_not_done_are_refused_by_name(change, named):
    with pytest.raises(BadRequest) as found:
        wanted_of_chat(CHAT | change)
    assert found.value.field == named and named.partition("[")[0] in str(found.value)
    for prompt in ("", [], ["a"], 3, [[1]]):
        with pytest.raises(BadRequest, match="prompt"):
            wanted_of_text({"prompt": prompt})
    with pytest.raises(BadRequest, match="JSON object"):
        wanted_of_text([1])
