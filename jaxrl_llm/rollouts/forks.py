"""Strategies that go on from the middle of rows: values of states by sampling from them, trees, exits, beginnings given."""

import dataclasses
import math
from typing import Literal

import numpy as np

from jaxrl_llm.compose import Composable, composable, require
from jaxrl_llm.rollouts.collect import Collection, arranged, fork
from jaxrl_llm.rollouts.facts import token_span
from jaxrl_llm.rollouts.hints import scores_of
from jaxrl_llm.rollouts.io import Io
from jaxrl_llm.rollouts.requests import Prefix, Request, make_prefix, requests_for
from jaxrl_llm.rollouts.strategy import Metrics, stateless_strategy
from jaxrl_llm.sampling import STOP, finish_name


def _own(collection: Collection, row: int) -> tuple[int, int]:
    return int(collection.prompt_length[row]), int(collection.rollouts.length[row])


# Rules of where to cut: (io, collection, row) -> columns of the row, rising, each behind the first token of the completion.


@composable
def every(io: Io, collection: Collection, row: int, *, tokens: int = 64):
    """A cut each so many tokens."""
    first, last = _own(collection, row)
    return list(range(first + tokens, last, tokens))


@composable
def shares(io: Io, collection: Collection, row: int, *, count: int = 8):
    """`count` cuts that divide the row into equal parts, less where it is too short."""
    first, last = _own(collection, row)
    return sorted({first + (last - first) * part // (count + 1) for part in range(1, count + 1)} - {first})


@composable
def separators(io: Io, collection: Collection, row: int, *, text: str = "\n", most: int = 16):
    """A cut behind each occurrence of a text, at the tokens that it ends with; the first `most`."""
    first, last = _own(collection, row)
    ids, told = collection.rollouts.tokens[row, first:last].tolist(), collection.records[row]["completion"]
    columns, place = [], 0
    while (place := told.find(text, place)) >= 0 and len(columns) < most:
        columns.append(first + token_span(io.tokenizer, ids, place, place + len(text))[1])
        place += len(text)
    return sorted(column for column in set(columns) if column < last)


@composable
def unlikely(io: Io, collection: Collection, row: int, *, below: float = 0.9, interval: int = 5):
    """A cut in front of every `interval`-th token whose probability was lower than `below`.

    Source: SPO-chain, https://arxiv.org/abs/2505.23564
    """
    first, last = _own(collection, row)
    logp = collection.rollouts.behavior_logp[row, first:last]
    return [first + int(place) for place in np.flatnonzero(logp < np.log(below))[interval - 1 :: interval] if place]


@composable
def least_likely(io: Io, collection: Collection, row: int, *, count: int = 2):
    """Cuts in front of the `count` tokens that were least likely, but the first of the row.

    Source: TreeRL, https://arxiv.org/abs/2506.11902
    """
    first, last = _own(collection, row)
    logp = collection.rollouts.behavior_logp[row, first + 1 : last]
    return sorted(first + 1 + int(place) for place in np.argsort(logp, kind="stable")[:count])


LINES, EIGHT = separators(), shares()


@stateless_strategy(provides=("value_before", "value_behind"))
def valued(
    io: Io, prompts: int, *, samples: int = 8, continuations: int = 9, cuts: Composable = LINES
) -> tuple[Collection, Metrics]:
    """Cuts rows into segments, and takes the mean reward of completions from each cut as the value of the state there.

    `extras["value_before"]` and `["value_behind"]` [N, T] are the values at both ends of the segment of each token. That at the
    beginning is the mean reward of the group, that at the end the row's own reward. Completions that were sampled for values
    are no part of the rollouts. Segments are the turns of a row, so that `turn_ratio` is theirs.

    Args:
      cuts: rule `(io, collection, row) -> columns`.

    Source: VinePPO, https://arxiv.org/abs/2410.01679; SPO, https://arxiv.org/abs/2505.23564
    """
    collection = io.sample(requests_for(*io.draw(prompts), samples=samples))
    rollouts, score = collection.rollouts, scores_of(collection)
    columns = [cuts(io, collection, row) for row in range(len(score))]

    def state(row: int, column: int):
        """Equal tokens of one prompt are one state, however many rows come through."""
        return int(rollouts.prompt_id[row]), rollouts.tokens[row, :column].tobytes()

    states = {}
    for row, own in enumerate(columns):
        for column in own:
            states.setdefault(state(row, column), (row, column))
    asked = [dataclasses.replace(fork(collection, *place), samples=continuations) for place in states.values()]
    means = scores_of(io.sample(asked)).reshape(-1, continuations).mean(axis=1) if asked else []
    value_of = dict(zip(states, means, strict=True))
    before, behind = np.zeros(rollouts.tokens.shape, np.float32), np.zeros(rollouts.tokens.shape, np.float32)
    turn = np.zeros(rollouts.tokens.shape, np.int32)
    for row, own in enumerate(columns):
        root = score[rollouts.group == rollouts.group[row]].mean()
        values = [root, *(value_of[state(row, column)] for column in own), score[row]]
        first, last = _own(collection, row)
        for place, (start, end) in enumerate(zip([first, *own], [*own, last], strict=True)):
            before[row, start:end], behind[row, start:end], turn[row, start:end] = values[place], values[place + 1], place
    extras = {"value_before": before, "value_behind": behind}
    return collection.changed(turn=turn, extras=extras), {"values/states": float(len(states))}


@stateless_strategy
def branching(
    io: Io, prompts: int, *, samples: int = 16, widths: tuple[int, ...] = (4, 2, 2), segment: int = 64
) -> tuple[Collection, Metrics]:
    """A tree for each prompt: each row that is not over after `segment` tokens goes on as several; the last ones to their end.

    The leaves of a prompt, up to the product of `widths`, are one group, each with all tokens on its way as actions.

    Source: TreePO, https://arxiv.org/abs/2508.17445; SPO-tree, https://arxiv.org/abs/2505.23564
    """
    require(samples == math.prod(widths), "samples", samples, f"{math.prod(widths)}, the product of widths = {widths}")
    requests = requests_for(*io.draw(prompts))
    parts, rows, groups, limit = [], [], [], io.sampling["max_new_tokens"]
    alive = list(enumerate(requests))
    for level, width in enumerate(widths):
        last = level == len(widths) - 1
        asked = [dataclasses.replace(request, samples=width, limit=None if last else segment) for _, request in alive]
        if not asked:
            break
        parts.append(io.sample(asked, rewarded=False))
        owners, alive = [owner for owner, _ in alive for _ in range(width)], []
        for row, owner in enumerate(owners):
            record = parts[-1].records[row]
            if last or record["finish_reason"] == finish_name(STOP) or record["length"] >= limit:
                rows, groups = [*rows, (level, row)], [*groups, owner]
            else:
                alive.append((owner, fork(parts[-1], row, int(parts[-1].rollouts.length[row]))))
    return io.reward(_by_group(parts, rows, groups)), {"tree/leaves": len(rows) / prompts}


def _by_group(parts: list[Collection], rows: list[tuple[int, int]], groups: list[int], *extras: tuple[str, list]) -> Collection:
    """The rows `(part, row of the part)` in the order of their groups, with `extras`: a name and a number for each row."""
    order = np.argsort(groups, kind="stable")
    found = arranged(parts, [rows[place] for place in order], np.array(groups)[order])
    added = {name: np.array(values, np.int32)[order] for name, values in extras}
    return found.changed(extras=added)


@stateless_strategy
def uncertain_tree(
    io: Io, prompts: int, *, samples: int = 6, forks: int = 2, rounds: int = 1, width: int = 2
) -> tuple[Collection, Metrics]:
    """`samples` completions of each prompt, then `width` others from each of the `forks` least likely tokens of each.

    Further rounds fork the rows of the round before. All leaves are one group, and learn all tokens on their way.

    Source: TreeRL (EPTree), https://arxiv.org/abs/2506.11902, with (samples, forks, rounds, width) = (6, 2, 1, 2) in its
    scripts
    """
    found = io.sample(requests_for(*io.draw(prompts), samples=samples), rewarded=False)
    rule = least_likely(count=forks)
    parts, rows, groups = [found], [(0, row) for row in range(prompts * samples)], list(found.rollouts.group)
    newest = list(enumerate(groups))
    for level in range(1, rounds + 1):
        places = [(row, column, group) for row, group in newest for column in rule(io, parts[-1], row)]
        if not places:
            break
        asked = [dataclasses.replace(fork(parts[-1], row, column), samples=width) for row, column, _ in places]
        parts.append(io.sample(asked, rewarded=False))
        owners = np.repeat([group for _, _, group in places], width)
        rows += [(level, row) for row in range(len(owners))]
        groups += list(owners)
        newest = list(enumerate(owners))
    return io.reward(_by_group(parts, rows, groups)), {"tree/leaves": len(rows) / prompts}


@stateless_strategy(provides=("cut",))
def exits(
    io: Io, prompts: int, *, samples: int = 1, text: str = "\nThe answer is ", cuts: Composable = EIGHT
) -> tuple[Collection, Metrics]:
    """A path for each prompt, and at each cut of it an exit: the text, which nobody learns, and an answer.

    The exits of a path and the path are a group, `extras["cut"]` [N] their columns in order. A row learns the path up to its
    exit and its own answer.

    Source: S-GRPO, https://arxiv.org/abs/2505.07686
    """
    path = io.sample(requests_for(*io.draw(prompts), samples=samples), rewarded=False)
    asked, groups, where = [], [], []
    for row in range(prompts * samples):
        for column in cuts(io, path, row):
            request = fork(path, row, column)
            if (longer := with_text(request.prefix, text, io)) is not None:
                asked.append(dataclasses.replace(request, prefix=longer))
                groups, where = [*groups, row], [*where, column]
    parts = [path, io.sample(asked, rewarded=False)] if asked else [path]
    rows = [(1, place) for place in range(len(asked))] + [(0, row) for row in range(prompts * samples)]
    where, groups = [*where, *path.rollouts.length.tolist()], [*groups, *range(prompts * samples)]
    return io.reward(_by_group(parts, rows, groups, ("cut", where))), {"exits": len(asked) / prompts}


def with_text(prefix: Prefix | None, text: str, io: Io) -> Prefix | None:
    """The prefix with a text behind it that nobody learns; None where no room is left for an answer."""
    added = make_prefix(io.tokenizer.encode(text))
    both = [added] if prefix is None else [prefix, added]
    if sum(len(part.tokens) for part in both) >= io.sampling["max_new_tokens"]:
        return None
    return Prefix(*(np.concatenate([getattr(part, field.name) for part in both]) for field in dataclasses.fields(Prefix)))


@stateless_strategy(annotations=lambda options: () if options["by"] == "given" else (f"{options['by']}_samples",))
def begun(
    io: Io, prompts: int, *, samples: int = 8, by: Literal["given", "reference", "teacher"] = "given", share: float = 1.0,
    tokens: int | None = None, shrinks_over: int | None = None,
) -> tuple[Collection, Metrics]:  # fmt: skip
    """Completions that go on from a beginning that somebody else wrote, which nobody learns.

    Args:
      samples: of each prompt, all from one beginning.
      by: whose completion it is the beginning of: the example's own, or another policy's.
      share: of the prompts that have one; the others begin at the prompt.
      tokens: length of the beginning; None for a length that is uniform from 0 to that of the completion.
      shrinks_over: steps over which `tokens` goes to 0, evenly.

    Source: dataset reset, https://arxiv.org/abs/2404.08495; JSRL, https://arxiv.org/abs/2204.02372 (a guide whose part shrinks)
    """
    require(shrinks_over is None or tokens is not None, "shrinks_over", shrinks_over, "None, where tokens is")
    examples, numbers = io.draw(prompts)
    plain = requests_for(examples, numbers)
    guide = io.sample([dataclasses.replace(request, by=by) for request in plain], rewarded=False)
    chance = io.uniform(2 * prompts, salt=3).reshape(2, prompts)
    left = 1.0 if shrinks_over is None else max(0.0, 1.0 - io.step / shrinks_over)
    requests = []
    for row, request in enumerate(plain):
        first, last = _own(guide, row)
        length = int(chance[0, row] * (last - first)) if tokens is None else round(left * min(tokens, last - first - 1))
        length = length if chance[1, row] < share else 0
        begin = make_prefix(guide.rollouts.tokens[row, first : first + length]) if length > 0 else None
        requests.append(dataclasses.replace(request, prefix=begin, samples=samples))
    begins = [0 if request.prefix is None else len(request.prefix.tokens) for request in requests]
    return io.sample(requests), {"begun/tokens": float(np.mean(begins))}


@stateless_strategy(provides=("value_before", "value_behind"))
def budgeted(
    io: Io, prompts: int, *, samples: int = 8, budgets: tuple[int, ...] = (64, 128, 192, 256), summaries: int = 4,
    text: str = "\n</think>\n\n", prior: Literal["uniform", "linear", "last"] = "uniform",
) -> tuple[Collection, Metrics]:  # fmt: skip
    """Cuts each of `samples` thoughts of a prompt at m budgets, and asks `summaries` times for an answer from there.

    With r_j the mean reward of the answers at budget j, that of the row itself where it is over by then, and P_j the prior of
    budgets, what the tokens of segment j of a thought are worth is R_j = sum of P_k r_k over k >= j, against the baseline

        j / m (sum_{i<j} 2^i r_i / sum_{i<j} 2^i) sum_{k>=j} P_k + (m - j) / m (mean of R_j over the thoughts of the prompt).

    Both stand in `extras["value_behind"]` and `["value_before"]` [N, T], for `segment_advantage`. Answers are rows of their
    own, which learn nothing of thought and text, against the mean of the answers from the same cut.

    Args:
      budgets: tokens, rising; the last one bounds thoughts.
      text: that ends a thought, which nobody learns.
      prior: all budgets alike, in proportion to them, or the last one alone.

    Source: AnytimeReasoner (BRPO), https://arxiv.org/abs/2505.13438
    """
    require(list(budgets) == sorted(set(budgets)) and budgets[0] >= 1, "budgets", budgets, "rising numbers of tokens")
    thoughts = io.sample(requests_for(*io.draw(prompts), samples=samples, limit=budgets[-1]))
    asked, cuts = _at_budgets(io, thoughts, budgets, text)
    asked = [dataclasses.replace(request, samples=summaries) for request in asked]
    parts = [thoughts, io.sample(asked)] if asked else [thoughts]
    told = scores_of(parts[-1]).reshape(-1, summaries) if asked else np.zeros((0, summaries))
    rows = len(thoughts.records)
    reward = np.tile(scores_of(thoughts)[:, None], (1, len(budgets)))
    for cut, mean in zip(cuts, told.mean(axis=1), strict=True):
        reward[cut] = mean
    groups = [*thoughts.rollouts.group, *(rows + np.repeat(np.arange(len(cuts)), summaries))]
    found = arranged(parts, [(0, row) for row in range(rows)] + [(1, row) for row in range(told.size)], groups)
    before, behind = np.zeros(found.rollouts.tokens.shape, np.float32), np.zeros(found.rollouts.tokens.shape, np.float32)
    worth, baseline = budget_values(reward, thoughts.rollouts.group, _prior(prior, budgets))
    for row in range(rows):
        first, last = _own(thoughts, row)
        edges = np.minimum([first, *(first + budget for budget in budgets[:-1]), last], last)
        for number, (start, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            before[row, start:end], behind[row, start:end] = baseline[row, number], worth[row, number]
    before[rows:], behind[rows:] = np.repeat(told.mean(axis=1), summaries)[:, None], told.reshape(-1, 1)
    metrics = {f"budget/{budget}": float(reward[:, number].mean()) for number, budget in enumerate(budgets)}
    return found.changed(extras={"value_before": before, "value_behind": behind}), metrics


def _at_budgets(
    io: Io, thoughts: Collection, budgets: tuple[int, ...], text: str
) -> tuple[list[Request], list[tuple[int, int]]]:
    """Requests for an answer behind each cut of thoughts that are not over there, and (row, number of the budget) of each."""
    asked, cuts = [], []
    for row, record in enumerate(thoughts.records):
        first, last = _own(thoughts, row)
        for number, budget in enumerate(budgets):
            over = budget >= last - first and record["finish_reason"] == finish_name(STOP)
            if over or budget > last - first:
                continue
            request = fork(thoughts, row, first + budget, limit=None)
            silent = dataclasses.replace(request.prefix, mask=np.zeros_like(request.prefix.mask))
            if (ended := with_text(silent, text, io)) is not None:
                asked.append(dataclasses.replace(request, prefix=ended))
                cuts.append((row, number))
    return asked, cuts


def _prior(name: str, budgets: tuple[int, ...]) -> np.ndarray:
    weights = {"uniform": np.ones(len(budgets)), "linear": np.array(budgets, float), "last": np.eye(len(budgets))[-1]}[name]
    return weights / weights.sum()


def budget_values(reward: np.ndarray, group: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What segments are worth and their baselines, [N, m] each, of rewards [N, m] at the budgets; see `budgeted`."""
    count = reward.shape[1]
    worth = np.cumsum((reward * prior)[:, ::-1], axis=1)[:, ::-1]
    left = np.cumsum(prior[::-1])[::-1]
    powers = 2.0 ** np.arange(count)
    earlier = np.zeros_like(reward)
    for j in range(1, count):
        earlier[:, j] = (reward[:, :j] * powers[:j]).sum(axis=1) / powers[:j].sum() * left[j]
    mates = np.stack([worth[group == own].mean(axis=0) for own in group])
    j = np.arange(count)
    return worth, j / count * earlier + (count - j) / count * mates
