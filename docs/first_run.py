"""Draws docs/first_run.svg, of the run of docs/first_run.md: `python docs/first_run.py runs/first` (extra `report`)."""

import json
import math
import pathlib
import sys

import quickstart

from jaxrl_llm.training.metrics import read_jsonl

HELD_OUT, ACCURACY = 256, "evaluation/accuracy"
SERIES = {"reward": "reward at temperature 0.7", ACCURACY: "held-out accuracy, greedy"}


def points(records: list[dict], before: float) -> list[dict]:
    """The curves of one run; a band is the 95% interval over the held-out sums.

    Args:
      records: of `metrics.jsonl`.
      before: held-out accuracy in front of the first step.
    """
    error = 1.96 * math.sqrt(before * (1 - before) / (HELD_OUT - 1))
    told = []
    for measure, name in SERIES.items():
        for record in [{"step": 0, ACCURACY: before, f"{ACCURACY}_error": error}, *records]:
            if measure in record:
                value, half = record[measure], record.get(f"{measure}_error", 0.0)
                told.append({"step": record["step"], "series": name, "value": value, "low": value - half, "high": value + half})
    return told


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    figure = quickstart.svg(points(read_jsonl(folder / "metrics.jsonl"), summary["accuracy_before"]))
    (pathlib.Path(__file__).parent / "first_run.svg").write_text(figure, encoding="utf-8")
