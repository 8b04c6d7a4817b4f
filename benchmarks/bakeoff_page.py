"""The page of the bake-off: paired differences to GRPO with intervals over the seeds, as a table and a heat map."""

import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import regimes
from paired import LEVEL, SEEDS, Cell, interval

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
BASE = "grpo"


def worth(row: dict) -> float:
    """What decides: the mean of the regime's measure over the evaluations behind the start, so that speed counts too."""
    return float(np.mean(row["curve"]))


def paired(results: Iterable[dict], regime: str, method: str) -> list[float]:
    """Differences method - GRPO of the seeds that both have finished in the regime, in the order of the seeds."""
    of = {(row["method"], row["seed"]): worth(row) for row in results if row["regime"] == regime and "curve" in row}
    seeds = sorted(seed for name, seed in of if name == method and (BASE, seed) in of)
    return [of[method, seed] - of[BASE, seed] for seed in seeds]


def cells(results: list[dict], names: Iterable[str]) -> dict[tuple[str, str], Cell]:
    """All cells with a seed or more, by method and regime; those of methods alone that have a result."""
    found = {
        (name, regime): interval(paired(results, regime, name)) for name in names if name != BASE for regime in regimes.REGIMES
    }
    return {key: cell for key, cell in found.items() if cell.seeds}


HEAD = """# Bake-off

{methods} methods, GRPO among them, in six small regimes that are made to tell methods apart. Each is compared with GRPO under
the same starting policy, the same prompts in the same order and the same held-out prompts. A prompt is a row of digits, and its
working their running sums modulo ten; a policy of two layers that imitated careless workings learns from a verifier of the last
digit. Each step samples {samples} completions, eight a prompt (two for methods of pairs, whose prompts are therefore others),
and makes four updates (two passes in two halves), but in `off_policy` one. AdamW, no penalty for leaving the start, no further
rounds of sampling. Methods have their defaults otherwise; the learning rates were chosen so that GRPO learns within the steps,
which favours GRPO if anybody. Methods that branch, replay or sample greedily besides have more or fewer tokens than others; the
lines tell.

What decides is the mean of the measure over six evaluations, the last behind the last step, on held-out prompts at temperature
1: it counts speed and end alike. GRPO's figures are means over its seeds with the lowest and the highest; entropy and length
are those of the samples of the last quarter of the steps.

| regime | what is hard | steps | measure | start | GRPO, mean | GRPO, last | GRPO, entropy (nats) | GRPO, length (tokens) |
|---|---|---|---|---|---|---|---|---|
"""

TEXT = """
## Differences to GRPO

![Mean paired difference to GRPO by regime and method](bakeoff.png)

Mean over the seeds of the paired differences, with half the width of Student's t interval at 95% over the seeds (two degrees of
freedom for three seeds, hence wide; a bootstrap over three seeds has ten distinct samples and would be too narrow). **Bold**:
the interval leaves zero out. *In brackets*: fewer than three seeds, so nothing is concluded. A dash: not run.

"""

CONCLUDED = """
## What can be concluded

{complete} of {possible} cells are complete, and {found} of these are distinguishable from zero, where about {chance:.1f} would
be if all methods were GRPO: intervals are not corrected for their number. What the seeds vary is the order of prompts, the
samples and the flips; the starting policy of a regime is one, so intervals say nothing about other starts. A cell that is not
distinguishable does not say that two methods are alike, only that three seeds do not tell. Nothing here speaks of large models,
long texts or tuned methods: the policy has two layers, and methods whose defaults are meant for thousands of tokens are at a
disadvantage. Raw results: [bakeoff.jsonl](bakeoff.jsonl), one line a regime, method and seed. Written by
`python benchmarks/bakeoff.py --write`.
"""


def write(results: list[dict], names: Sequence[str], refused: dict[str, str]) -> None:
    """docs/bakeoff.md, docs/bakeoff.png and docs/bakeoff.jsonl.

    Args:
      results: of `bakeoff.compete`.
      names: of the methods that can take part.
      refused: why the others cannot, by name.
    """
    found = cells(results, names)
    began = {row["method"] for row in results}
    shown = [name for name in names if any((name, regime) in found for regime in regimes.REGIMES)]
    complete = [cell for cell in found.values() if cell.complete]
    head = HEAD.format(methods=len(shown) + 1, samples=regimes.SAMPLES_PER_STEP)
    text = head + "".join(map(_regime_line, regimes.REGIMES, [results] * len(regimes.REGIMES))) + TEXT + _table(found, shown)
    text += CONCLUDED.format(
        complete=len(complete),
        possible=(len(names) - 1) * len(regimes.REGIMES),
        found=sum(cell.distinguishable for cell in complete),
        chance=(1 - LEVEL) * len(complete),
    )
    failed = [row for row in results if "failed" in row]
    text += "\n## Who did not take part\n\n" + "".join(
        f"* {row['method']} in {row['regime']}, seed {row['seed']}, failed: {row['failed']}\n" for row in failed
    )
    waiting = [name for name in names if name not in began]
    text += f"* Not run yet ({len(waiting)}): {', '.join(waiting) or 'none'}.\n" + _reasons(refused)
    (DOCS / "bakeoff.md").write_text(text)
    (DOCS / "bakeoff.jsonl").write_text("".join(json.dumps(row) + "\n" for row in results))
    draw(found, shown, DOCS / "bakeoff.png")


def _regime_line(name: str, results: list[dict]) -> str:
    rows = [row for row in results if (row["regime"], row["method"]) == (name, BASE) and "curve" in row]
    regime = regimes.REGIMES[name]
    about = f"| {name} | {regime.about} | {regime.steps} | {regime.measure.removeprefix('evaluation/')} |"
    if not rows:
        return f"{about} not run | | | | |\n"
    ends = [row["curve"][-1] for row in rows]
    means = [np.mean([row[key] for row in rows]) for key in ("before", "entropy", "length")]
    worths = f"{_spread(list(map(worth, rows)))} | {_spread(ends)}"
    return f"{about} {means[0]:.3f} right | {worths} | {means[1]:.2f} | {means[2]:.1f} |\n"


def _spread(values: Sequence[float]) -> str:
    seeds = f"{len(values)} of {SEEDS} seeds"
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}; {seeds})"


def _table(found: dict[tuple[str, str], Cell], shown: Sequence[str]) -> str:
    lines = [f"| method | {' | '.join(regimes.REGIMES)} |", "|---" * (len(regimes.REGIMES) + 1) + "|"]
    for name in shown:
        lines.append(f"| {name} | " + " | ".join(_told(found.get((name, regime))) for regime in regimes.REGIMES) + " |")
    return "\n".join(lines) + "\n"


def _told(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    half = "" if np.isnan(cell.half) else f" ± {cell.half:.3f}"
    if not cell.complete:
        return f"*({cell.difference:+.3f}{half}, {cell.seeds} of {SEEDS} seeds)*"
    return f"**{cell.difference:+.3f}{half}**" if cell.distinguishable else f"{cell.difference:+.3f}{half}"


def _reasons(refused: dict[str, str]) -> str:
    """The methods that cannot take part, those of one reason together."""
    groups: dict[str, list[str]] = {}
    for name, reason in refused.items():
        groups.setdefault(reason.removeprefix(f"{name}: ").replace(repr(name), "it"), []).append(name)
    lines = [f"* {', '.join(of)}: {reason}\n" for reason, of in sorted(groups.items(), key=lambda item: -len(item[1]))]
    return "".join(lines)


def draw(found: dict[tuple[str, str], Cell], shown: Sequence[str], path: pathlib.Path) -> None:
    """The heat map: colour for the difference, bold where it is distinguishable, hatched where seeds are missing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(regimes.REGIMES)
    largest = max((abs(cell.difference) for cell in found.values()), default=0.1)
    figure, axes = pyplot.subplots(figsize=(9, 0.3 * len(shown) + 1.4), layout="constrained")
    values = np.array([[found[key].difference if (key := (name, of)) in found else np.nan for of in names] for name in shown])
    image = axes.imshow(values.reshape(len(shown), len(names)), cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
    axes.set_facecolor("lightgray")  # where a cell is missing
    for (name, of), cell in found.items():
        place = (names.index(of), shown.index(name))
        half = "" if np.isnan(cell.half) else f" ±{cell.half:.2f}"
        colour = "white" if abs(cell.difference) > 0.6 * largest else "black"
        weight = "bold" if cell.distinguishable else "normal"
        axes.text(*place, f"{cell.difference:+.2f}{half}", ha="center", va="center", fontsize=7, color=colour, weight=weight)
        if not cell.complete:
            corner = (place[0] - 0.5, place[1] - 0.5)
            axes.add_patch(pyplot.Rectangle(corner, 1, 1, fill=False, hatch="///", edgecolor="gray", linewidth=0))
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(shown)), shown, fontsize=8)
    axes.set_title("mean paired difference to GRPO; bold: not 0; hatched: seeds missing; gray: not run", fontsize=8)
    figure.colorbar(image, shrink=0.8)
    figure.savefig(path, dpi=110)
