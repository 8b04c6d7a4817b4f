"""Views: the same answers behind other prompts, for whoever samples, scores or learns them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.data.tokenizers import Tokenizer
from jaxrl_llm.rollouts.collect import Collection
from jaxrl_llm.rollouts.records import rounded
from jaxrl_llm.rollouts.requests import Prompt, Request, prompt_ids_of, prompt_text
from jaxrl_llm.types import Rollouts

HOME = "view_from"


class View(NamedTuple):
    """Prompts that stand in front of the completions of N rows in place of their own."""

    prompts: Sequence[Sequence[int]]  # N lists of token ids
    home: np.ndarray  # int [N], column where the completion of each row begins behind its own prompt


def templated(prompt: Prompt, template: str, columns: Mapping[str, Any], tokenizer: Tokenizer) -> Prompt:
    """The prompt with its text, in a chat that of the last message, replaced by `template`.

    Args:
      prompt: a text, or the messages of a chat.
      template: a text in the notation of `str.format`; "{prompt}" stands for the prompt's own text, other names for columns.
      columns: those of the example, and what the strategy knows.
      tokenizer: of prompts that are token ids, which are refused.

    Raises ValueError: the template names a column that is missing or None, or the prompt is given as token ids.
    """
    if not isinstance(prompt, str) and not isinstance(prompt[0], dict):
        raise ValueError("a prompt of token ids cannot be put into a template; give a text or the messages of a chat")
    known = {name: value for name, value in columns.items() if value is not None}
    try:
        text = template.format_map(known | {"prompt": prompt_text(tokenizer, prompt)})
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"the template {template!r} asks for {error}, and this prompt has {sorted(known)}") from error
    return text if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": text}]


def view_of(collection: Collection, prompts: Sequence[Prompt], tokenizer: Tokenizer) -> View:
    """A prompt for each row."""
    asked = zip(prompts, collection.requests, strict=True)
    ids = [prompt_ids_of(tokenizer, prompt, request.example.get("tools")) for prompt, request in asked]
    return View(ids, collection.prompt_length)


def with_view(rollouts: Rollouts, who: str, view: View) -> Rollouts:
    """The rollouts whose rows `who`, "proximal", "reference" or "teacher", reads behind the prompts of the view."""
    prompts = np.full((len(view.prompts), rounded(max(map(len, view.prompts)))), -1, np.int32)
    for row, ids in enumerate(view.prompts):
        prompts[row, : len(ids)] = ids
    return rollouts.replace(extras=rollouts.extras | {f"{who}_view": prompts, HOME: np.asarray(view.home, np.int32)})


def taken_views(rollouts: Rollouts) -> tuple[Rollouts, dict[str, View]]:
    """The rollouts without their views, and the views by who reads them."""
    names = [name for name in rollouts.extras if name.endswith("_view")]
    if not names:
        return rollouts, {}
    prompts = {name.removesuffix("_view"): np.asarray(rollouts.extras[name]) for name in names}
    views = {who: View([row[row >= 0].tolist() for row in rows], rollouts.extras[HOME]) for who, rows in prompts.items()}
    rest = {name: value for name, value in rollouts.extras.items() if name not in (*names, HOME)}
    return rollouts.replace(extras=rest), views


def seen_behind(rollouts: Rollouts, view: View) -> Rollouts:
    """The rows with the prompts of the view in front of their completions: tokens, mask and candidates move along."""
    starts = np.array([len(prompt) for prompt in view.prompts], np.int32)
    length = np.asarray(rollouts.length) + starts - view.home
    moved = {"tokens": np.asarray(rollouts.tokens), "mask": np.asarray(rollouts.mask)}
    if "candidates" in rollouts.extras:
        moved["candidates"] = np.asarray(rollouts.extras["candidates"])
    found = _moved(moved, rollouts, view, rounded(int(length.max())))
    extras = {name: found.pop(name) for name in ("candidates",) if name in found}
    return Rollouts(**found, length=length, rewards=np.asarray(rollouts.rewards), group=rollouts.group, extras=extras)


def _moved(fields: Mapping[str, np.ndarray], rollouts: Rollouts, view: View, width: int) -> dict[str, np.ndarray]:
    """Columns [N, T, ...] of the completions behind the prompts of the view, [N, width, ...], and its prompts in "tokens"."""
    found = {name: np.zeros((len(values), width, *values.shape[2:]), values.dtype) for name, values in fields.items()}
    for row, prompt in enumerate(view.prompts):
        own = slice(int(view.home[row]), int(rollouts.length[row]))
        for name, values in fields.items():
            found[name][row, len(prompt) : len(prompt) + own.stop - own.start] = values[row, own]
        found["tokens"][row, : len(prompt)] = prompt
    return found


def at_home(values: np.ndarray, rollouts: Rollouts, view: View) -> np.ndarray:
    """Values [N, W, ...] of views at the places of the rows' own tokens, [N, T, ...]; 0 at prompts and padding."""
    found = np.zeros((*rollouts.tokens.shape, *values.shape[2:]), values.dtype)
    for row, prompt in enumerate(view.prompts):
        own = slice(int(view.home[row]), int(rollouts.length[row]))
        found[row, own] = values[row, len(prompt) : len(prompt) + own.stop - own.start]
    return found


def moved_behind(collection: Collection, prompts: Sequence[Prompt], tokenizer: Tokenizer, logp: np.ndarray) -> Collection:
    """The rows as if they had been asked by other prompts, for a learner that reads those.

    Args:
      collection: with rows.
      prompts: one for each row.
      tokenizer: of the prompts.
      logp: [N, T] (nats), of the rows' own tokens behind the new prompts: the `behavior_logp` of the new rows.

    Raises ValueError: a row does not fit into the columns that there are.
    """
    rollouts, view = collection.rollouts, view_of(collection, prompts, tokenizer)
    starts, width = np.array([len(ids) for ids in view.prompts], np.int32), rollouts.tokens.shape[1]
    length = np.asarray(rollouts.length) + starts - view.home
    if length.max() > width:
        raise ValueError(
            f"a row has {length.max()} tokens behind its new prompt, and {width} columns; raise task.max_prompt_tokens"
        )
    fields = {name: np.asarray(getattr(rollouts, name)) for name in ("tokens", "mask", "version", "turn")}
    fields |= {"behavior_logp": np.asarray(logp, np.float32)}
    fields |= {} if rollouts.token_rewards is None else {"token_rewards": np.asarray(rollouts.token_rewards)}
    found = _moved(fields, rollouts, view, width)
    by_token = {name: value for name, value in rollouts.extras.items() if np.ndim(value) > 1 and value.shape[1] == width}
    moved = _moved({"tokens": fields["tokens"]} | by_token, rollouts, view, width)
    extras = dict(rollouts.extras) | {name: moved[name] for name in by_token}
    rollouts = rollouts.replace(**found, length=length, extras=extras)
    requests = [
        dataclasses.replace(request, prompt=prompt) for request, prompt in zip(collection.requests, prompts, strict=True)
    ]
    return dataclasses.replace(collection, rollouts=rollouts, requests=requests, prompt_length=starts)


def under(request: Request, template: str, tokenizer: Tokenizer, **known) -> Request:
    """The request with its prompt in a template."""
    return dataclasses.replace(request, prompt=templated(request.prompt, template, request.example | known, tokenizer))
