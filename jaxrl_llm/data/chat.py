"""Chat messages as text under the template of a tokenizer, and the token ids of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2

from jaxrl_llm.data import templates
from jaxrl_llm.data.tokenizers import Tokenizer

Message = Mapping[str, Any]

_MOST_REASON = 300  # characters of what a template says of itself
# Names under which data sets give what an assistant thought; templates read the first, some the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def render_chat(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
    """Text of a conversation under the chat template of `tokenizer`, as `apply_chat_template` of transformers gives it.

    Args:
      tokenizer: must carry a chat template; a template is untrusted code and runs in a sandbox.
      messages: dicts with "role" and "content", which is a text or, where the template knows them, a list of parts; an
        assistant's may have "tool_calls" and "reasoning_content". Fields that are None count as absent.
      add_generation_prompt: end with the header after which the assistant speaks.
      **variables: further variables of the template, such as `enable_thinking`, and `tools`, a list of function schemas
        as dicts: with it a template named "tool_use" is taken, if there is one. Templates that write the date of today
        ask for `date_string`: give it, so that prompts do not depend on the day.

    Raises:
      ValueError: no template, malformed messages or tools, or a template that refuses them.
    """
    return render_with(templates.render, tokenizer, messages, add_generation_prompt, variables)


def render_with(
    render: Callable[[str, Mapping[str, Any]], Any],
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
) -> Any:
    """What `render(source, context)` gives for the template of `tokenizer`; errors as in `render_chat`."""
    _check_messages(messages)
    _check_tools(variables.get("tools"))
    source = template_for(tokenizer, variables.get("tools"))
    context = {"tools": None, "documents": None, **dict(tokenizer.special_tokens), **variables}
    context |= {"messages": [_plain(message) for message in messages], "add_generation_prompt": add_generation_prompt}
    try:
        return render(source, context)
    except Exception as error:  # A template is foreign code.
        roles = [message["role"] for message in messages]
        why = " ".join(str(error).split())[:_MOST_REASON] or type(error).__name__
        if not isinstance(error, (jinja2.TemplateError, TypeError)):
            why = f"{type(error).__name__}: {why}"
        raise ValueError(f"the chat template refused messages with the roles {roles}: {why}") from error


def template_for(tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] | None) -> str:
    """Source of the template for a conversation with `tools`, or without where that is None."""
    named = dict(tokenizer.named_templates)
    if tools is not None and "tool_use" in named:
        return named["tool_use"]
    if tokenizer.chat_template is None:
        found = f"only templates by the names {sorted(named)}" if named else "none at all"
        raise ValueError(
            f"the tokenizer has no chat_template, {found}; give prompts as plain text, or choose one with "
            "dataclasses.replace(tokenizer, chat_template=...)"
        )
    return tokenizer.chat_template


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
) -> list[int]:
    """Token ids of `render_chat`; the template writes every special token itself, so none is added."""
    return encode_rendered(tokenizer, render_chat(tokenizer, messages, add_generation_prompt, **variables))


def encode_rendered(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of what a template wrote, special tokens among it."""
    return tokenizer.encode(text) if tokenizer.encode_spans is None else tokenizer.encode_spans(text)[0]


def encode_prompt(tokenizer: Tokenizer, prompt: str | Sequence[Message], **variables: Any) -> list[int]:
    """Token ids of a prompt: text as the tokenizer begins a text of its own, chat messages by the template."""
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, add_special_tokens=True)
    return encode_chat(tokenizer, prompt, **variables)


def _plain(message: Message) -> dict[str, Any]:
    """`message` without the fields that are None, and what was thought under the names that templates read."""
    present = {name: value for name, value in message.items() if value is not None}
    thought = next((present[name] for name in _REASONING if name in present), None)
    if thought is None:
        return present
    return {"thinking": thought, **present, "reasoning_content": thought}


def _check_messages(messages: Sequence[Message]) -> None:
    if isinstance(messages, str) or not messages:
        raise ValueError(f"messages is {messages!r}; give a non-empty list of dicts with 'role' and 'content'")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise ValueError(f"messages[{index}] is {message!r}; each message is a dict with 'role' and 'content'")


def _check_tools(tools: Any) -> None:
    if tools is None:
        return
    if not isinstance(tools, (list, tuple)):
        raise ValueError(f"tools is {tools!r}; give a list of function schemas as dicts, or None")
    wrong = next((index for index, tool in enumerate(tools) if not isinstance(tool, Mapping)), None)
    if wrong is not None:
        mend = "give its schema as a dict, such as {'type': 'function', 'function': {...}}"
        raise ValueError(f"tools[{wrong}] is {tools[wrong]!r}; {mend}")
