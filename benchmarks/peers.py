"""Times sampling, updating and whole iterations here and in other libraries, by turns, on the workloads of `workloads.py`.

python benchmarks/peers.py [--peers=tunix,trl] [--cases=short,ragged,long] [--rounds=1] [--out=peers]

Prints a table, and writes `OUT.json` with all figures and `OUT.png` with the ratios. Each peer has a virtual environment of its
own under --environments, which is made where it is missing. A workload runs in a process of its own, for its peak of memory;
libraries take turns, so that what disturbs the machine disturbs all of them. Trust figures whose `others_cpu` is below 0.03.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import venv

from absl import app, flags
from workload import settings
from workloads import CASES

FLAGS = flags.FLAGS
HERE = pathlib.Path(__file__).resolve().parent
PACKAGES = {"tunix": ["google-tunix", "psutil"], "trl": ["torch", "trl", "psutil"]}
# Tunix trains prompts at a time: at these sizes a whole batch of ragged answers asks for tens of gigabytes.
MICRO_BATCH = {"ragged": 4, "long": 1}
FIGURES = ("sample", "update", "iteration")
flags.DEFINE_list("peers", list(PACKAGES), "libraries to compare with")
flags.DEFINE_integer("rounds", 1, "turns of each library on each workload", lower_bound=1)
flags.DEFINE_string("out", "peers", "where the figures go, without an ending")
flags.DEFINE_string(
    "environments", str(pathlib.Path.home() / ".cache" / "jaxrl_llm" / "peers"), "folder of the virtual environments"
)


def python_of(peer: str) -> pathlib.Path:
    """The interpreter of a peer's environment, which is made and filled where there is none."""
    place = pathlib.Path(FLAGS.environments) / peer
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES[peer]], check=True)
    return python


def peer_figures(peer: str, case: str) -> dict:
    """Figures of a peer on a workload; the reason why there are none under "error"."""
    prompts, samples, length, new, stops = CASES[case]
    size = {"prompts": prompts, "samples": samples, "length": length, "new": new, "stops": stops}
    size |= {name: settings()[name] for name in ("vocabulary", "width", "layers", "repeats")}
    # Sampling and updates alone are of answers of one length, for which all libraries do the same work.
    size |= {"micro_batch": MICRO_BATCH.get(case, 0), "parts": FIGURES if case == "short" else FIGURES[2:]}
    return _run([python_of(peer), HERE / f"peers_{peer}.py", json.dumps(size)], {})


def own_figures(case: str) -> dict:
    """The figures of `workloads.py` on one of its workloads."""
    flags_set = [f"--{name}={value}" for name, value in settings().items()]
    found = _run([sys.executable, HERE / "workloads.py", f"--cases={case}", *flags_set], {"PYTHONPATH": str(HERE.parent)})
    return {"library": "jaxrl_llm"} | {name: found[name] for name in (*FIGURES, "peak_process_gb", "error") if name in found}


def _run(command: list, environment: dict) -> dict:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), env=clean | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {
            "error": done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() else f"exit status {done.returncode}"
        }
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))


def medians(rounds: list[dict]) -> dict[str, float]:
    """Medians over the rounds of a library on a workload: seconds of each figure, and the peak of memory."""
    whole = [figures for figures in rounds if "error" not in figures]
    if not whole:
        return {}
    found = {name: statistics.median(one[name]["seconds"] for one in whole) for name in FIGURES if name in whole[0]}
    return found | {"memory": statistics.median(one["peak_process_gb"] for one in whole)}


def table(found: dict[str, dict[str, dict[str, float]]]) -> list[dict]:
    """A row for each figure of each workload: seconds (or gigabytes) of everybody, and the best peer's over ours."""
    rows = []
    for case, libraries in found.items():
        for name in (*FIGURES, "memory"):
            values = {library: figures[name] for library, figures in libraries.items() if name in figures}
            others = [value for library, value in values.items() if library != "jaxrl_llm"]
            if others and "jaxrl_llm" in values:
                rows.append({"workload": case, "figure": name, **values, "ratio": min(others) / values["jaxrl_llm"]})
    return rows


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """How many times as long, or as much memory, the best peer takes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.45 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['workload']} {row['figure']}" for row in rows]
    bars = axes.barh(names, [row["ratio"] for row in rows], color="#4477aa")
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.axvline(1.0, color="#444444", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("best peer / jaxrl_llm (seconds; gigabytes for memory)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main(_) -> None:
    """Measures, prints and writes."""
    raw: dict[str, dict[str, list[dict]]] = {case: {} for case in FLAGS.cases}
    for _ in range(FLAGS.rounds):
        for case in FLAGS.cases:
            for library in ("jaxrl_llm", *FLAGS.peers):
                figures = own_figures(case) if library == "jaxrl_llm" else peer_figures(library, case)
                raw[case].setdefault(library, []).append(figures)
                print(json.dumps({"case": case, "turn_of": library} | figures), file=sys.stderr, flush=True)
    rows = table({case: {name: medians(rounds) for name, rounds in found.items()} for case, found in raw.items()})
    libraries = ("jaxrl_llm", *FLAGS.peers)
    print(f"{'workload':9} {'figure':10}" + "".join(f"{name:>12}" for name in libraries) + f"{'ratio':>8}")
    for row in rows:
        values = "".join(f"{row[name]:12.3f}" if name in row else f"{'-':>12}" for name in libraries)
        print(f"{row['workload']:9} {row['figure']:10}{values}{row['ratio']:8.2f}")
    out = pathlib.Path(FLAGS.out)
    out.with_suffix(".json").write_text(json.dumps({"settings": settings(), "rows": rows, "raw": raw}, indent=2) + "\n")
    plot(rows, out.with_suffix(".png"))


if __name__ == "__main__":
    app.run(main)
