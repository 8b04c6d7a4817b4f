"""Rewards and facts that networks of a run give by scoring rows: likelihoods of answers, hidden states, values."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from jaxrl_llm.compose import require
from jaxrl_llm.rollouts.asked import OF_RUN, Asked, Told, asking, ids_read, logp_behind, rows_to_score
from jaxrl_llm.rollouts.collect import Collection
from jaxrl_llm.rollouts.requests import POLICY, Request
from jaxrl_llm.rollouts.views import templated

_PART_ROWS = 32  # of which hidden states are fetched at a time


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
      by: who reads, see `rollouts.asking`; its logits are divided by the temperature of training.
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
    return asking(_gold, by, by, statistic, behind, lead, column, against, scores=True)


def _gold(by: str, statistic: str, behind: str, lead: str, column: str, against: str, io, collection: Collection) -> Told:
    tokenizer = io.tokenizers.get(by, io.tokenizer)
    begun, rows = [], []
    for row, (record, request) in enumerate(zip(collection.records, collection.requests, strict=True)):
        _column(request, column, "gold_likelihood")
        place = record["completion"].rfind(behind) if behind else len(record["completion"])
        if place >= 0:
            rows.append(row)
            begun.append(ids_read(io, by, collection, row, place + len(behind) if behind else None))
    between = tokenizer.encode(lead) if lead else []
    gold = [tokenizer.encode(str(collection.requests[row].example[column])) for row in rows]
    ends = [own if not own or own[-1] not in tokenizer.stop_ids else own[:-1] for _, own in begun]
    parts = [([*prompt, *end, *between], own) for (prompt, _), end, own in zip(begun, ends, gold, strict=True)]
    found = _measured(io, by, statistic, parts)
    if against:
        bare = [([*prompt, *between], own) for (prompt, _), own in zip(begun, gold, strict=True)]
        pairs = zip(found, _measured(io, by, statistic, bare), strict=True)
        found = [min(max(own - base, 0.0), 1.0) if against == "difference" else base / own - 1.0 for own, base in pairs]
    values = dict(zip(rows, found, strict=True))
    return Told([values.get(row) for row in range(len(collection.records))])


def _measured(io, by: str, statistic: str, parts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
    """A statistic of the likelihood of each end behind its beginning."""
    return [float(STATISTICS[statistic](logp)) for logp in logp_behind(io, by, parts)]


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
    return asking(_gains, by, by, statistic, lead, column, scores=True)


def _gains(by: str, statistic: str, lead: str, column: str, io, collection: Collection) -> Told:
    if by in io.tokenizers:
        raise ValueError(f"information_gain reads turns token by token, and {by!r} has its own tokenizer; give another policy")
    rollouts, start = collection.rollouts, collection.prompt_length
    between, parts, places = io.tokenizer.encode(lead) if lead else [], [], []
    for row, request in enumerate(collection.requests):
        prompt, own = ids_read(io, by, collection, row)
        gold = io.tokenizer.encode(str(_column(request, column, "information_gain")))
        ends = [turn.end for turn in request.episode or () if turn.end] or [len(own)]
        parts += [([*prompt, *own[:end], *between], gold) for end in (0, *ends)]
        places.append(ends)
    found, gains = iter(_measured(io, by, statistic, parts)), np.zeros_like(rollouts.mask)
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
      by: who reads, see `rollouts.asking`.
      pool: their "mean", or the "last" one.
      of: which tokens: those of the "completion", or of the whole "row".

    Raises ValueError: another pool or part.
    """
    require(pool in ("mean", "last"), "pool", pool, "'mean' or 'last'")
    require(of in ("completion", "row"), "of", of, "'completion' or 'row'")
    return asking(_states_of_rows, by, by, pool, of, scores=True)


def _states_of_rows(by: str, pool: str, of: str, io, collection: Collection) -> Told:
    read = [ids_read(io, by, collection, row) for row in range(len(collection.records))]
    parts = [([], [*prompt, *own]) if of == "row" else (prompt, own) for prompt, own in read]
    return Told(pooled(io, by, parts, pool))


def pooled(io, by: str, parts: Sequence[tuple[Sequence[int], Sequence[int]]], pool: str = "mean") -> np.ndarray:
    """Hidden states [N, D] that have read the tokens of each end behind its beginning, pooled; 0 where it has no tokens."""
    found = []
    for start in range(0, len(parts), _PART_ROWS):
        some = parts[start : start + _PART_ROWS]
        # What was read up to a token is said at the place behind it: rows have one more, as those of reward models have.
        filled = [*some, *[some[0]] * (_PART_ROWS - len(some))] if start else some
        rows = rows_to_score([(begun, [*end, 0]) for begun, end in filled])
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
    return asking(_values_of_rows, by, by, scores=True)


def _values_of_rows(by: str, io, collection: Collection) -> Told:
    read = [ids_read(io, by, collection, row) for row in range(len(collection.records))]
    # What the last token is said to be worth stands at the place behind it.
    values = io.statistics_of(rows_to_score([(prompt, [*own, 0]) for prompt, own in read]), by, ("value",))["value"]
    return Told([float(row[len(prompt) + len(own)]) for row, (prompt, own) in zip(values, read, strict=True)])


def text_contrast(
    by: str = POLICY, *, query: str = "query", negative: str = "negative", spread: float = 0.2, temperature: float = 0.1
) -> Asked:
    """Reward: how near the mean hidden state h of prompt and completion is to that of a text, and how far from another one's.

    R_i = (cos(h_i, q) - cos(n, q) + spread * mean over the group's others of cos(h_i, h_j) - spread * mean over other groups of
    their largest cos(h, q)) / temperature, and -1 for a completion that was cut off.

    Args:
      by: who reads, see `rollouts.asking`.
      query: column of the example with the text q that the row should be near to.
      negative: column with the text n.
      spread: weight of what rows say of each other.
      temperature: tau.

    Source: GRACE, https://arxiv.org/abs/2510.04506, where q and n have rationales of their own
    """
    require(temperature > 0, "temperature", temperature, "above 0")
    return asking(_contrasted, by, by, query, negative, spread, temperature, scores=True)


def _contrasted(by: str, query: str, negative: str, spread: float, temperature: float, io, collection: Collection) -> Told:
    tokenizer, group = io.tokenizers.get(by, io.tokenizer), np.asarray(collection.rollouts.group)
    parts = [([], sum(ids_read(io, by, collection, row), [])) for row in range(len(group))]
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
      by: who was trained on preferences, see `rollouts.asking`; it may read what the policy does not.
      template: of the prompt that `by` reads, with {prompt} and columns, such as a solution that is there in training alone.
      against: "reference", or another one of the run.

    Source: SWEET-RL, https://arxiv.org/abs/2503.15478, whose advantages of turns are such means
    """
    require(against in OF_RUN, "against", against, f"one of {OF_RUN}")
    return asking(_log_ratios, by, by, template, against, scores=True)


def _log_ratios(by: str, template: str, against: str, io, collection: Collection) -> Told:
    if by in io.tokenizers and io.tokenizers[by].encode("a b") != io.tokenizer.encode("a b"):
        raise ValueError(f"log_ratio compares tokens, and {by!r} has another tokenizer; give a policy of the run's")
    asked = [templated(own.prompt, template, own.example, io.tokenizer) for own in collection.requests]
    mask = np.asarray(collection.rollouts.mask) > 0
    ratio = io.score(collection, by, view=asked)["logp"] - io.score(collection, against)["logp"]
    return Told((np.where(mask, ratio, 0.0).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)).tolist())
