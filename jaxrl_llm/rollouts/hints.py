"""Strategies that ask, learn or score under other prompts than those of the data: hints, stages, demonstrations, hindsight.

Templates are texts in the notation of `str.format`, see `views.templated`: "{prompt}" is the prompt's own text, other names
are columns of the example.
"""

import dataclasses
from typing import Literal

import numpy as np

from jaxrl_llm.rewards import final_answer
from jaxrl_llm.rollouts.collect import Collection, arranged, joined
from jaxrl_llm.rollouts.io import Io
from jaxrl_llm.rollouts.records import scores_of_rows
from jaxrl_llm.rollouts.requests import Request, make_prefix, requests_for
from jaxrl_llm.rollouts.strategy import Metrics, stateless_strategy
from jaxrl_llm.rollouts.views import moved_behind, templated, under, view_of, with_view

Learned = Literal["hinted", "plain"]
Policy = Literal["proximal", "reference", "teacher"]
BEGINNING = "{prompt}\nThe answer begins so: {part}"
# Of each level the template, the column that "{part}" shows the beginning of, and which share of its characters.
BEGINNINGS = tuple((BEGINNING, "solution", share) for share in (0.25, 0.5, 0.75))


def scores_of(collection: Collection) -> np.ndarray:
    """Total reward of each row, 0 where all are missing, float [N]."""
    return scores_of_rows(collection.rollouts)[0]


@stateless_strategy
def escalated(
    io: Io, prompts: int, *, samples: int = 8, levels: tuple[tuple[str, str, float], ...] = BEGINNINGS,
    replaced: Literal["group", "one"] = "group", learned: Learned = "hinted", warmup_steps: int = 0, threshold: float = 0.0,
) -> tuple[Collection, Metrics]:  # fmt: skip
    """Asks again, with more and more of a hint, the prompts of which no sample is right.

    Args:
      levels: of each level the template, a column of the example, and the share of its text that "{part}" shows.
      replaced: "group", all samples by those under the hint; or "one", the first one by a right one that needed the least hint,
        of one try a level.
      learned: whether the learner reads the "hinted" prompt, as the sampler did, or the "plain" one; such rows have source 1.
      warmup_steps: steps without hints.

    Returns: With the metric "hints/asked", the share of the groups that were asked with a hint.
    Source: GHPO, https://arxiv.org/abs/2507.10628 ("group"); Scaf-GRPO, https://arxiv.org/abs/2510.19807 ("one")
    """
    asked = requests_for(*io.draw(prompts), samples=samples)
    parts = [io.sample(asked)]
    rows = [[(0, group * samples + sample) for sample in range(samples)] for group in range(prompts)]
    best = scores_of(parts[0]).reshape(prompts, samples).max(axis=1)
    failed = np.flatnonzero(best <= threshold) if io.step >= warmup_steps else []
    metrics, tries = {"hints/asked": len(failed) / prompts}, samples if replaced == "group" else 1
    for template, column, share in levels:
        if not len(failed):
            break
        parts.append(io.sample([_hinted(io, asked[g], template, column, share, learned, tries) for g in failed]))
        found = scores_of(parts[-1]).reshape(len(failed), tries)
        for place, group in enumerate(failed):
            own = [(len(parts) - 1, place * tries + sample) for sample in range(tries)]
            if replaced == "group":
                rows[group] = own
            elif found[place, 0] > threshold:
                rows[group][0] = own[0]
        failed = failed[found.max(axis=1) <= threshold]
    flat = [row for own in rows for row in own]
    found = arranged(parts, flat, np.repeat(np.arange(prompts), samples))
    if learned == "plain":
        found = found.changed(source=np.array([part > 0 for part, _ in flat], np.int32))
    return found, metrics


def _hinted(io: Io, request: Request, template: str, column: str, share: float, learned: str, samples: int) -> Request:
    text = request.example.get(column)
    if not isinstance(text, str):
        raise ValueError(f"example {request.prompt_id} has no text in the column {column!r}, of which a hint is to be made")
    hinted = under(request, template, io.tokenizer, part=text[: round(share * len(text))])
    return _guided(request, hinted, samples, learned)


def _guided(request: Request, hinted: Request, samples: int, learned: str) -> Request:
    return dataclasses.replace(hinted, samples=samples, learned_prompt=request.prompt if learned == "plain" else None)


@stateless_strategy(provides=("rows_of_guided",))
def steered(
    io: Io, prompts: int, *, samples: int = 7, guided: int = 1,
    template: str = "{prompt}\nA solution of a similar task: {demonstration}", learned: Learned = "plain",
    rejects_wrong: bool = False, threshold: float = 0.0,
) -> tuple[Collection, Metrics]:  # fmt: skip
    """Groups of `samples` rows under the plain prompt and `guided` ones under a template.

    Args:
      learned: whether the learner reads the "hinted" prompt of the guided rows, or the "plain" one; then they have source 1.
      rejects_wrong: whether guided rows that are not right take no part.

    Source: ICPO, https://arxiv.org/abs/2510.26519; TAPO, https://arxiv.org/abs/2505.15692; TriMPI,
    https://arxiv.org/abs/2510.09474
    """
    plain = requests_for(*io.draw(prompts), samples=samples)
    hinted = [_guided(request, under(request, template, io.tokenizer), guided, learned) for request in plain]
    collection = io.sample([*plain, *hinted])
    is_guided, right = np.arange(prompts * (samples + guided)) >= prompts * samples, scores_of(collection) > threshold
    changed = {"source": is_guided.astype(np.int32)} if learned == "plain" else {}
    if rejects_wrong:
        changed["valid"] = np.asarray(collection.rollouts.valid) * (~is_guided | right)
    metrics = {"hints/right": float(right[is_guided].mean())}
    return collection.changed(**changed), metrics


@stateless_strategy
def staged(
    io: Io, prompts: int, *, samples: int = 8, stages: tuple[tuple[int, str, str], ...] = ((0, "{prompt}", ""),)
) -> tuple[Collection, Metrics]:
    """Asks under a template that depends on the step: budgets that shrink, thinking that is off at first.

    Args:
      stages: of each the first step, the template, and a text that all completions begin with and nobody learns, such as an
        empty block of thoughts.

    Raises ValueError: no stage begins at step 0.
    Source: TFPI, https://arxiv.org/abs/2509.26226; "Train Long, Think Short", https://arxiv.org/abs/2508.08940
    """
    begun = [stage for stage in sorted(stages) if stage[0] <= io.step]
    if not begun:
        raise ValueError(f"stages is {stages}; one must begin at step 0")
    _, template, beginning = begun[-1]
    prefix = make_prefix(io.tokenizer.encode(beginning)) if beginning else None
    asked = [under(request, template, io.tokenizer) for request in requests_for(*io.draw(prompts), samples=samples)]
    return io.sample([dataclasses.replace(request, prefix=prefix) for request in asked]), {"stage": float(len(begun))}


@stateless_strategy(provides=("rows_of_views",))
def self_taught(
    io: Io, prompts: int, *, samples: int = 8, template: str = "{prompt}\nA right answer: {solution}",
    teacher: Policy = "proximal", untaught: Literal["left out", "plain"] = "left out", threshold: float = 0.0,
) -> tuple[Collection, Metrics]:  # fmt: skip
    """The policy that trains is taught by one that is told more: `teacher` reads the rows behind a template.

    "{solution}" is another completion of the group that is right, the first one. All other names are columns of the example: a
    gold answer, a demonstration, feedback.

    Args:
      teacher: "proximal", the policy itself before the step; "reference", which may be its moving average; or "teacher".
      untaught: rows of which no other completion is right are "left out", or read behind their own, "plain" prompt.

    Source: SDPO, https://arxiv.org/abs/2601.20802; SDFT, https://arxiv.org/abs/2601.19897; OPSD,
    https://arxiv.org/abs/2601.18734
    """
    collection = io.sample(requests_for(*io.draw(prompts), samples=samples))
    rollouts, right = collection.rollouts, scores_of(collection) > threshold
    taught, told = np.ones(len(right), bool), []
    for row, request in enumerate(collection.requests):
        known = {}
        if "{solution}" in template:
            others = np.flatnonzero(right & (rollouts.group == rollouts.group[row]) & (np.arange(len(right)) != row))
            taught[row] = len(others) > 0
            known = {"solution": collection.records[others[0]]["completion"]} if taught[row] else {}
        told.append(
            templated(request.prompt, template, request.example | known, io.tokenizer) if taught[row] else request.prompt
        )
    if untaught == "left out":
        rollouts = rollouts.replace(valid=np.asarray(rollouts.valid) * taught.astype(np.float32))
    viewed = with_view(rollouts, teacher, view_of(collection, told, io.tokenizer))
    return dataclasses.replace(collection, rollouts=viewed), {"taught": float(taught.mean())}


@stateless_strategy(provides=("rows_of_views",))
def contrasted(
    io: Io, prompts: int, *, samples: int = 8, template: str = "Answer at once.", who: Policy = "proximal"
) -> tuple[Collection, Metrics]:
    """`samples` completions of each prompt, which `who` reads behind a template that lacks what the answer should rest on.

    Source: PAPO, https://arxiv.org/abs/2507.06448, which masks the image
    """
    collection = io.sample(requests_for(*io.draw(prompts), samples=samples))
    told = [templated(request.prompt, template, request.example, io.tokenizer) for request in collection.requests]
    viewed = with_view(collection.rollouts, who, view_of(collection, told, io.tokenizer))
    return dataclasses.replace(collection, rollouts=viewed), {}


@stateless_strategy(provides=("rows_of_hindsight",))
def relabelled(
    io: Io, prompts: int, *, samples: int = 8, template: str = "{prompt}\nThe answer is to be {achieved}.",
    threshold: float = 0.0, only_wrong: bool = True,
) -> tuple[Collection, Metrics]:  # fmt: skip
    """Rows that are wrong are learned a second time, as right answers to what they did achieve.

    The second row of each stands in a group of its own, with source 1, rewards of 1, and the policy's log-probabilities behind
    the prompt in the template as `behavior_logp`. "{achieved}" is the final answer of the completion; without one there is no
    second row.

    Args:
      only_wrong: False for a second row of right ones too.

    Source: hindsight experience replay, https://arxiv.org/abs/1707.01495
    """
    collection = io.sample(requests_for(*io.draw(prompts), samples=samples))
    achieved = [final_answer(record["completion"]) for record in collection.records]
    wrong = scores_of(collection) <= threshold
    rows = [row for row, answer in enumerate(achieved) if answer is not None and (wrong[row] or not only_wrong)]
    metrics = {"hindsight/rows": len(rows) / len(achieved)}
    if not rows:
        return collection, metrics
    part = collection.take(np.array(rows))
    told = [
        templated(request.prompt, template, request.example | {"achieved": achieved[row]}, io.tokenizer)
        for request, row in zip(part.requests, rows, strict=True)
    ]
    again = _behind(io, part, told)
    ones, alone = np.ones_like(again.rollouts.rewards), np.arange(len(rows), dtype=np.int32)
    again = again.changed(rewards=ones, source=np.ones(len(rows), np.int32), group=alone)
    if again.rollouts.token_rewards is not None:
        again = again.changed(token_rewards=np.zeros_like(again.rollouts.token_rewards))
    return joined([collection, again]), metrics


@stateless_strategy
def doubled(
    io: Io, prompts: int, *, samples: int = 8, template: str = "Answer this question.\n{prompt}"
) -> tuple[Collection, Metrics]:
    """Each row is learned twice, behind its prompt and behind a perturbed one, with one advantage: both are in one group.

    Source: SVEA, https://arxiv.org/abs/2107.00644, whose targets are those of the clean input
    """
    collection = io.sample(requests_for(*io.draw(prompts), samples=samples))
    told = [templated(request.prompt, template, request.example, io.tokenizer) for request in collection.requests]
    both = joined([collection, _behind(io, collection, told)])
    return both.changed(group=np.tile(collection.rollouts.group, 2)), {}


def _behind(io: Io, collection: Collection, told: list) -> Collection:
    """The rows behind other prompts, with the policy's log-probabilities there."""
    return moved_behind(collection, told, io.tokenizer, io.score(collection, "policy", view=told)["logp"])
