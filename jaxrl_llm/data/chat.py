"""Chat templates, rendered in a sandbox, and the token ids of prompts."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from jaxrl_llm.data.tokenizers import Tokenizer

Message = Mapping[str, Any]


def render_chat(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
    """Text of a conversation under the chat template of `tokenizer`.

    Args:
      tokenizer: must carry a chat template; a template is untrusted code and runs in a sandbox.
      messages: dicts with "role" and "content".
      add_generation_prompt: end with the header after which the assistant speaks.
      **variables: further variables of the template, such as `tools` or `enable_thinking`. Templates that write the
        date of today ask for `date_string`: give it, so that prompts do not depend on the day.

    Raises:
      ValueError: no template, malformed messages, or a template that refuses them.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "the tokenizer has no chat_template; give prompts as plain text, or add one with "
            "dataclasses.replace(tokenizer, chat_template=...)"
        )
    _check_messages(messages)
    context = {"tools": None, "documents": None, **dict(tokenizer.special_tokens), **variables}
    try:
        template = _compiled(tokenizer.chat_template)
        return template.render(messages=list(messages), add_generation_prompt=add_generation_prompt, **context)
    except jinja2.TemplateError as error:
        roles = [message["role"] for message in messages]
        raise ValueError(f"the chat template refused messages with the roles {roles}: {error}") from error


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
) -> list[int]:
    """Token ids of `render_chat`; the template writes every special token itself, so none is added."""
    return tokenizer.encode(render_chat(tokenizer, messages, add_generation_prompt, **variables))


def encode_prompt(tokenizer: Tokenizer, prompt: str | Sequence[Message], **variables: Any) -> list[int]:
    """Token ids of a prompt: text as the tokenizer begins a text of its own, chat messages by the template."""
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, add_special_tokens=True)
    return encode_chat(tokenizer, prompt, **variables)


def encode_example(tokenizer: Tokenizer, example: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Token ids of "prompt" and of "completion", the latter with the end token; an empty completion is just that token.

    The two are encoded apart, so that the prompt has the very ids that sampling will give it.
    """
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    return encode_prompt(tokenizer, example["prompt"]), tokenizer.encode(example["completion"]) + end


def _check_messages(messages: Sequence[Message]) -> None:
    if isinstance(messages, str) or not messages:
        raise ValueError(f"messages is {messages!r}; give a non-empty list of dicts with 'role' and 'content'")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise ValueError(f"messages[{index}] is {message!r}; each message is a dict with 'role' and 'content'")


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    return environment.from_string(source)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, with which some templates mark what the assistant says: rendered as its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # jinja's own filter escapes HTML, which models were never shown.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
