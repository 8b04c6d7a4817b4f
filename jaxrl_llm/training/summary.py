"""What a run has come to: `summary.json`, and the same in words, with what to do next."""

import json
import pathlib
from typing import Any

from jaxrl_llm.training import metrics
from jaxrl_llm.training.phases import HELD_OUT, Phase
from jaxrl_llm.training.run import Run
from jaxrl_llm.training.state import Progress

_SHARES = ("reward_missing", "truncated", "skipped")
_LONGEST = 160  # characters of a text that are shown


def summarise(run: Run, phase: Phase, progress: Progress, seconds: float) -> dict[str, Any]:
    """Writes the summary of a run that has ended, and gives it.

    Args:
      run: the run.
      phase: its last one.
      progress: at its end.
      seconds: that it took.
    """
    summary = {
        "measure": phase.measure.removeprefix("evaluation/"),
        # Without a phase behind the supervised one there is one measurement, after it.
        "accuracy_before": progress.accuracy_before,
        "accuracy_after": progress.accuracy,
        "steps": progress.step,
        "wall_seconds": seconds,
        "method": phase.method.name,
        "seed": run.config.seed,
        "workdir": str(run.store),
    }
    summary |= {"data": run.counts} | _shares(run.workdir) | _answers(run.workdir)
    metrics.write_atomically(run.workdir / "summary.json", [json.dumps(summary, indent=2) + "\n"])
    return summary


def _shares(workdir: pathlib.Path) -> dict[str, float]:
    """Means over the steps of what was missing, cut or skipped; what no step measured is left out."""
    records = metrics.read_jsonl(workdir / "metrics.jsonl")
    found = {name: [record[name] for record in records if name in record] for name in _SHARES}
    return {name: sum(values) / len(values) for name, values in found.items() if values and None not in values}


def _answers(workdir: pathlib.Path) -> dict[str, Any]:
    """What was answered to a held-out prompt before and after: the first one whose reward has changed, or the first."""
    tables = [metrics.read_jsonl(file) for file in sorted((workdir / HELD_OUT).glob("step_*.jsonl"))]
    pairs = list(zip(tables[0], tables[-1], strict=False)) if len(tables) > 1 else []
    if not pairs:
        return {}
    before, after = next((pair for pair in pairs if pair[0]["rewards"] != pair[1]["rewards"]), pairs[0])
    told = {"prompt": before["prompt"]}
    for name, record in {"before": before, "after": after}.items():
        told |= {name: record["completion"], f"reward_{name}": record["rewards"][0]}
    return {"sample": told}


def in_words(summary: dict[str, Any]) -> str:
    """The summary for who ran the program, and what to do next."""
    measure, method, folder = summary["measure"], summary["method"], _near(summary["workdir"])
    before, after = (_shown(measure, summary[f"accuracy_{name}"]) for name in ("before", "after"))
    lines = [
        f"\nHeld-out {measure.replace('_', ' ')} {before} before, {after} after {method} "
        f"({summary['steps']} steps, {summary['wall_seconds']:.0f} s)."
    ]
    if sample := summary.get("sample"):
        which = "The first held-out prompt" + " whose reward changed" * (sample["reward_before"] != sample["reward_after"])
        lines.append(f"{which}: {_short(sample['prompt'])}")
        lines += [f"  {name:6} {_short(sample[name])}  (reward {sample[f'reward_{name}']})" for name in ("before", "after")]
    dropped = {name: summary["data"][name] for name in ("dropped", "held_out_dropped") if summary["data"][name]}
    lines += [f"{name.replace('_', ' ')}: {count} examples, too long." for name, count in dropped.items()]
    shares = {name: summary[name] for name in _SHARES if summary.get(name)}
    lines += [f"{name.replace('_', ' ')}: {100 * share:.1f}% (mean over steps)." for name, share in shares.items()]
    use = f"Sample from it: jaxrl-llm sample {folder}"
    if method == "reward_model":
        use = f"Learn from it:  --config.rewards.names=\"('reward_model',)\" --config.rewards.model={folder}"
    look = f"Look at it:     pip install 'jaxrl_llm[report]' && jaxrl-llm report {folder}"
    return "\n".join([*lines, f"The run lies in {folder}; the same command resumes it.", use, look])


def _shown(measure: str, value: float | None) -> str:
    if value is None or value != value:
        return "not measured"
    return f"{value:.4g} nats a token" if measure == "loss" else f"{100 * value:.1f}%"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _near(folder: str) -> str:
    """The folder as it is named from here, where it lies below."""
    path = pathlib.Path(folder)
    return str(path.relative_to(pathlib.Path.cwd())) if path.is_relative_to(pathlib.Path.cwd()) else folder
