"""Runs a benchmark on this tree and on an earlier commit by turns, and prints both medians and their ratio.

python benchmarks/compare.py REV [--rounds=3] [-- FLAGS of benchmarks/workloads.py]

The commit is checked out into a folder of its own, where its own `benchmarks/workloads.py` runs, so that a change of interfaces
does not matter. Turns are interleaved: what disturbs the machine disturbs both.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIGURES = ("sample", "pack", "update", "iteration")


def run(tree: pathlib.Path, arguments: list[str]) -> list[dict]:
    """Figures of one run of the workloads in a tree, one dict a case."""
    program = tree / "benchmarks" / "workloads.py"
    if not program.exists():
        raise SystemExit(f"{tree}: this commit has no benchmarks/workloads.py; choose a later one")
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, program, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{program} failed:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def medians(rounds: list[list[dict]]) -> dict[tuple[str, str], float]:
    """Median seconds over the rounds, by case and figure."""
    return {
        (figures[0]["case"], name): statistics.median(found[name]["seconds"] for found in figures)
        for figures in zip(*rounds, strict=True)
        for name in FIGURES
        if all(name in found for found in figures)
    }


def main() -> None:
    """Compares, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision")
    parser.add_argument("--rounds", type=int, default=3)
    options, arguments = parser.parse_known_args()
    arguments = [argument for argument in arguments if argument != "--"]
    with tempfile.TemporaryDirectory() as folder:
        earlier = pathlib.Path(folder) / "earlier"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", earlier, options.revision], check=True)
        try:
            rounds = [[run(tree, arguments) for tree in (earlier, ROOT)] for _ in range(options.rounds)]
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", earlier], check=True)
    before, now = (medians([turn[side] for turn in rounds]) for side in (0, 1))
    print(f"{'case':8} {'figure':8} {'before, s':>10} {'now, s':>10} {'ratio':>7}")
    for (case, name), seconds in ((key, seconds) for key, seconds in now.items() if key in before):
        print(f"{case:8} {name:8} {before[case, name]:10.3f} {seconds:10.3f} {before[case, name] / seconds:7.2f}")


if __name__ == "__main__":
    main()
