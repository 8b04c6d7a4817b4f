"""docs/papers.md: what runs here of 291 papers, from docs/papers.tsv; written by docs/generate.py."""

import collections
import csv
import pathlib
import re

from jaxrl_llm import methods

DATA = pathlib.Path(__file__).parent / "papers.tsv"
COLUMNS = ("id", "wave", "name", "paper", "status", "mechanism", "here", "run", "missing")
WORKS = ("method", "composition", "configuration")
# What a row of each status is.
STATUSES = {
    "method": "a named method of [the catalogue](methods.md) runs it",
    "composition": "pieces that are there run it: a composition of a few lines, or a reward or fact of your own",
    "configuration": "keys of the configuration alone run it",
    "partly": "a part of it runs, and the last column says what is missing",
    "not carried": "nothing of it that would be worth a run",
}
WAVES = {
    "A": "losses, advantages and rewards of language models",
    "B": "what language models sample, in which order, and how runs follow each other",
    "C": "agents, judges, and several models at once",
    "D": "control, vision, diffusion: what of it means something for tokens",
}
# What carries a row that works or works partly...
CARRIERS = {
    "advantages": "estimators: rewards to advantages and weights",
    "objective": "terms of an objective: ratios, trust regions, factors, masks",
    "preference loss": "terms on pairs",
    "imitation": "terms on given texts and on what a teacher says",
    "reward": "reward functions, those of `whole_groups` among them",
    "fact": "`config.rewards.facts`: what a method is told of a row",
    "judges": "networks that are asked: judges on the device, likelihoods of answers, hidden states",
    "sampling": "strategies: what is sampled and what is kept",
    "view": "prompts that somebody else reads: hints, demonstrations, templates",
    "tree": "forks: rows that go on from a beginning",
    "memory": "stores of rows and tables of prompts from step to step",
    "episodes": "`config.environment`: turns with tools and states, games of several roles, agents",
    "modules": "`config.modules`: networks that learn beside the policy",
    "critic": "heads, targets and losses of a critic",
    "optimizer": "layers over the optimizer, and updates without a gradient",
    "rounds": "`config.rounds`: runs that feed each other",
    "staleness": "`config.rl.staleness`: samples of older parameters",
    "layout": "how rows, slots and parameters are laid out",
    "inside the network": "networks that are combined, what single layers say or are told",
    "evaluation": "measures of a policy",
}
# ...and what a row that is not carried would need first; "no port" are those that mean nothing for tokens.
WANTED = {
    "environments": "an environment, or a strategy over turns, that is not there",
    "several modules": "several models that train in one loop, in ways that modules do not",
    "changing judges": "judges whose questions change in the training",
    "masked diffusion": "masked-diffusion language models (to come)",
    "bilevel updates": "gradients through an update",
    "latents": "continuous inputs of the policy",
    "other networks": "heads and layers of other kinds",
    "guided decoding": "logits of two passes, mixed in sampling",
    "populations": "many runs that look at each other",
    "texts": "policies that are prompts: no parameter changes",
    "curvature": "second derivatives",
    "search": "tree search with values",
    "no port": "does not port to token policies",
}

HEAD = """# Papers

Of {count} papers {works} run here: {method} as a method of [the catalogue](methods.md), {composition} as a composition of
pieces, {configuration} by configuration alone. {partly} run partly, {not_carried} are not carried. Not every paper that runs
does so to its last detail: the last column has what its readers would miss, and the section of a method its defaults and what
of its formula could not be confirmed.

"""

LINES = """
## How to read the lines

A line is code of a file under `configs/`, behind `config = default_config()`; it says what differs. Phases get their lengths
beside it: `config.preference.steps` or `config.sft.steps` where it names a method of that phase, with pairs as the source
(`config.task.source`), and `config.rl.steps = 0` where it names nothing of the RL phase. Values at the end of a line, without a
key, are strategy, estimator, objective and perhaps critic of a method of your own, as a function under
`@methods.method(paper, url)` returns them, for `config.method.name`, or for `config.preference.method` where the strategy is
None; their names are those of `jaxrl_llm.rollouts`, `estimators`, `objectives` and `methods`. In such a composition a store,
which has `capacity`, is given the `row_width` of the run, prompt and answer together.
`my_rewards:...` and `my_facts:...` are functions of your own, see [tasks](tasks.md).

## All papers

| id | wave | paper | status | by | what it is here | line | what is missing, or otherwise here |
|---|---|---|---|---|---|---|---|
"""


def read() -> list[dict[str, str]]:
    """The rows of docs/papers.tsv, in its order."""
    with DATA.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def page() -> str:
    """The summary, then one table of all rows."""
    rows = read()
    counts = collections.Counter(row["status"] for row in rows)
    numbers = {status.replace(" ", "_"): counts[status] for status in STATUSES}
    head = HEAD.format(count=len(rows), works=sum(counts[status] for status in WORKS), **numbers)
    return head + _summary(rows) + _mechanisms(rows) + LINES + "".join(map(_line, rows))


def _table(*rows: tuple) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def _summary(rows) -> str:
    found = collections.Counter((row["status"], row["wave"]) for row in rows)
    table = [
        (f"`{status}`", *(found[status, wave] for wave in WAVES), sum(found[status, wave] for wave in WAVES), text)
        for status, text in STATUSES.items()
    ]
    works = [sum(found[status, wave] for status in WORKS) for wave in WAVES]
    total = [sum(found[status, wave] for status in STATUSES) for wave in WAVES]
    table += [("work", *works, sum(works), "the first three"), ("all", *total, sum(total), "")]
    waves = "".join(f"* {wave}: {text}.\n" for wave, text in WAVES.items())
    return "## In numbers\n\n" + _table(("status", *WAVES, "all", "what it says"), *table) + "\nThe waves:\n\n" + waves


def _mechanisms(rows) -> str:
    found = collections.Counter((row["mechanism"], row["status"] in WORKS, row["status"] == "partly") for row in rows)
    carried = [(name, found[name, True, False], found[name, False, True], text) for name, text in CARRIERS.items()]
    absent = collections.Counter(row["mechanism"] for row in rows if row["status"] == "not carried")
    wanted = [(name, absent[name], {**CARRIERS, **WANTED}[name]) for name in sorted(absent, key=lambda name: -absent[name])]
    return (
        "\n## What carries them\n\n"
        + _table(("by", "work", "partly", "what it is"), *carried)
        + "\nWhat those would need first that are not carried:\n\n"
        + _table(("wanted", "rows", "what it is"), *wanted)
    )


def _line(row: dict[str, str]) -> str:
    known = set(methods.names())
    here = re.sub(r"`(\w+)`", lambda m: f"[{m[0]}](methods.md#{m[1]})" if m[1] in known else m[0], row["here"])
    name, paper = row["name"], row["paper"]
    paper = paper if paper.startswith(name.split(" (")[0]) else f"{name}: {paper}"
    run = f"`{row['run']}`" if row["run"] else ""
    cells = (row["id"], row["wave"], paper, row["status"], row["mechanism"], here, run, row["missing"])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
