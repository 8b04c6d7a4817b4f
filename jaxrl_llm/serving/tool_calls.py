"""Calls of tools between OpenAI's form, in which clients have them, and that of chat templates."""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxrl_llm.data.tokenizers import Tokenizer
from jaxrl_llm.environments.syntaxes import Call, calls_in, first_call, style_of


def parser_of(tokenizer: Tokenizer) -> Callable[[str, Sequence[Mapping]], tuple[str, list[dict]]] | None:
    """`(text, tools) -> (content, tool calls)` in the style of the chat template; None where it shows none.

    A text whose calls are malformed is all content.
    """
    try:
        style = style_of(tokenizer.chat_template or "")
    except ValueError:
        return None

    def parse(text: str, tools: Sequence[Mapping]) -> tuple[str, list[dict]]:
        calls = calls_in(text, style)
        if not calls or any(call.fault for call in calls):
            return text, []
        return text[: first_call(text, style)].strip(), [_as_told(call, tools) for call in calls]

    return parse


def _as_told(call: Call, tools: Sequence[Mapping]) -> dict:
    schema = next((tool["function"] for tool in tools if tool["function"]["name"] == call.name), {})
    names = list(schema.get("parameters", {}).get("properties", {}))
    arguments = dict(zip(names, call.places, strict=False)) | dict(call.arguments or {})
    function = {"name": call.name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def for_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose calls have their arguments as objects, as templates take them, in place of texts of JSON."""
    return [
        {**message, "tool_calls": [_as_object(call) for call in message["tool_calls"]]}
        if isinstance(message.get("tool_calls"), list)
        else dict(message)
        for message in messages
    ]


def _as_object(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    except ValueError as error:
        raise ValueError(f"the arguments of a call of {function.get('name')!r} are no JSON: {error}") from error
