"""Bodies of requests: which fields are known, what they may be, and what is refused by name."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxrl_llm.data.dialogues import message_fault

MOST_SAMPLES = 128  # of one request
MOST_STOPS = 16
# Fields that change nothing here, whatever they are.
_WITHOUT_EFFECT = {"user", "store", "metadata", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key"}
# Fields that only one value of would be done as it says.
_FIXED = {
    "frequency_penalty": (0, 0.0, None), "presence_penalty": (0, 0.0, None), "logit_bias": (None, {}), "best_of": (1, None),
    "echo": (False, None), "suffix": (None, ""), "top_logprobs": (0, None), "tool_choice": ("auto", None),
    "response_format": (None, {"type": "text"}),
}  # fmt: skip


class BadRequest(ValueError):
    """What is wrong with a body; `field` is the one to mend."""

    def __init__(self, message: str, field: str | None = None, status: int = 400):
        super().__init__(message)
        self.field, self.status = field, status


class Wanted(NamedTuple):
    """What a body asks for."""

    prompt: Any  # messages, a text, or token ids
    samples: int
    limit: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    stop: tuple[str, ...]
    stream: bool
    usage: bool  # whether a stream ends with the numbers of tokens
    logprobs: bool
    tools: list | None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_tool(value: Any) -> bool:
    function = value.get("function") if isinstance(value, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str)


# Field -> what it may be, in words and as a test.
_FIELDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "n": (f"a whole number from 1 to {MOST_SAMPLES}", lambda value: _is_whole(value) and 1 <= value <= MOST_SAMPLES),
    "max_tokens": ("a whole number from 1 on", lambda value: _is_whole(value) and value >= 1),
    "max_completion_tokens": ("a whole number from 1 on", lambda value: _is_whole(value) and value >= 1),
    "temperature": ("a number from 0 to 100", lambda value: _is_number(value) and (value == 0 or 1e-6 <= value <= 100)),
    "top_k": ("a whole number from 1 on", lambda value: _is_whole(value) and value >= 1),
    "top_p": ("a number above 0 and at most 1", lambda value: _is_number(value) and 0 < value <= 1),
    "min_p": ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),
    "seed": ("a whole number from 0 to 2**63 - 1", lambda value: _is_whole(value) and 0 <= value < 2**63),
    "stream": ("true or false", lambda value: isinstance(value, bool)),
    "stream_options": ("an object", lambda value: isinstance(value, Mapping)),
    "tools": ("a list of function schemas", lambda value: isinstance(value, list) and all(map(_is_tool, value))),
    "model": ("a text", lambda value: isinstance(value, str)),
}


def wanted_of_chat(body: Any) -> Wanted:
    """What a body of /chat/completions asks for.

    Raises BadRequest: it names the field.
    """
    fields = _checked(body, {"messages", "logprobs"})
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list of at least one message", "messages")
    for place, message in enumerate(messages):
        if fault := message_fault(message):
            raise BadRequest(f"messages[{place}] {fault}", f"messages[{place}]")
    if not isinstance(fields.get("logprobs", False), bool):
        raise BadRequest(f"logprobs is {fields['logprobs']!r}; it must be true or false", "logprobs")
    return _wanted(fields, messages, fields.get("logprobs", False))


def wanted_of_text(body: Any) -> Wanted:
    """What a body of /completions asks for.

    Raises BadRequest: it names the field.
    """
    fields = _checked(body, {"prompt", "logprobs"})
    prompt = fields.get("prompt")
    is_text = isinstance(prompt, str) and prompt
    if not is_text and not (isinstance(prompt, list) and prompt and all(map(_is_whole, prompt))):
        raise BadRequest("prompt must be a text that is not empty, or a list of token ids", "prompt")
    if fields.get("logprobs") not in (None, 0, False, True, 1):
        raise BadRequest(f"logprobs is {fields['logprobs']!r}; those of the sampled tokens alone are known: give 1", "logprobs")
    return _wanted(fields, prompt, bool(fields.get("logprobs")))


def _checked(body: Any, own: set[str]) -> dict[str, Any]:
    if not isinstance(body, Mapping):
        raise BadRequest(f"the body is {type(body).__name__}; it must be a JSON object")
    fields = {name: value for name, value in body.items() if value is not None}
    for name, value in fields.items():
        if name in _FIXED and value not in _FIXED[name]:
            raise BadRequest(f"{name} is {value!r}, which this server does not do; leave it out", name)
        if name in _FIELDS and not _FIELDS[name][1](value):
            raise BadRequest(f"{name} is {value!r}; it must be {_FIELDS[name][0]}", name)
        if name not in {*own, *_FIELDS, *_FIXED, *_WITHOUT_EFFECT, "stop"}:
            raise BadRequest(f"{name} is unknown to this server; leave it out", name)
    return fields


def _wanted(fields: Mapping[str, Any], prompt: Any, logprobs: bool) -> Wanted:
    options = fields.get("stream_options", {})
    return Wanted(
        prompt=prompt, samples=fields.get("n", 1), limit=fields.get("max_completion_tokens", fields.get("max_tokens")),
        temperature=fields.get("temperature"), top_k=fields.get("top_k"), top_p=fields.get("top_p"),
        min_p=fields.get("min_p"), seed=fields.get("seed"), stop=_stops(fields.get("stop")), stream=fields.get("stream", False),
        usage=bool(options.get("include_usage")), logprobs=logprobs, tools=fields.get("tools"),
    )  # fmt: skip


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(stop, str) and stop for stop in stops):
        raise BadRequest(f"stop is {value!r}; it must be a text, or a list of at most {MOST_STOPS} texts, none empty", "stop")
    return tuple(stops)
