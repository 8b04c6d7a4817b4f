"""Rewards and facts that networks of the run give: judges on the device, the likelihood of an answer, hidden states.

They are asked within the loop, with the `Io` of the step, where other rewards run in workers. Each is a function
`asked(io, collection) -> Told`, whose attribute `asks` says whom: "policy", with its present parameters, "reference", with
those of the beginning, "teacher", or the folder of another policy.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxrl_llm.compose import require
from jaxrl_llm.data.chat import encode_prompt
from jaxrl_llm.rewards import judges
from jaxrl_llm.rollouts.collect import Collection, as_call
from jaxrl_llm.rollouts.facts import token_span
from jaxrl_llm.rollouts.requests import POLICY, Request, prompt_ids_of
from jaxrl_llm.rollouts.views import templated
from jaxrl_llm.types import Rollouts

OF_RUN = (POLICY, "reference", "teacher")
_MULTIPLE = 64  # of the width of rows that are scored, so that few are compiled
_PART_ROWS = 32  # of which hidden states are fetched at a time
SUCCESS = 1.0  # first reward of a right answer


class Told(NamedTuple):
    """What was found out about the rows of a collection."""

    # a number or, of facts, what facts are, for each row, None where there is none; or, of facts, an array [N, ...]
    values: Sequence[Any] | np.ndarray
    notes: Sequence[Any] | None = None  # what else the record of each row says; None for nothing


Asked = Callable[[Any, Collection], Told]


def _asking(function: Callable, by: str, /, *arguments, scores: bool) -> Asked:
    found = functools.partial(function, *arguments)
    found.asks, found.scores = by, scores  # whether it scores, which evaluations cannot
    return found


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
    return _asking(_judged, by, form, by, where, only, answered, scores=bool(labels))


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
        io, tokenizer=tokenizer, sampling=usual, max_prompt_tokens=_rounded(longest), in_flight=None, keeps_entropy=False
    )
    return [record["completion"] for record in own.turn(asked, io.numbers(asked)).records]


def _label_shares(labels: tuple[str, str], io, by: str, questions: Sequence[str]) -> list[float]:
    """Probability of the first label against the second behind each question."""
    tokenizer = io.tokenizers.get(by, io.tokenizer)
    ends = [tokenizer.encode(label) for label in labels]
    begun = [prompt_ids_of(tokenizer, _asked_as(io, question, tokenizer)) for question in questions]
    logp = [sum(own) for own in _logp(io, by, [(ids, end) for ids in begun for end in ends])]
    first, second = np.array(logp[::2]), np.array(logp[1::2])
    return (1.0 / (1.0 + np.exp(np.minimum(second - first, 700.0)))).tolist()


def _rounded(length: int) -> int:
    return -(-length // _MULTIPLE) * _MULTIPLE


def _rows(parts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Rollouts:
    """Rows of a beginning and what is scored behind it."""
    length = np.array([len(begun) + len(end) for begun, end in parts], np.int32)
    tokens = np.zeros((len(parts), _rounded(int(length.max()))), np.int32)
    mask = np.zeros(tokens.shape, np.float32)
    for row, (begun, end) in enumerate(parts):
        tokens[row, : length[row]], mask[row, len(begun) : length[row]] = [*begun, *end], 1.0
    group = np.arange(len(parts), dtype=np.int32)
    return Rollouts(tokens=tokens, length=length, mask=mask, rewards=np.zeros((len(parts), 1), np.float32), group=group)


def _logp(io, by: str, parts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[np.ndarray]:
    """Log-probabilities (nats) of the tokens of each end behind its beginning, at the temperature of training."""
    if not parts:
        return []
    rows = _rows(parts)
    found = np.asarray(io.statistics_of(rows, by, ("logp",))["logp"], np.float64)
    return [own[len(begun) : len(begun) + len(end)] for own, (begun, end) in zip(found, parts, strict=True)]


def _ids_of(io, by: str, collection: Collection, row: int, end: int | None = None) -> tuple[list[int], list[int]]:
    """Prompt, and completion up to a character, as `by` reads them: the sampled ids where its tokenizer is the run's."""
    tokenizer, request = io.tokenizers.get(by), collection.requests[row]
    start, text = int(collection.prompt_length[row]), collection.records[row]["completion"]
    if tokenizer is not None:
        return encode_prompt(tokenizer, request.prompt, tools=request.example.get("tools")), tokenizer.encode(text[:end])
    ids = collection.rollouts.tokens[row, : collection.rollouts.length[row]].tolist()
    own = ids[start:]
    return ids[:start], own if end is None else own[: token_span(io.tokenizer, own, 0, end)[1]]


STATISTICS: dict[str, Callable[[np.ndarray], float]] = {
    "mean_logp": np.mean,
    "sum_logp": np.sum,
    "probability": lambda logp: np.exp(np.sum(logp)),
    "mean_probability": lambda logp: np.mean(np.exp(logp)),
    "perplexity": lambda logp: np.exp(-np.mean(logp)),
}


def gold_likelihood(
    by: str = POLICY, *, statistic: str = "mean_logp", behind: str = "", lead: str = "", column: str = "answer",
    against: Literal["", "difference", "ratio"] = "",
) -> Asked:  # fmt: skip
    """Reward: how likely the answer of the example is behind the reasoning of the row.

    Args:
      by: who reads, see above; its logits are divided by the temperature of training.
      statistic: of the answer's tokens: "mean_logp" and "sum_logp" (nats), "probability" of all of them (VeriFree,
        https://arxiv.org/abs/2505.21493), "mean_probability" of one (RLPR, https://arxiv.org/abs/2506.18254), or
        "perplexity" (NOVER, https://arxiv.org/abs/2505.16022).
      behind: the text that ends a reasoning, such as "</think>", which is read with it; what comes behind its last occurrence
        is not, and a row without it has no reward. "" for the whole completion.
      lead: text between reasoning and answer, which does not count, such as "<answer>".
      column: of the example, with the answer.
      against: what the statistic is compared with, that of the answer behind the prompt and the lead alone: "difference", kept
        within 0 and 1 (RLPR), or "ratio", of the other to it, less 1.

    Raises ValueError: an unknown statistic or comparison.
    """
    require(statistic in STATISTICS, "statistic", statistic, f"one of {sorted(STATISTICS)}")
    require(against in ("", "difference", "ratio"), "against", against, "'', 'difference' or 'ratio'")
    return _asking(_gold, by, by, statistic, behind, lead, column, against, scores=True)


def _gold(by: str, statistic: str, behind: str, lead: str, column: str, against: str, io, collection: Collection) -> Told:
    tokenizer = io.tokenizers.get(by, io.tokenizer)
    begun, rows = [], []
    for row, (record, request) in enumerate(zip(collection.records, collection.requests, strict=True)):
        _column(request, column, "gold_likelihood")
        place = record["completion"].rfind(behind) if behind else len(record["completion"])
        if place >= 0:
            rows.append(row)
            begun.append(_ids_of(io, by, collection, row, place + len(behind) if behind else None))
    between = tokenizer.encode(lead) if lead else []
    gold = [tokenizer.encode(str(collection.requests[row].example[column])) for row in rows]
    ends = [own if not own or own[-1] not in tokenizer.stop_ids else own[:-1] for _, own in begun]
    parts = [([*prompt, *end, *between], own) for (prompt, _), end, own in zip(begun, ends, gold, strict=True)]
    found = [float(STATISTICS[statistic](logp)) for logp in _logp(io, by, parts)]
    if against:
        bare = _logp(io, by, [([*prompt, *between], own) for (prompt, _), own in zip(begun, gold, strict=True)])
        pairs = zip(found, [float(STATISTICS[statistic](logp)) for logp in bare], strict=True)
        found = [min(max(own - base, 0.0), 1.0) if against == "difference" else base / own - 1.0 for own, base in pairs]
    values = dict(zip(rows, found, strict=True))
    return Told([values.get(row) for row in range(len(collection.records))])


def information_gain(by: str = POLICY, *, statistic: str = "mean_probability", lead: str = "", column: str = "answer") -> Asked:
    """Fact "token_rewards": at the end of each turn, what it adds to the likelihood of the example's answer.

    It is the likelihood behind all up to the turn, less that before it; the first turn's is compared with the prompt alone. A
    row of no episode is one turn.

    Args:
      by, statistic, lead, column: as in `gold_likelihood`.

    Raises ValueError: an unknown statistic.
    Source: IGPO, https://arxiv.org/abs/2510.14967
    """
    require(statistic in STATISTICS, "statistic", statistic, f"one of {sorted(STATISTICS)}")
    return _asking(_gains, by, by, statistic, lead, column, scores=True)


def _gains(by: str, statistic: str, lead: str, column: str, io, collection: Collection) -> Told:
    if by in io.tokenizers:
        raise ValueError(f"information_gain reads turns token by token, and {by!r} has its own tokenizer; give another policy")
    rollouts, start = collection.rollouts, collection.prompt_length
    between, parts, places = io.tokenizer.encode(lead) if lead else [], [], []
    for row, request in enumerate(collection.requests):
        prompt, own = _ids_of(io, by, collection, row)
        gold = io.tokenizer.encode(str(_column(request, column, "information_gain")))
        ends = [turn.end for turn in request.episode or () if turn.end] or [len(own)]
        parts += [([*prompt, *own[:end], *between], gold) for end in (0, *ends)]
        places.append(ends)
    found, gains = iter([float(STATISTICS[statistic](logp)) for logp in _logp(io, by, parts)]), np.zeros_like(rollouts.mask)
    for row, ends in enumerate(places):
        values = [next(found) for _ in range(len(ends) + 1)]
        gains[row, start[row] + np.array(ends) - 1] = np.diff(values)
    return Told(gains)


def _column(request: Request, column: str, whose: str) -> Any:
    if request.example.get(column) is None:
        known = sorted(request.example)
        raise ValueError(f"{whose} reads the column {column!r}, which example {request.prompt_id} has not, only {known}")
    return request.example[column]


def hidden_states(by: str = POLICY, *, pool: Literal["mean", "last"] = "mean", of: Literal["completion", "row"] = "completion"):
    """Fact such as "embedding" [N, D]: the last layer's states at tokens of a row, after they are read.

    Args:
      by: who reads, see above.
      pool: their "mean", or the "last" one.
      of: which tokens: those of the "completion", or of the whole "row".

    Raises ValueError: another pool or part.
    """
    require(pool in ("mean", "last"), "pool", pool, "'mean' or 'last'")
    require(of in ("completion", "row"), "of", of, "'completion' or 'row'")
    return _asking(_states_of_rows, by, by, pool, of, scores=True)


def _states_of_rows(by: str, pool: str, of: str, io, collection: Collection) -> Told:
    read = [_ids_of(io, by, collection, row) for row in range(len(collection.records))]
    parts = [([], [*prompt, *own]) if of == "row" else (prompt, own) for prompt, own in read]
    return Told(pooled(io, by, parts, pool))


def pooled(io, by: str, parts: Sequence[tuple[Sequence[int], Sequence[int]]], pool: str = "mean") -> np.ndarray:
    """Hidden states [N, D] that have read the tokens of each end behind its beginning, pooled; 0 where it has no tokens."""
    found = []
    for start in range(0, len(parts), _PART_ROWS):
        some = parts[start : start + _PART_ROWS]
        # What was read up to a token is said at the place behind it: rows have one more, as those of reward models have.
        filled = [*some, *[some[0]] * (_PART_ROWS - len(some))] if start else some
        rows = _rows([(begun, [*end, 0]) for begun, end in filled])
        states = io.statistics_of(rows, by, ("hidden",))["hidden"]
        for (begun, end), own in zip(some, states, strict=False):
            read = np.asarray(own[len(begun) + 1 : len(begun) + len(end) + 1], np.float32)
            found.append(read[-1] if pool == "last" and len(read) else read.sum(axis=0) / max(len(read), 1))
    return np.stack(found)


def learned_reward(by: str = "judge") -> Asked:
    """Reward: what a reward model that learns in the run says of a row, its value at the last token, see docs/modules.md.

    Args:
      by: the name of the module.

    Source: Cooper, https://arxiv.org/abs/2508.05613
    """
    return _asking(_values_of_rows, by, by, scores=True)


def _values_of_rows(by: str, io, collection: Collection) -> Told:
    read = [_ids_of(io, by, collection, row) for row in range(len(collection.records))]
    # What the last token is said to be worth stands at the place behind it.
    values = io.statistics_of(_rows([(prompt, [*own, 0]) for prompt, own in read]), by, ("value",))["value"]
    return Told([float(row[len(prompt) + len(own)]) for row, (prompt, own) in zip(values, read, strict=True)])


def text_contrast(
    by: str = POLICY, *, query: str = "query", negative: str = "negative", spread: float = 0.2, temperature: float = 0.1
) -> Asked:
    """Reward: how near the mean hidden state h of prompt and completion is to that of a text, and how far from another one's.

    R_i = (cos(h_i, q) - cos(n, q) + spread * mean over the group's others of cos(h_i, h_j) - spread * mean over other groups of
    their largest cos(h, q)) / temperature, and -1 for a completion that was cut off.

    Args:
      by: who reads, see above.
      query: column of the example with the text q that the row should be near to.
      negative: column with the text n.
      spread: weight of what rows say of each other.
      temperature: tau.

    Source: GRACE, https://arxiv.org/abs/2510.04506, where q and n have rationales of their own
    """
    require(temperature > 0, "temperature", temperature, "above 0")
    return _asking(_contrasted, by, by, query, negative, spread, temperature, scores=True)


def _contrasted(by: str, query: str, negative: str, spread: float, temperature: float, io, collection: Collection) -> Told:
    tokenizer, group = io.tokenizers.get(by, io.tokenizer), np.asarray(collection.rollouts.group)
    parts = [([], sum(_ids_of(io, by, collection, row), [])) for row in range(len(group))]
    for request, column in ((request, column) for column in (query, negative) for request in collection.requests):
        parts.append(([], tokenizer.encode(str(_column(request, column, "text_contrast")))))
    states = pooled(io, by, parts)
    rows, near, far = np.split(states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12), 3)
    cut = [record["finish_reason"] == "length" for record in collection.records]
    return Told(np.where(cut, -1.0, contrast(rows, near, far, group, spread) / temperature).tolist())


def contrast(rows: np.ndarray, near: np.ndarray, far: np.ndarray, group: np.ndarray, spread: float) -> np.ndarray:
    """The rewards [N] of `text_contrast` before the temperature, of unit vectors [N, D] and groups [N]."""
    alike, own = rows @ near.T, group[:, None] == group  # [N, N]: of row i and the text of row j
    others = own & ~np.eye(len(group), dtype=bool)
    within = (rows @ rows.T * others).sum(axis=1) / np.maximum(others.sum(axis=1), 1)
    groups = np.unique(group)
    largest = np.stack([alike[group == number].max(axis=0) for number in groups])  # [groups, N]
    foreign = groups[:, None] != group
    beyond = (largest * foreign).sum(axis=0) / np.maximum(foreign.sum(axis=0), 1)
    return np.diag(alike) - (far * near).sum(axis=1) + spread * (within - beyond)


def log_ratio(by: str = "teacher", *, template: str = "{prompt}", against: str = "reference") -> Asked:
    """Reward: mean over a row's actions of log p_by - log p_against, the reward that preference learning made of a policy.

    Args:
      by: who was trained on preferences, see above; it may read what the policy does not.
      template: of the prompt that `by` reads, with {prompt} and columns, such as a solution that is there in training alone.
      against: "reference", or another one of the run.

    Source: SWEET-RL, https://arxiv.org/abs/2503.15478, whose advantages of turns are such means
    """
    require(against in OF_RUN, "against", against, f"one of {OF_RUN}")
    return _asking(_log_ratios, by, by, template, against, scores=True)


def _log_ratios(by: str, template: str, against: str, io, collection: Collection) -> Told:
    if by in io.tokenizers and io.tokenizers[by].encode("a b") != io.tokenizer.encode("a b"):
        raise ValueError(f"log_ratio compares tokens, and {by!r} has another tokenizer; give a policy of the run's")
    asked = [templated(own.prompt, template, own.example, io.tokenizer) for own in collection.requests]
    mask = np.asarray(collection.rollouts.mask) > 0
    ratio = io.score(collection, by, view=asked)["logp"] - io.score(collection, against)["logp"]
    return Told((np.where(mask, ratio, 0.0).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)).tolist())


# Those that a configuration can name without a module.
MAKERS = (policy_judge, gold_likelihood, hidden_states, information_gain, learned_reward, log_ratio, text_contrast)
ASKING = {make.__name__: make for make in MAKERS}
