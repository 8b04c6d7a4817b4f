"""Rewards and facts that networks of the run give: judges on the device, and those of `rollouts.likelihoods`.

They are asked within the loop, with the `Io` of the step, where other rewards run in workers. Each is a function
`asked(io, collection) -> Told`, whose attribute `asks` says whom: "policy", with its present parameters, "reference", with
those of the beginning, "teacher", a module that learns in the run, or the folder of another policy.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxrl_llm.compose import require
from jaxrl_llm.rewards import judges
from jaxrl_llm.rollouts.asked import Asked, Told, asking, logp_behind
from jaxrl_llm.rollouts.collect import Collection, as_call
from jaxrl_llm.rollouts.likelihoods import (
    gold_likelihood, hidden_states, information_gain, learned_reward, log_ratio, text_contrast,
)  # fmt: skip
from jaxrl_llm.rollouts.records import rounded
from jaxrl_llm.rollouts.requests import POLICY, Request, prompt_ids_of

SUCCESS = 1.0  # first reward of a right answer


def policy_judge(
    by: str = POLICY, *, template: str = "", pattern: str = "", scope: str = "row", labels: Sequence[str] = (),
    where: Literal["", "right", "wrong", "failed"] = "", only: str = "", max_tokens: int = 512, temperature: float = 0.0,
) -> Asked:  # fmt: skip
    """Reward, or fact: what a network of the run says of an answer, as `rewards.judge` asks a server.

    What it said stands in the records of completions. Noise depends on seed, step and the number of the question.

    Args:
      by: who judges, see above.
      template, pattern, scope: see `rewards.judges.form_of`.
      labels: two texts such as ("A", "B"): nothing is sampled, and what counts is the probability of the first against that
        of the second behind the question (Pairwise-RL, https://arxiv.org/abs/2504.04950).
      where: rows that are judged, by the first reward of the run: "right" (at least 1), "wrong", or "failed", those of groups
        without a right one; others have 0.
      only: "column=value": examples whose answers are judged, so that verifiers judge others; those have 0.
      max_tokens: of what the judge says.
      temperature: at which it does; 0 is greedy.

    Raises ValueError: as `form_of` says, labels that are not two or that nobody compares, or a number out of range.
    """
    form = judges.form_of(template, pattern, scope)
    require(max_tokens >= 1, "max_tokens", max_tokens, "at least 1")
    require(temperature >= 0, "temperature", temperature, "at least 0")
    require(where in ("", "right", "wrong", "failed"), "where", where, "'', 'right', 'wrong' or 'failed'")
    if labels and (len(labels) != 2 or scope in ("group", "steps", "spans")):
        raise ValueError(f"labels is {labels!r} with scope {scope!r}; give two, for 'row', 'pair' or 'anchor'")
    if only and "=" not in only:
        raise ValueError(f"only is {only!r}; give 'column=value'")
    if where and scope in judges.WHOLE_GROUPS:
        raise ValueError(f"where is {where!r}, but the scope {scope!r} looks at whole groups; leave it out")
    answered = functools.partial(_label_shares, tuple(labels)) if labels else functools.partial(_said, max_tokens, temperature)
    return asking(_judged, by, form, by, where, only, answered, scores=bool(labels))


def _judged(form: judges.Form, by: str, where: str, only: str, answered: Callable, io, collection: Collection) -> Told:
    prompts, completions, columns, _ = as_call(collection)
    group = np.asarray(collection.rollouts.group)
    column, _, wanted = only.partition("=")
    meant = np.array([not only or str(request.example.get(column)) == wanted for request in collection.requests])
    chosen = np.flatnonzero(_chosen(where, collection) & meant)
    parts = [chosen[group[chosen] == own] for own in np.unique(group)] if form.scope in judges.WHOLE_GROUPS else [chosen]
    calls = [_call_of(rows, prompts, completions, columns) for rows in parts]
    asked = [judges.questions(form, *call) for call in calls]
    texts = answered(io, by, list(itertools.chain(*asked)))
    values, notes = [0.0 if where or only else None] * len(prompts), [None] * len(prompts)
    for rows, questions, call in zip(parts, asked, calls, strict=True):
        own, texts = texts[: len(questions)], texts[len(questions) :]
        found = [judges.found_in(form, text) if isinstance(text, str) else text for text in own]
        for row, value in zip(rows, judges.verdicts(form, found, call[1]), strict=True):
            values[row] = value
        each = len(own) // max(len(rows), 1)
        for place, row in enumerate(rows):
            notes[row] = own[place * each : (place + 1) * each] or own
    return Told(values, notes)


def _call_of(rows, prompts, completions, columns: Mapping[str, Sequence]) -> tuple[list, list, dict]:
    taken = {name: [values[row] for row in rows] for name, values in columns.items()}
    return [prompts[row] for row in rows], [completions[row] for row in rows], taken


def _chosen(where: str, collection: Collection) -> np.ndarray:
    """Whether each row is judged, bool [N]."""
    group = np.asarray(collection.rollouts.group)
    # Facts are asked once the records have the rewards as they are, without weights.
    known = [record.get("rewards") for record in collection.records]
    first = np.asarray(collection.rollouts.rewards)[:, 0] if None in known else [own[0] for own in known]
    right = np.nan_to_num(np.array(first, np.float64), nan=-np.inf) >= SUCCESS
    if where == "failed":
        return ~np.isin(group, group[right])
    return {"": np.ones(len(group), bool), "right": right, "wrong": ~right}[where]


def _asked_as(io, question: str, tokenizer) -> Any:
    return [{"role": "user", "content": question}] if tokenizer.chat_template else question


def _said(max_tokens: int, temperature: float, io, by: str, questions: Sequence[str]) -> list[str]:
    """What the network says to each question."""
    if not questions:
        return []
    tokenizer = io.tokenizers.get(by, io.tokenizer)
    asked = [Request(_asked_as(io, text, tokenizer), prompt_id=number, by=by) for number, text in enumerate(questions)]
    longest = max(len(prompt_ids_of(tokenizer, request.prompt)) for request in asked)
    usual = {"stop_ids": tuple(tokenizer.stop_ids), "max_new_tokens": max_tokens, "temperature": temperature}
    usual |= {"slots": io.sampling["slots"]} if "slots" in io.sampling else {}
    usual |= {"stop_strings": tuple(tokenizer.stop_strings), "detokenize": tokenizer.decode} if tokenizer.stop_strings else {}
    own = dataclasses.replace(
        io, tokenizer=tokenizer, sampling=usual, max_prompt_tokens=rounded(longest), in_flight=None, keeps_entropy=False
    )
    return [record["completion"] for record in own.turn(asked, io.numbers(asked)).records]


def _label_shares(labels: tuple[str, str], io, by: str, questions: Sequence[str]) -> list[float]:
    """Probability of the first label against the second behind each question."""
    tokenizer = io.tokenizers.get(by, io.tokenizer)
    ends = [tokenizer.encode(label) for label in labels]
    begun = [prompt_ids_of(tokenizer, _asked_as(io, question, tokenizer)) for question in questions]
    logp = [sum(own) for own in logp_behind(io, by, [(ids, end) for ids in begun for end in ends])]
    first, second = np.array(logp[::2]), np.array(logp[1::2])
    return (1.0 / (1.0 + np.exp(np.minimum(second - first, 700.0)))).tolist()


# Those that a configuration can name without a module.
MAKERS = (policy_judge, gold_likelihood, hidden_states, information_gain, learned_reward, log_ratio, text_contrast)
ASKING = {make.__name__: make for make in MAKERS}
