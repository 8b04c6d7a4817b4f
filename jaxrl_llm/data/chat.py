"""Chat messages as text under the template of a tokenizer, and the token ids of prompts."""

import dataclasses
import functools
import re
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

    Raises ValueError: no template, malformed messages or tools, or a template that refuses them.
    """
    return render_with(templates.render, tokenizer, messages, add_generation_prompt, variables)


def render_with(
    render: Callable[[str, Mapping[str, Any]], Any], tokenizer: Tokenizer, messages: Sequence[Message],
    add_generation_prompt: bool, variables: Mapping[str, Any],
) -> Any:  # fmt: skip
    """What `render(source, context)` gives for the template of `tokenizer`; errors as in `render_chat`."""
    _check_messages(messages)
    _check_tools(variables.get("tools"))
    source = template_for(tokenizer, variables.get("tools"))
    context = {"tools": None, "documents": None, **dict(tokenizer.special_tokens)}
    context |= dict(tokenizer.template_options) | variables
    context |= {"messages": [_plain(message) for message in messages], "add_generation_prompt": add_generation_prompt}
    try:
        return render(source, context)
    except Exception as error:  # A template is foreign code.
        roles = [message["role"] for message in messages]
        why = " ".join(str(error).split())[:_MOST_REASON] or type(error).__name__
        if not isinstance(error, (jinja2.TemplateError, TypeError)):
            why = f"{type(error).__name__}: {why}"
        raise ValueError(f"the chat template refused messages with the roles {roles}: {why}") from error


def with_options(tokenizer: Tokenizer, options: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer whose templates are told these variables, such as `enable_thinking`.

    Raises ValueError: a variable that no template of it knows, or that a conversation itself says.
    """
    sources = [source for source in (tokenizer.chat_template, *dict(tokenizer.named_templates).values()) if source]
    for name in options:
        if name in ("messages", "tools", "add_generation_prompt"):
            raise ValueError(f"template option {name!r} is what a conversation says itself; leave it out")
        if not any(re.search(rf"\b{re.escape(name)}\b", source) for source in sources):
            raise ValueError(f"template option {name!r} would change nothing: the chat template does not know it; leave it out")
    return dataclasses.replace(tokenizer, template_options=tuple(sorted(options.items())))


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
    """Token ids of a prompt: text as the tokenizer begins a text of its own, chat messages by the template.

    What the tokenizer would put behind a text, such as its end token, is left out. Messages that end with one of the role
    "assistant" are gone on from: the prompt ends with its content.

    Raises ValueError: an empty text, or what `render_chat` refuses, or tools or tool calls that the template leaves out.
    """
    if isinstance(prompt, str):
        return _begun(tokenizer, prompt)
    refuse_losses(functools.partial(render_prompt, tokenizer), prompt, variables)
    return encode_rendered(tokenizer, render_prompt(tokenizer, prompt, **variables))


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message], **variables: Any) -> str:
    """Text of a conversation up to where the assistant speaks, or goes on with what it says last."""
    _check_messages(messages)
    last = messages[-1]
    if last["role"] != "assistant":
        return render_chat(tokenizer, messages, True, **variables)
    begun = last.get("content")
    if not isinstance(begun, str) or not begun.strip():
        raise ValueError(
            f"messages end with the assistant's {begun!r}; give the text that it is to go on with, or leave it out"
        )
    text = render_chat(tokenizer, messages, False, **variables)
    # Templates may trim what they are given; what is gone on from ends with a word of it then.
    said = next((said for said in (begun, begun.rstrip(), begun.strip()) if said in text), None)
    if said is None:
        raise ValueError("the chat template does not write the assistant's last message as it is, so nothing can go on from it")
    return text[: text.rindex(said) + len(said)]


def refuse_losses(
    render: Callable[..., str], messages: Sequence[Message], variables: Mapping[str, Any], learned: Sequence[int] = ()
) -> None:
    """Refuses a template that leaves out tools or tool calls, or what was thought in one of the turns that are `learned`.

    Args:
      render: `(messages, **variables) -> text`.
      messages: of the conversation.
      variables: of the template.
      learned: numbers of the messages that are learned; thoughts of others may be dropped, as many templates do.

    Raises ValueError: the text is the same without them.
    """
    if variables.get("tools") and _same(render, (messages, variables), (messages, {**variables, "tools": None})):
        raise ValueError("the chat template leaves out the tools; use one that writes them, or leave the column 'tools' out")
    for index, message in enumerate(messages):
        fields = [names for names in (("tool_calls",), _REASONING) if any(message.get(name) for name in names)]
        for names in fields:
            if names == _REASONING and index not in learned:
                continue
            without = {"content": "", **{name: value for name, value in message.items() if name not in names}}
            changed = [*messages[:index], without, *messages[index + 1 :]]
            if _same(render, (messages, variables), (changed, variables)):
                found = next(name for name in names if message.get(name))
                mend = "use a template that writes it, or put it into the content"
                raise ValueError(f"messages[{index}]: the chat template leaves out its {found!r}; {mend}")


def _same(render: Callable[..., str], *given: tuple[Sequence[Message], Mapping[str, Any]]) -> bool:
    try:
        texts = {render(messages, **variables) for messages, variables in given}
    except ValueError:  # what cannot be written without them is written with them
        return False
    return len(texts) == 1


def _begun(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text with what the tokenizer puts before it, without what it puts behind it."""
    plain, ids = tokenizer.encode(text), tokenizer.encode(text, add_special_tokens=True)
    starts = (start for start in range(len(ids) - len(plain) + 1) if plain and ids[start : start + len(plain)] == plain)
    begun = ids[: next(starts, len(ids)) + len(plain)]
    if begun and not plain and begun[-1] == tokenizer.eos_id:
        begun = begun[:-1]
    if not begun:
        raise ValueError("a prompt is empty; give a text of at least one token")
    return begun


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
