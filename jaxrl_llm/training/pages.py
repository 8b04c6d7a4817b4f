"""What a report shows of runs: curves with intervals, differences, completions, faults; written as one page without a network.

The page is `report.html` beside this file with data put into it. Curves are drawn by Vega-Lite, which lies in the page too.
"""

import base64
import collections
import gzip
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxrl_llm import methods, reading
from jaxrl_llm.training.config import default_config, flat_config, read_config
from jaxrl_llm.training.metrics import DEFINITIONS, TIMINGS, read_jsonl

TEMPLATE = pathlib.Path(__file__).with_name("report.html")
CURVES = (
    "evaluation/accuracy", "reward", "loss", "entropy", "reference_kl", "behavior_kl", "length/mean", "truncated",
    "uniform_groups", "gradient_norm", "logp_gap", "reward_missing", "pair_accuracy", "evaluation/pair_accuracy",
    "evaluation/loss", "episode/turns",
)  # fmt: skip
PARTS = ("sample", "reward", "annotate", "pack", "update", "idle")
MOST_COMPLETIONS = 100_000
# Two-sided 95% quantiles of Student's t by degrees of freedom, from 1 on; 1.96 beyond.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
# Of no meaning to what a run does: runs that differ in these and the seed alone are repetitions.
_APART = ("seed", "log.", "checkpoint.", "rewards.workers")


def report(folders: Sequence[str | pathlib.Path], most_completions: int = MOST_COMPLETIONS) -> str:
    """The page of some runs, HTML.

    Args:
      folders: of the runs.
      most_completions: of each run; of more, those of steps at even distances are taken, and the page says so.

    Raises ValueError: a folder is no run, or is given twice, or vl-convert is not installed.
    """
    folders = [reading.local(folder) for folder in folders]
    names = _names(folders)
    runs = [_read(folder, name, most_completions) for folder, name in zip(folders, names, strict=True)]
    groups = _grouped(runs)
    data = {
        "runs": [
            {name: run[name] for name in ("name", "summary", "composition", "changed", "faults", "warnings")} for run in runs
        ],
        "groups": groups,
        "curves": [curve for name in _shown(runs) if (curve := _curve(name, runs, groups))["rows"]],
        "seconds": _seconds(runs),
        "differences": _differences(runs),
        "comparisons": _comparisons(runs, groups),
        "left_out": sum(run["left_out"] for run in runs),
    }
    completions = _packed([run["completions"] for run in runs])
    page, parts = TEMPLATE.read_text(encoding="utf-8"), {"VEGA": _vega(), "DATA": _script(data), "COMPLETIONS": completions}
    for name, part in parts.items():
        page = page.replace(f"/*{name}*/", part, 1)
    return page


def _vega() -> str:
    try:
        import vl_convert
    except ImportError as error:
        raise ValueError("a report needs vl-convert, which has the plots: pip install 'jaxrl_llm[report]'") from error
    return vl_convert.javascript_bundle().replace("</script", "<\\/script")


def _script(data: Any) -> str:
    """JSON that no text in it can end the script with."""
    return json.dumps(data, allow_nan=False, default=str).replace("<", "\\u003c")


def _names(folders: Sequence[pathlib.Path]) -> list[str]:
    """Names of the runs that tell them apart: the last parts of their paths, as many as that takes."""
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice:
        raise ValueError(f"{twice} is given twice; name it once")
    for count in range(1, 1 + max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _read(folder: pathlib.Path, name: str, most: int) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no run: it has no config.json; give the workdir of one")
    config, records = read_config(folder / "config.json"), read_jsonl(folder / "metrics.jsonl")
    if not records:
        raise ValueError(f"{folder} has no step yet; train first")
    summary = reading.read_object(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    completions, left_out = _completions(folder / "completions", most)
    return {
        "name": name, "config": flat_config(config), "metrics": records, "timing": read_jsonl(folder / "timing.jsonl"),
        "summary": summary | {"steps": records[-1]["step"]}, "composition": _composition(config),
        "changed": _changed(config), "faults": _faults(read_jsonl(folder / "reward_failures.jsonl")),
        "warnings": read_jsonl(folder / "warnings.jsonl")[:200], "completions": completions, "left_out": left_out,
    }  # fmt: skip


def _composition(config: ConfigDict) -> str:
    name = config.method.name if config.rl.steps else config.preference.method if config.preference.steps else config.sft.method
    section = config.method if config.rl.steps else config.preference if config.preference.steps else config.sft
    try:
        return f"{name}\n{methods.get(name, **section.options.to_dict()).composition()}"
    except ValueError as error:  # a method of the user's own, whose module is not there
        return f"{name}\n({error})"


def _changed(config: ConfigDict) -> list[tuple[str, str]]:
    """Keys that are not as the defaults have them."""
    usual = flat_config(default_config())
    return [(name, repr(value)) for name, value in sorted(flat_config(config).items()) if value != usual.get(name)]


def _differences(runs: Sequence[dict]) -> list[dict[str, Any]]:
    """Keys in which the runs differ, with what each has."""
    names = sorted({name for run in runs for name in run["config"]})
    values = {name: [repr(run["config"].get(name)) for run in runs] for name in names}
    return [{"key": name, "values": own} for name, own in values.items() if len(set(own)) > 1]


def _grouped(runs: Sequence[dict]) -> list[dict[str, Any]]:
    """Runs that repeat each other with other seeds, with a name that tells the groups apart."""
    found: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        own = {name: value for name, value in run["config"].items() if not name.startswith(_APART)}
        found.setdefault(json.dumps(own, sort_keys=True, default=str), []).append(number)
    keys = [item["key"] for item in _differences(runs) if not item["key"].startswith(_APART)]
    names = []
    for numbers in found.values():
        own = ", ".join(f"{key.rpartition('.')[2]}={runs[numbers[0]]['config'].get(key)}" for key in keys[:3])
        names.append(own if len(numbers) > 1 and 0 < len(own) < 60 else runs[numbers[0]]["name"])
    names = [
        name if names.count(name) == 1 else runs[numbers[0]]["name"]
        for name, numbers in zip(names, found.values(), strict=True)
    ]
    return [{"name": name, "runs": numbers} for name, numbers in zip(names, found.values(), strict=True)]


def _shown(runs: Sequence[dict]) -> list[str]:
    """Measures that have a curve: the usual ones, then rewards by name, then what else is measured."""
    known = {name for run in runs for record in run["metrics"] for name, value in record.items() if isinstance(value, float)}
    rewards = sorted(name for name in known if name.startswith("reward/"))
    first = [name for name in (*CURVES, *rewards) if name in known]
    return [*first, *sorted(name for name in known - set(first) if not name.endswith("_error"))]


def _curve(name: str, runs: Sequence[dict], groups: Sequence[dict]) -> dict[str, Any]:
    """The points of a measure: of repetitions mean and 95% interval, of one run what it measured, with its own interval."""
    rows = []
    for group in groups:
        points: dict[int, list[dict]] = collections.defaultdict(list)
        for number in group["runs"]:
            for record in runs[number]["metrics"]:
                if isinstance(record.get(name), float | int):
                    points[record["step"]].append(record)
        for step, records in sorted(points.items()):
            values = [float(record[name]) for record in records]
            half = interval(values) if len(values) > 1 else records[0].get(f"{name}_error")
            mean = sum(values) / len(values)
            row = {"step": step, "group": group["name"], "value": mean, "runs": len(values)}
            rows.append(row if half is None else row | {"low": mean - half, "high": mean + half})
    return {"name": name, "usual": name in CURVES, "rows": rows, "meaning": _meaning(name)}


def _meaning(name: str) -> str:
    plain = DEFINITIONS.get(name) or DEFINITIONS.get(f"{name.partition('/')[0]}/*", "")
    return plain.replace("`", "")


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95% interval of a mean, by Student's t; 0 for one value."""
    count = len(values)
    if count < 2:
        return 0.0
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return (_T[count - 2] if count - 2 < len(_T) else 1.96) * deviation / math.sqrt(count)


def _comparisons(runs: Sequence[dict], groups: Sequence[dict]) -> list[dict[str, Any]]:
    """The last held-out measure of each group, and its difference to the first group over seeds that both have."""
    measures = [run["summary"].get("measure", "accuracy") for run in runs]
    finals = [_last(run["metrics"], f"evaluation/{own}") for run, own in zip(runs, measures, strict=True)]
    seeds = [run["config"].get("seed") for run in runs]
    by_seed = [{seeds[n]: finals[n] for n in group["runs"] if finals[n] is not None} for group in groups]
    found = []
    for group, own in zip(groups, by_seed, strict=True):
        values, pairs = list(own.values()), [own[seed] - by_seed[0][seed] for seed in own if seed in by_seed[0]]
        told = {"group": group["name"], "measure": measures[group["runs"][0]], "runs": len(group["runs"])}
        told |= {"mean": sum(values) / len(values), "half": interval(values) if len(values) > 1 else None} if values else {}
        paired = group is not groups[0] and len(pairs) > 0
        told |= {"difference": sum(pairs) / len(pairs), "pairs": len(pairs)} if paired else {}
        found.append(told | ({"difference_half": interval(pairs)} if paired and len(pairs) > 1 else {}))
    return found


def _last(records: Iterable[dict], name: str) -> float | None:
    values = [record[name] for record in records if isinstance(record.get(name), float)]
    return values[-1] if values else None


def _seconds(runs: Sequence[dict]) -> dict[str, Any]:
    """Where the time of each step went, at most 200 steps of a run."""
    rows = []
    for run in runs:
        every = max(len(run["timing"]) // 200, 1)
        for record in run["timing"][::every]:
            own = {name: record[name] for name in PARTS if isinstance(record.get(name), float | int)}
            rows += [
                {"run": run["name"], "step": record["step"], "part": name, "seconds": value} for name, value in own.items()
            ]
    return {"rows": rows, "meaning": {name: TIMINGS[name] for name in PARTS}}


def _faults(records: Sequence[dict]) -> list[dict[str, Any]]:
    """Failures of rewards and environments, counted by what they say."""
    counted = collections.Counter((record.get("name"), str(record.get("reason"))[:300]) for record in records)
    return [{"name": name, "reason": reason, "count": count} for (name, reason), count in counted.most_common(50)]


def _completions(folder: pathlib.Path, most: int) -> tuple[list[dict], int]:
    """Columns of what was sampled, of steps at even distances where there is more than `most`, and how much is left out."""
    files = sorted(folder.glob("step_*.jsonl"))
    if not files:
        return [], 0
    size = len(read_jsonl(files[0])) or 1
    every = -(-size * len(files) // most)
    kept = files[::-1][::every][::-1]  # the last step is among them
    found = [{"step": int(file.stem.removeprefix("step_")), "rows": list(map(_row, read_jsonl(file)))} for file in kept]
    return found, (len(files) - len(kept)) * size


def _row(record: Mapping[str, Any]) -> list:
    """Prompt, completion, total reward, tokens, how it ended, and what else there is to say, as the page takes them apart."""
    rewards = [value for value in record.get("rewards") or [] if value is not None]
    more = {
        name: value
        for name, value in record.items()
        if name not in ("prompt", "completion", "prompt_id", "length", "finish_reason")
    }
    total = round(sum(rewards), 6) if rewards else None
    return [record["prompt"], record["completion"], total, record["length"], record["finish_reason"], record["prompt_id"], more]


def _packed(completions: Any) -> str:
    return base64.b64encode(gzip.compress(json.dumps(completions, default=str).encode(), 6)).decode()
