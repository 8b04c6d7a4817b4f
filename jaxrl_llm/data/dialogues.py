"""Dialogues with the assistant's tokens marked, and how a dialogue goes on from the ids that were sampled."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrl_llm.data import templates
from jaxrl_llm.data.chat import Message, encode_prompt, encode_rendered, refuse_losses, render_chat, render_with
from jaxrl_llm.data.templates import Span
from jaxrl_llm.data.tokenizers import Tokenizer

TURNS = ("all", "last")


def encode_dialogue(
    tokenizer: Tokenizer, messages: Sequence[Message], *, turns: str = "all", **variables: Any
) -> tuple[list[int], list[int]]:
    """Token ids of a whole dialogue, and 1 for each of them that the assistant said.

    The ids are those of the text that the template writes for the dialogue. What the assistant said is what the template
    puts into `{% generation %}` blocks. A template without such blocks is asked for the dialogue up to each assistant
    turn, with the generation prompt, and up to its end; what the turn adds is the assistant's, up to the stop token at its
    end and with it, or all of it where the template writes none.

    A token that holds characters of the assistant and others (a tokenizer may merge the end of a header with the
    beginning of an answer) counts as the assistant's, as it does in transformers.

    Args:
      tokenizer: carries the template, and knows which characters a token stands for.
      messages: as in `render_chat`, at least one of the role "assistant".
      turns: "all" or "last", the assistant turns that are marked; with "last", messages after that turn are left out.
      **variables: of the template, as in `render_chat`.

    Returns: Ids and mask of 0 and 1, of the same length.
    Raises ValueError: malformed messages, a tokenizer that cannot place its tokens in a text, or a template that leaves out
      tools, tool calls or reasoning to learn, or writes a turn in another way once the dialogue goes on, as those do that drop
      earlier reasoning.
    """
    check_dialogue(messages, "messages")
    if turns not in TURNS:
        raise ValueError(f"turns is {turns!r}; it must be one of {TURNS}")
    if tokenizer.encode_spans is None:
        mend = "give it encode_spans, or take a tokenizer from load_tokenizer"
        raise ValueError(f"the tokenizer has no encode_spans, so the assistant's tokens cannot be told; {mend}")
    said = assistant_turns(messages)
    if turns == "last":
        messages, said = messages[: said[-1] + 1], said[-1:]
    refuse_losses(functools.partial(render_chat, tokenizer, add_generation_prompt=False), messages, variables, said)
    text, spans = render_with(templates.render_marked, tokenizer, messages, False, variables)
    if spans is None:
        spans = [_span_of_turn(tokenizer, messages, index, text, variables) for index in said]
    elif turns == "last":
        spans = _spans_of_last_turn(tokenizer, messages, spans, variables)
    if not any(start < end for start, end in spans):
        mend = "put what the assistant says into {% generation %} blocks, or leave out these blocks altogether"
        raise ValueError(f"the chat template writes nothing of this dialogue as the assistant's; {mend}")
    ids, places = tokenizer.encode_spans(text)
    return ids, _mask(len(text), spans, places)


def encode_example(tokenizer: Tokenizer, example: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Token ids of an example to learn from, and 1 for each that is to be learned.

    Either "messages", with "tools" and "turns" as in `encode_dialogue`; or "prompt" and "completion", the latter with the
    end token. These two are encoded apart, so that the prompt has the very ids that sampling will give it.

    Raises ValueError: neither or both of them, or what `encode_dialogue` refuses.
    """
    if "messages" in example and "completion" in example:
        raise ValueError("an example has both 'messages' and 'completion' to learn from; leave out one of the columns")
    if "messages" in example:
        options = {"turns": example.get("turns", "all"), "tools": example.get("tools")}
        return encode_dialogue(tokenizer, example["messages"], **options)
    if "completion" not in example:
        fault = f"an example has no 'completion' to learn from, only {sorted(example)}"
        raise ValueError(f"{fault}; map a column to it, or to 'messages'")
    prompt, completion = encode_answer(tokenizer, example["prompt"], example["completion"], example.get("tools"))
    return prompt + completion, [0] * len(prompt) + [1] * len(completion)


def encode_answer(tokenizer: Tokenizer, prompt: str | Sequence[Message], text: str, tools=None) -> tuple[list[int], list[int]]:
    """Token ids of a prompt, those that sampling gives it, and of a text that answers it, with what ends an answer.

    That is the end token behind a text. Behind chat messages it is what the template writes behind an answer, up to the
    stop token, so that an answer ends as it does in a dialogue.
    """
    return encode_prompt(tokenizer, prompt, tools=tools), tokenizer.encode(text) + _end_of_answer(tokenizer, prompt, tools)


def _end_of_answer(tokenizer: Tokenizer, prompt: str | Sequence[Message], tools) -> list[int]:
    own = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    if isinstance(prompt, str):
        return own
    begun = prompt[:-1] if prompt[-1]["role"] == "assistant" else prompt
    answered = [*begun, {"role": "assistant", "content": templates.ANSWER}]
    try:
        text, spans = render_with(templates.render_marked, tokenizer, answered, False, {"tools": tools})
    except ValueError:  # such as a template that looks for its own marks in what is said
        return own
    place = text.rfind(templates.ANSWER) + len(templates.ANSWER)
    ends = [end for start, end in spans or () if start <= place - len(templates.ANSWER) and place <= end]
    behind = encode_rendered(tokenizer, text[place : ends[-1] if ends else None]) if templates.ANSWER in text else []
    stop = next((number for number, token in enumerate(behind, 1) if token in tokenizer.stop_ids), None)
    return own if stop is None else behind[:stop]


def continue_dialogue(tokenizer: Tokenizer, ids: Sequence[int], messages: Sequence[Message], **variables: Any) -> list[int]:
    """Prompt of the next assistant turn: `ids` as they are, and behind them what the template writes for new messages.

    Text of sampled tokens, encoded again, may give other tokens than those that were sampled, and a template may drop
    what it takes for old, such as reasoning. Here the model sees in its past exactly what it was given and said.

    Args:
      tokenizer: carries the template.
      ids: the last prompt and the tokens that were sampled from it. Where these lack a stop token, since they ran to
        their limit, the template's end of the turn is added.
      messages: the whole conversation; what follows its last message of the role "assistant", at least one, is new. The
        content of that message is not used, it is in `ids`.
      **variables: of the template, the same as for the first prompt.

    Raises ValueError: no assistant turn or nothing after it, or a template that does not write what an assistant says as it is.
    """
    said = assistant_turns(messages)
    if not said or said[-1] == len(messages) - 1:
        roles = [message["role"] for message in messages]
        raise ValueError(f"messages have the roles {roles}; a dialogue goes on with messages after those of the assistant")
    if len(ids) == 0:
        raise ValueError("ids is empty; give the ids of the last prompt and of what was sampled from it")
    stand_in = {"role": "assistant", "content": templates.ANSWER}
    try:
        text = render_chat(tokenizer, [*messages[: said[-1]], stand_in, *messages[said[-1] + 1 :]], **variables)
        added = _behind_answer(text)
    except ValueError:
        if all(message["role"] != "tool" for message in messages):
            raise
        # Such as gpt-oss's, which writes a result only behind a call, and refuses its own marks in what was said.
        added = _behind_answer(render_chat(tokenizer, _with_calls(messages, said[-1]), **variables))
        ends = [added.find(tokenizer.decode([stop], skip_special_tokens=False)) for stop in tokenizer.stop_ids]
        added = added[min((end for end in ends if end >= 0), default=0) :]
    added = encode_rendered(tokenizer, added)
    # An end that is no stop, "<|end|>" for "<|return|>", is one where the next turn begins right behind it.
    special = [not tokenizer.decode([token]) for token in added[:2]]
    ended_twice = ids[-1] in tokenizer.stop_ids and (added[0] in tokenizer.stop_ids or special == [True, True])
    return [*ids, *(added[1:] if ended_twice else added)]


def _behind_answer(text: str) -> str:
    if text.count(templates.ANSWER) != 1 or text.endswith(templates.ANSWER):
        mend = "use a template that writes each message once, as it is"
        raise ValueError(f"the chat template wrote an answer {text.count(templates.ANSWER)} times, or nothing after it; {mend}")
    return text.partition(templates.ANSWER)[2]


def _with_calls(messages: Sequence[Message], last: int) -> list[Message]:
    """The messages, those of the assistant without what they say, and with a call where a tool answers."""
    found = []
    for index, message in enumerate(messages):
        said = templates.ANSWER if index == last else ""
        if message["role"] == "assistant" and messages[index + 1]["role"] == "tool":
            call = {"name": messages[index + 1].get("name") or "tool", "arguments": said}
            found.append({"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]})
        else:
            found.append({"role": "assistant", "content": said} if message["role"] == "assistant" else message)
    return found


def assistant_turns(messages: Sequence[Message]) -> list[int]:
    """Numbers of the messages that are the assistant's."""
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def check_dialogue(messages: Any, place: str, tools: Any = None) -> None:
    """Refuses what is no dialogue to learn from.

    Raises ValueError: the message begins with `place`, such as "train.jsonl, line 3: messages".
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"{place} is {messages!r}; give a non-empty list of dicts with 'role' and 'content'")
    for index, message in enumerate(messages):
        fault = message_fault(message)
        if fault:
            raise ValueError(f"{place}[{index}] {fault}")
    if not assistant_turns(messages):
        roles = [message["role"] for message in messages]
        raise ValueError(f"{place} has the roles {roles}; there must be an 'assistant' to learn from")
    if tools is not None and not (isinstance(tools, (list, tuple)) and all(isinstance(tool, Mapping) for tool in tools)):
        raise ValueError(f"{place}: tools is {tools!r}; give a list of function schemas as objects, or null")


def message_fault(message: Any) -> str:
    """What is wrong with a message and how to mend it; "" if nothing is."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        return f"is {message!r}; each message is a dict with 'role' and 'content'"
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        return f"has no 'content', only {sorted(message)}; give a text (it may be empty)"
    if content is not None and not isinstance(content, (str, list, tuple)):
        return f"has content {content!r}; give a text, or a list of parts such as {{'type': 'text', 'text': '...'}}"
    return ""


def _spans_of_last_turn(
    tokenizer: Tokenizer, messages: Sequence[Message], spans: list[Span], variables: Mapping[str, Any]
) -> list[Span]:
    """Those of `spans` that the dialogue has not yet without its last message."""
    if len(messages) == 1:
        return spans
    _, earlier = render_with(templates.render_marked, tokenizer, messages[:-1], False, variables)
    return spans[len(earlier) :]


def _span_of_turn(
    tokenizer: Tokenizer, messages: Sequence[Message], index: int, text: str, variables: Mapping[str, Any]
) -> Span:
    """Characters [start, end) of `text`, the whole dialogue, that the assistant says in `messages[index]`."""
    marking = "use a template that marks what the assistant says with {% generation %}"
    if index == 0:
        raise ValueError(f"messages[0] is the assistant's, so nothing prompts for it; begin with another role, or {marking}")
    prompt = render_chat(tokenizer, messages[:index], True, **variables)
    finished = render_chat(tokenizer, messages[: index + 1], False, **variables)
    said = _through_stop(tokenizer, finished[len(prompt) :])
    if not finished.startswith(prompt):
        fault = "the chat template prompts for this turn with a text that it does not write once the turn is there"
        raise ValueError(f"messages[{index}]: {fault}; {marking}, or give variables of the template under which it does")
    if not text.startswith(prompt + said):
        fault = "the chat template writes the dialogue up to this turn in another way once it goes on (it may drop reasoning)"
        mend = "learn from one turn an example, with turns='last' (split_turns makes such examples of dialogues)"
        raise ValueError(f"messages[{index}]: {fault}; {mend}, or {marking}")
    return len(prompt), len(prompt) + len(said)


def _through_stop(tokenizer: Tokenizer, text: str) -> str:
    """`text` up to the stop token at its end and with it, further ones and white space aside; all of it where there is none."""
    stops = [tokenizer.decode([stop], skip_special_tokens=False) for stop in tokenizer.stop_ids]
    pattern = "|".join(re.escape(stop) for stop in stops if stop)
    if not pattern:
        return text
    found = re.search(rf"({pattern})(?:\s|{pattern})*$", text) or next(reversed(list(re.finditer(pattern, text))), None)
    return text if found is None else text[: found.start() + len(found[1] if found.lastindex else found[0])]


def _mask(length: int, spans: Sequence[Span], places: Sequence[Span]) -> list[int]:
    """1 for each token whose place, in characters, overlaps one of the spans; a token of no width lies where it begins."""
    counts = np.zeros(length + 2, np.int64)
    for start, end in spans:
        counts[start + 1 : end + 1] = 1
    total = np.cumsum(counts)
    starts, ends = np.asarray(places, np.int64).reshape(-1, 2).T
    return (total[np.maximum(ends, starts + 1)] > total[starts]).astype(int).tolist()
