"""Which prompts are drawn and how often each is sampled, by what earlier steps have shown of them: a table in the state."""

import dataclasses
from typing import Any, Literal

import numpy as np

from jaxrl_llm.compose import Composable, composable, require
from jaxrl_llm.rollouts.collect import Collection
from jaxrl_llm.rollouts.hints import scores_of
from jaxrl_llm.rollouts.io import Io
from jaxrl_llm.rollouts.requests import requests_for
from jaxrl_llm.rollouts.strategy import Metrics, stateful_strategy, stateless_strategy

Table = dict[str, np.ndarray]
LARGEST = 65_536  # prompts of a table
TINY = 1e-9  # weight of prompts that are only drawn when no others are left


def empty_table(*, examples: int = LARGEST, **options) -> Table:
    """Of each prompt the rows so far, and means over visits of the share of right rows, the variance and |r - mean r|."""
    require(examples >= 1, "examples", examples, "a number of prompts, at least 1")
    means = {name: np.zeros(examples, np.float32) for name in ("success", "variance", "spread")}
    return {"visits": np.zeros(examples, np.int32)} | means


# Rules of what is drawn: (table, io) -> weights [examples], or None for the order of the epoch.


@composable
def in_turn(table: Table, io: Io):
    """The order of the epoch."""
    return


@composable
def uncertainty(table: Table, io: Io, *, epsilon: float = 0.05):
    """sqrt(v (1 - v)) + `epsilon`, v the share of right rows, 1/2 where it is unknown.

    Source: SPO, https://arxiv.org/abs/2509.13232
    """
    success = np.where(table["visits"] > 0, table["success"], 0.5)
    return np.sqrt(np.clip(success * (1.0 - success), 0.0, None)) + epsilon


@composable
def variance_mix(table: Table, io: Io, *, share: float = 0.5):
    """`share` of the mass in proportion to v (1 - v), the rest even; prompts that were never seen count as v = 1/2.

    Source: MMR1, https://arxiv.org/abs/2509.21268
    """
    success = np.where(table["visits"] > 0, table["success"], 0.5)
    promise = success * (1.0 - success)
    total = promise.sum()
    return (1.0 - share) / len(promise) + (share * promise / total if total > 0 else share / len(promise))


def _by_domain(table: Table, io: Io, column: str, measure: str):
    """Domain [P] of each prompt, by its number, and of each domain the rows so far and the mean of a measure over them."""
    _, number = np.unique(io.column(column, str), return_inverse=True)
    visits = np.bincount(number, table["visits"])
    return number, visits, np.bincount(number, table[measure] * table["visits"]) / np.maximum(visits, 1)


@composable
def domain_bandit(table: Table, io: Io, *, column: str = "domain", temperature: float = 0.1):
    """Softmax over the domains of their mean |r - mean r| and a bonus for those that were seen little, even within a domain.

    The bonus is sqrt(2 ln(1 + n) / (1 + n_d)), n_d rows of the domain out of n.

    Source: DUMP, https://arxiv.org/abs/2504.09710, whose first term is the mean |advantage| of the last 300 rows
    """
    number, visits, spread = _by_domain(table, io, column, "spread")
    value = (spread + np.sqrt(2.0 * np.log(1.0 + visits.sum()) / (1.0 + visits))) / temperature
    share = np.exp(value - value.max())
    return (share / share.sum() / np.bincount(number))[number]


@composable
def worst_domain(table: Table, io: Io, *, column: str = "domain"):
    """The domain with the lowest share of right rows alone, one that was never seen first.

    Source: IWOCS, which decides against the worst of the models met so far, https://arxiv.org/abs/2410.06212
    """
    number, visits, success = _by_domain(table, io, column, "success")
    return np.where(number == np.where(visits > 0, success, -1.0).argmin(), 1.0, TINY)


@composable
def by_difficulty(table: Table, io: Io, *, stages: tuple[tuple[int, float], ...], column: str = "difficulty"):
    """Prompts whose number in a column is at most that of the stage of the step, `(first step, most)`.

    Source: CRAFT-GUI, https://arxiv.org/abs/2508.11360
    """
    begun = [most for first, most in sorted(stages) if first <= io.step]
    require(bool(begun), "stages", stages, "pairs of a first step and a difficulty, one of them for step 0")
    return np.where(np.array(io.column(column, float)) <= begun[-1], 1.0, TINY)


@composable
def unsolved(table: Table, io: Io, *, from_visits: int = 1, least: float = 0.0, most: float = 1.0):
    """Prompts whose share of right rows lies between `least` and `most`, both excluded but at 0, once they were seen.

    Source: PVPO drops prompts that are always solved, https://arxiv.org/abs/2508.21104
    """
    success = table["success"]
    open_ = (success < most) & ((success > least) | (least == 0.0))
    return np.where((table["visits"] < from_visits) | open_, 1.0, TINY)


# Rules of how often each drawn prompt is sampled: (success [P], known [P], total) -> counts [P] that sum to the total.


@composable
def evenly(success, known, total: int):
    """All as often."""
    return np.full(len(success), total // len(success)) + (np.arange(len(success)) < total % len(success))


@composable
def knapsack(success, known, total: int, *, least: int = 2, most: int = 128):
    """Greedily where one more sample adds most to [1 - p^N - (1 - p)^N] p (1 - p)^2, between `least` and `most` each.

    Prompts whose share p is 0, 1 or unknown have nothing to add; what is left over goes to those that were never solved.

    Source: Knapsack RL, https://arxiv.org/abs/2509.25849
    """
    count = len(success)
    require(least * count <= total, "least", least, f"at most {total // count}, the samples that there are for each")
    require(most * count >= total, "most", most, f"at least {-(-total // count)}, the samples that there are for each")
    counts, chance = np.full(count, least), np.where(known, success, 0.0)

    def value(n):
        return (1.0 - chance**n - (1.0 - chance) ** n) * chance * (1.0 - chance) ** 2

    while counts.sum() < total:
        gain = np.where(counts < most, value(counts + 1) - value(counts), -1.0)
        best = int(gain.argmax())
        if gain[best] <= 0.0:
            hard = np.flatnonzero((chance == 0.0) & (counts < most))
            best = int(hard[counts[hard].argmin()]) if len(hard) else int(counts.argmin())
        counts[best] += 1
    return counts


@composable
def by_acceptance(success, known, total: int, *, alpha: float = 1e-3, beta: float = 2.0):
    """In proportion to 1 / sqrt(p + alpha / p^(beta - 1)), at least one each; the share p is 1/2 where it is unknown.

    Source: GVM-RAFT, https://arxiv.org/abs/2505.02391, which also weighs by gradient norms of a pilot sample
    """
    chance = np.maximum(np.where(known, success, 0.5), 1e-6)
    weight = 1.0 / np.sqrt(chance + alpha / chance ** (beta - 1.0))
    exact = 1 + (total - len(success)) * weight / weight.sum()
    counts = np.floor(exact).astype(int)
    rest = np.argsort(-(exact - counts), kind="stable")[: total - counts.sum()]
    counts[rest] += 1
    return counts


IN_TURN, EVENLY = in_turn(), evenly()


@stateful_strategy(empty_table)
def chosen(
    io: Io, table: Table, prompts: int, *, samples: int = 8, examples: int = LARGEST, draws: Composable = IN_TURN,
    shares: Composable = EVENLY, momentum: float = 0.0, threshold: float = 0.0,
) -> tuple[Collection, Table, Metrics]:  # fmt: skip
    """Prompts drawn by a rule from a table of earlier steps, with `samples` completions each on average, shared out by another.

    Args:
      samples: of each prompt on average; groups may differ in size.
      examples: prompts that the table has room for; those with a higher number have no memory.
      draws: rule `(table, io) -> weights`, by which prompts are drawn; the table that it sees has the size of the source.
      shares: rule `(success, known, total) -> counts`.
      momentum: of the means of a prompt, what stays of the earlier visits; 0 keeps the last visit alone.
    """
    size = len(io.examples)
    known = {name: np.pad(values[:size], (0, max(0, size - len(values)))) for name, values in table.items()}
    drawn, numbers = io.draw(prompts, draws(known, io))
    numbers = np.asarray(numbers)
    counts = shares(known["success"][numbers], known["visits"][numbers] > 0, prompts * samples)
    asked = [dataclasses.replace(r, samples=int(n)) for r, n in zip(requests_for(drawn, numbers), counts, strict=True) if n > 0]
    collection = io.sample(asked)
    metrics = {"chosen/success": float(known["success"][numbers].mean()), "chosen/largest": float(counts.max())}
    return collection, seen(table, collection, momentum, threshold), metrics


def seen(table: Table, collection: Collection, momentum: float = 0.0, threshold: float = 0.0) -> Table:
    """The table after the groups of a collection."""
    table, score = {name: np.array(values) for name, values in table.items()}, scores_of(collection)
    for number in np.unique(collection.rollouts.prompt_id[collection.rollouts.prompt_id < len(table["visits"])]):
        own = score[collection.rollouts.prompt_id == number]
        kept = momentum if table["visits"][number] else 0.0
        found = {"success": (own > threshold).mean(), "variance": own.var(), "spread": np.abs(own - own.mean()).mean()}
        for name, value in found.items():
            table[name][number] = kept * table[name][number] + (1.0 - kept) * value
        table["visits"][number] += len(own)
    return table


@stateless_strategy
def best_and_worst_of(
    io: Io, prompts: int, *, samples: int = 8, keep: int = 1, by: Literal["reward", "acceptance"] = "reward", beta: float = 0.5
) -> tuple[Collection, dict[str, Any]]:
    """Of `samples` completions of each prompt those that are kept: the `keep` best and worst, or accepted ones.

    By "acceptance" 2 `keep` rows stay: in passes over the candidates, each is accepted with the probability exp((r - max r) /
    `beta`), the largest reward being that of those that are left.

    Source: RSO, https://arxiv.org/abs/2309.06657 ("acceptance"), with 64 candidates for 8 rows and beta 0.5
    """
    require(2 * keep <= samples, "keep", keep, f"at most half of samples = {samples}")
    collection = io.sample(requests_for(*io.draw(prompts), samples=samples))
    score = scores_of(collection).reshape(prompts, samples)
    rows = []
    for group, own in enumerate(score):
        order = np.argsort(-own, kind="stable")
        ends = [*order[:keep], *order[samples - keep :]]
        places = ends if by == "reward" else _accepted(io, own, 2 * keep, beta, group)
        rows += [group * samples + int(place) for place in places]
    return collection.take(np.array(rows)), {}


def _accepted(io: Io, reward: np.ndarray, count: int, beta: float, salt: int) -> np.ndarray:
    left, accepted, passes = list(range(len(reward))), [], 0
    while len(accepted) < count:
        noise = io.uniform(len(reward), salt=16 + salt * 64 + passes % 64)
        chance = np.exp((reward[left] - reward[left].max()) / beta)
        taken = [place for place, own in zip(left, chance, strict=True) if noise[place] < own]
        accepted, left, passes = accepted + taken, [place for place in left if place not in taken], passes + 1
    return np.array(accepted[:count])
