"""The page of the mechanisms: paired differences at equal sampled tokens, with intervals over the seeds."""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from paired import LEVEL, Cell, interval

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
START = "start"  # the base of a pair that is compared with its own beginning


class Found(NamedTuple):
    """A pair over its seeds; accuracies are means over them."""

    mean: Cell  # of the mean over the budget
    last: Cell  # of the accuracy at its end
    accuracies: tuple[float, float]  # mean over the budget, with the mechanism and without
    budget: float  # tokens that both have sampled, the mean
    tokens: tuple[float, float]  # that each has sampled in all


def at_budget(row: Mapping[str, Any], budget: float) -> tuple[float, float]:
    """Held-out accuracy of a run: its mean over the first `budget` sampled tokens, and there; linear between measurements."""
    tokens, curve = [0.0, *row["tokens"]], [row["before"], *row["curve"]]
    grid = np.array([*(place for place in tokens if place < budget), budget])
    values = np.interp(grid, tokens, curve)
    return float(np.trapezoid(values, grid) / budget), float(values[-1])


def compared(results: Iterable[dict], pair) -> Found | None:
    """The seeds that both runs of a pair have; None without any."""
    of = {(row["method"], row["seed"]): row for row in results if row["regime"] == pair.task and "curve" in row}
    both = []
    for (method, seed), row in sorted(of.items()):
        base = row | {"curve": [row["before"]] * len(row["curve"])} if pair.base == START else of.get((pair.base, seed))
        if method == pair.method and base is not None:
            both.append((row, base))
    if not both:
        return None
    budgets = [min(row["tokens"][-1], base["tokens"][-1]) for row, base in both]
    values = np.array([[at_budget(run, budget) for run in runs] for runs, budget in zip(both, budgets, strict=True)])
    differences = values[:, 0] - values[:, 1]
    totals = np.mean([[run["tokens"][-1] for run in runs] for runs in both], axis=0)
    accuracies = values[:, :, 0].mean(axis=0)
    return Found(
        *(interval(list(column)) for column in differences.T), tuple(accuracies), float(np.mean(budgets)), tuple(totals)
    )


HEAD = """# Mechanisms

Does a mechanism help where it should? Each pair is two runs of a small task that differ in one mechanism, three seeds each: of
one task all begin with the same policy of two layers, which imitated careless workings, and those of a seed see the same
prompts in the same order and are measured on the same held-out ones, at temperature 1. A prompt is a row of digits, its working
their running sums modulo ten, and a verifier sees the last digit alone, as in the [bake-off](bakeoff.md).

Pairs are compared at equal budgets of *sampled tokens*, those of values, hints and dropped rows included: a step of a mechanism
that samples more has fewer prompts, and what one of both has sampled beyond the other does not count. What decides is the mean
of held-out accuracy over the budget, by linear interpolation between five measurements behind the start; it counts speed and
end alike. The accuracy at the end of the budget stands beside it.

| task | what it is | start |
|---|---|---|
"""

RESULTS = """
## Results

Differences are with - without, paired by seed, with half the width of Student's t interval at 95% over the seeds. **Bold**: the
interval leaves zero out. *In brackets*: fewer than three seeds. Tokens are thousands: the budget, and in brackets what both
runs have sampled in all.

| mechanism | task | with | without | tokens | accuracy | difference | at the end | what can be concluded |
|---|---|---|---|---|---|---|---|---|
"""

LIMITS = """
## What cannot be concluded

Seeds vary prompts and samples, not the policy of the start. Intervals of three seeds are wide and are not corrected for their
number: of {pairs} pairs without any effect about {chance:.1f} would seem to have one. "Not told apart" says that three seeds do
not tell, not that there is no difference; the interval says how large it may be. Learning rates are those at which GRPO learns
within the steps, and no mechanism was tuned, but for what evolution perturbs, how far and how fast, which was set after one
trial on another seed. A pair differs in what its last column names besides the mechanism. Compute is not equal: a tree, a
replayed row or a critic costs the learner what no sampled token counts. Why a critic and a teacher are worse stands in their
lines; why trees are, is not known: their advantages are those of the [oracle](proofs.md), and a step has fewer prompts, whose
leaves are alike. Nothing speaks of large models or long texts. What the mechanisms did is in
[mechanisms.jsonl](mechanisms.jsonl), a line a run (`acted`: means over the steps of their [metrics](metrics.md)). Written by
`python benchmarks/mechanisms.py --write`.
"""


def write(results: list[dict], pairs: Iterable[Any], tasks: Mapping[str, Any]) -> None:
    """docs/mechanisms.md and docs/mechanisms.jsonl.

    Args:
      results: of `mechanisms.compete`.
      pairs: in the order of the page.
      tasks: by name.
    """
    pairs = list(pairs)
    text = HEAD + "".join(_task_line(name, task, results) for name, task in tasks.items()) + RESULTS
    text += "".join(_pair_line(pair, compared(results, pair)) for pair in pairs)
    shown = [pair for pair in pairs if compared(results, pair)]
    text += LIMITS.format(pairs=len(shown), chance=(1 - LEVEL) * len(shown))
    failed = [row for row in results if "failed" in row]
    text += "".join(f"\n* {row['method']} in {row['regime']}, seed {row['seed']}, failed: {row['failed']}\n" for row in failed)
    (DOCS / "mechanisms.md").write_text(text)
    (DOCS / "mechanisms.jsonl").write_text("".join(json.dumps(row) + "\n" for row in results))


def _task_line(name: str, task, results: list[dict]) -> str:
    regime, odd = task.regime, []
    if task.short:
        odd.append(f"every second prompt has {task.short} steps")
    if task.told:
        odd.append("the imitation has also shown prompts behind their right working, which is to be repeated")
    if task.unsolvable:
        odd.append(f"of {task.unsolvable:.0%} of the prompts no answer counts as right")
    if task.prompts < 1000:
        odd.append(f"{task.prompts} prompts, which come again")
    before = [row["before"] for row in results if row["regime"] == name and "before" in row]
    start = f"{np.mean(before):.3f} right" if before else "not run"
    about = "; ".join([f"{regime.chain} steps, each wrong in {regime.careless:.0%} of the demonstrations", *odd])
    return f"| {name} | {about} | {start} |\n"


def _pair_line(pair, found: Found | None) -> str:
    head = f"| {pair.mechanism} | {pair.task} | {pair.method} | {pair.base} |"
    if found is None:
        return f"{head} not run | | | | |\n"
    tokens = f"{found.budget / 1e3:.0f} ({found.tokens[0] / 1e3:.0f}, {found.tokens[1] / 1e3:.0f})"
    accuracies = f"{found.accuracies[0]:.3f}, {found.accuracies[1]:.3f}"
    return f"{head} {tokens} | {accuracies} | {told(found.mean)} | {told(found.last)} | {verdict(found.mean)}: {pair.about} |\n"


def told(cell: Cell) -> str:
    """A difference with its interval, bold where it is distinguishable, in brackets where seeds are missing."""
    half = "" if np.isnan(cell.half) else f" ± {cell.half:.3f}"
    if not cell.complete:
        return f"*({cell.difference:+.3f}{half}, {cell.seeds} seeds)*"
    return f"**{cell.difference:+.3f}{half}**" if cell.distinguishable else f"{cell.difference:+.3f}{half}"


def verdict(cell: Cell) -> str:
    """What a cell says."""
    if not cell.complete:
        return "nothing yet"
    if not cell.distinguishable:
        return f"not told apart, between {cell.difference - cell.half:+.2f} and {cell.difference + cell.half:+.2f}"
    return "better" if cell.difference > 0 else "worse"
