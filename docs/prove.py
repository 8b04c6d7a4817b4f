"""Writes docs/proofs.md: `python docs/prove.py`. Runs the tests of all methods, slow ones too, and counts who passes what.

It takes minutes. What is counted: whether every function of a composition has an oracle of its name, which
the suite compares with it by value and gradient; whether loss and gradient are finite and the same for any split; whether
each option changes something; and which reductions to other methods hold.
"""

import os
import pathlib
import sys

import pytest

from jaxrl_llm import methods
from jaxrl_llm.compose import Composable

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Combinators, which have tests of their own, and strategies, which compute nothing that a loss could get wrong.
STRUCTURE = {"policy", "by_source", "scaled"}
SPLITS, OPTIONS = "test_splits_do_not_matter", "test_every_option_changes_a_loss_a_gradient_or_what_is_sampled"
HEAD = """# Proofs

What is tested of each method, counted by `python docs/prove.py`, which runs the tests and writes this page.

* **oracle**: every function that the method is made of is compared, by value and gradient, with a version in NumPy float64 and
  plain loops, on random ragged inputs and on degenerate ones: the number of those functions.
* **splits**: the same loss and gradient of a tiny model, through the update, for rows of sequences at once and for a forest of
  two levels in micro-batches, some of them empty, with the rollouts in another order; the gradient is finite and moves it, and
  is 0 where no row has a reward.
* **options**: each option changes a loss, a gradient or what is sampled on one of a few batches.
* **reductions**: tests in which it becomes another method, as its paper says.

{totals}

| method | oracle | splits | options | reductions |
|---|---|---|---|---|
"""


def pytest_collection_modifyitems(config, items):
    """Keeps what is counted, also in worker processes; that every oracle agrees is the business of the suite."""
    counted = []
    for item in items:
        reduced = sorted({name for mark in item.iter_markers("reduction") for name in mark.args})
        item.user_properties.append(("reduced", reduced))
        if reduced or item.originalname in (SPLITS, OPTIONS):
            counted.append(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in counted])
    items[:] = counted


class Counter:
    """Collects the outcomes of tests by the method that they are about."""

    def __init__(self):
        self.passed, self.failed, self.reductions = {SPLITS: set(), OPTIONS: set()}, set(), {}

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.add(report.nodeid)
        if report.when != "call" or not report.passed:
            return
        test, _, parameters = report.nodeid.partition("[")
        test = test.rpartition("::")[2]
        if test in self.passed:
            self.passed[test].add(parameters.rstrip("]"))
        for name in dict(report.user_properties)["reduced"]:
            self.reductions.setdefault(name, set()).add(test)


def functions_of(method) -> set[str]:
    """Names of all functions that an estimator and an objective are made of, nested ones included."""
    found, rest = set(), [*method.estimator.parts, *method.objective.terms]
    while rest:
        part = rest.pop()
        if isinstance(part, tuple):
            rest += part
        elif isinstance(part, Composable):
            found.add(part.function.__name__)
            rest += [value for _, value in part.options]
    return found - STRUCTURE


def page(counter: Counter, oracles: set[str]) -> str:
    """The page, from what the tests did."""
    names, rows, proven = methods.names(), [], {"oracle": 0, "splits": 0, "options": 0, "reductions": 0}
    for name in names:
        functions = functions_of(methods.get(name))
        reductions = sorted(counter.reductions.get(name, ()))
        cells = {
            "oracle": f"{len(functions)}" if functions <= oracles else f"missing: {', '.join(sorted(functions - oracles))}",
            "splits": "yes" if name in counter.passed[SPLITS] else "no",
            "options": "yes" if name in counter.passed[OPTIONS] else "no",
            "reductions": ", ".join(test.removeprefix("test_").replace("_", " ") for test in reductions),
        }
        for column, cell in cells.items():
            proven[column] += bool(cell) and cell != "no" and not cell.startswith("missing")
        rows.append(f"| {name} | {' | '.join(cells.values())} |")
    shares = ", ".join(f"{column} {count}" for column, count in proven.items())
    return HEAD.format(totals=f"Of {len(names)} methods: {shares}.") + "\n".join(rows) + "\n"


def main() -> int:
    """Runs the tests and writes the page; 1 where one of them failed."""
    counter = Counter()
    tests = [str(ROOT / "tests" / name) for name in ("methods", "objectives", "estimators", "optimizers")]
    tests.append(str(ROOT / "tests" / "training" / "test_update.py"))
    # This file is a plugin of the workers too.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "docs"), os.environ.get("PYTHONPATH", "")])
    sys.path.append(str(ROOT / "tests"))
    pytest.main([*tests, "-m", "slow or not slow", "-n", "2", "-p", "prove", "--rootdir", str(ROOT)], plugins=[counter])
    import oracles

    (ROOT / "docs" / "proofs.md").write_text(page(counter, oracles.names()), encoding="utf-8")
    print(*sorted(counter.failed), sep="\n")
    return bool(counter.failed)


if __name__ == "__main__":
    sys.exit(main())
