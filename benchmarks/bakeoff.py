"""Methods that learn from samples, in six small regimes, from one start each, with as many samples and paired prompts.

python benchmarks/bakeoff.py --out=FOLDER [--methods=grpo,rloo --regimes=long_credit --seeds=0,1,2 --budget_minutes=120]
python benchmarks/bakeoff.py --out=FOLDER --write

The regimes stand in `regimes.py`. In each a policy is made once by imitation; all methods and seeds begin with it. Methods of a
seed see the same prompts in the same order and are measured on the same held-out ones, so that a method is compared with GRPO
pair by pair. Every finished run is a line of FOLDER/results.jsonl and is never made again; one that was killed is.
`--write` makes docs/bakeoff.md, docs/bakeoff.png and docs/bakeoff.jsonl of the lines, and trains nothing.
"""

import json
import pathlib
import shutil
import time
from collections.abc import Iterable

import bakeoff_page
import jax
import numpy as np
import regimes
from absl import app, flags, logging

from jaxrl_llm import methods
from jaxrl_llm.training import loop, metrics
from jaxrl_llm.training.config import check_config
from jaxrl_llm.training.lock import locked
from jaxrl_llm.training.policies import load_policy

FLAGS = flags.FLAGS
flags.DEFINE_string("out", None, "folder of the results", required=True)
flags.DEFINE_list("methods", [], "names; none for every method that can take part")
flags.DEFINE_list("regimes", list(regimes.REGIMES), "names")
flags.DEFINE_list("seeds", ["0", "1", "2"], "of prompts, samples and flipped verdicts")
flags.DEFINE_float("budget_minutes", 0.0, "after which no further run begins; 0 for none", lower_bound=0.0)
flags.DEFINE_bool("write", False, "write the page of the docs, and train nothing")

# What one wants to know first; the others follow by name.
FIRST = (
    "grpo", "rloo", "dr_grpo", "dapo", "gspo", "cispo", "reinforce", "reinforce_plus_plus", "ppo", "remax", "kl_cov",
    "pass_at_k", "opo", "gpg", "sapo", "tempo", "nft",
)  # fmt: skip


def eligible() -> tuple[list[str], dict[str, str]]:
    """The methods on samples that a plain configuration can run, in their order, and why the others cannot, by name."""
    found, refused = [], {}
    names = [name for name in methods.names() if methods.get(name).learns_from == "samples"]
    for name in sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)):
        try:
            check_config(regimes.configuration("long_credit", name))
            found.append(name)
        except ValueError as error:
            refused[name] = str(error)
    return found, refused


def mend(path: pathlib.Path) -> None:
    """Cuts off what a kill left of a last line, so that the next begins one; only who alone writes may do so."""
    if path.exists():
        whole, end, cut = path.read_bytes().rpartition(b"\n")
        if cut:
            path.write_bytes(whole + end)


def known_results(path: pathlib.Path) -> list[dict]:
    """The whole lines of earlier calls.

    Raises:
      ValueError: a line is of a regime that was another one then.
    """
    rows = metrics.read_jsonl(path)
    for number, row in enumerate(rows, 1):
        if row["regime"] not in regimes.REGIMES or row["setting"] != regimes.setting(row["regime"]):
            raise ValueError(f"{path}: line {number} is of another regime {row['regime']!r}; give another --out")
    return rows


def missing(known: Iterable[dict], names: Iterable[str], seeds: Iterable[int], wanted: Iterable[str]) -> list[tuple]:
    """The (method, seed, regime) without a result: method by method, so that cells are soon complete, and then seed by seed."""
    done = {(row["method"], row["seed"], row["regime"]) for row in known}
    every = [(name, seed, regime) for name in names for seed in seeds for regime in wanted]
    return [run for run in every if run not in done]


def compete(out: pathlib.Path, method: str, seed: int, name: str) -> dict:
    """The result of one run; what is there of it goes on."""
    regime, result = regimes.REGIMES[name], {"regime": name, "method": method, "seed": seed, "setting": regimes.setting(name)}
    data = {split: regimes.rows(regime, part) for split, part in (("data", "train"), ("held_out", "test"))}
    start, folder = out / f"start_{name}", out / f"{name}_{method}_{seed}"
    if not (start / "summary.json").exists():
        loop.train(regimes.beginning(name), start, **data)
    try:
        summary = loop.train(regimes.configuration(name, method, seed), folder, network=load_policy(str(start))[0], **data)
    except (ValueError, TypeError, FloatingPointError) as error:
        return result | {"failed": f"{type(error).__name__}: {error}"}
    steps = metrics.read_jsonl(folder / "metrics.jsonl")
    measured = [step for step in steps if regime.measure in step]
    last = steps[-len(steps) // 4 :]
    return result | {
        "before": summary["accuracy_before"],
        "curve": [step[regime.measure] for step in measured],
        "accuracy": [step["evaluation/accuracy"] for step in measured],
        "entropy": float(np.mean([step["entropy"] for step in last])),
        "length": float(np.mean([step["length/mean"] for step in last])),
        "uniform_groups": float(np.mean([step["uniform_groups"] for step in steps])),
        "skipped": float(np.mean([step["skipped"] for step in steps])),
        "tokens": float(np.sum([step["tokens"] for step in steps])),
    }


def main(_):
    """Runs what has no result yet, or writes the page."""
    out, began = pathlib.Path(FLAGS.out).absolute(), time.monotonic()
    results, (names, refused) = out / "results.jsonl", eligible()
    if FLAGS.write:
        bakeoff_page.write(known_results(results), names, refused)
        return
    if unknown := set(FLAGS.methods) - set(names) or set(FLAGS.regimes) - set(regimes.REGIMES):
        reasons = {name: refused.get(name, "it is no method, or no regime") for name in sorted(unknown)}
        raise app.UsageError(f"cannot take part: {reasons}")
    logging.set_verbosity(logging.WARNING)
    # The programs are small and each method has its own: to compile them well would be nearly all of the work.
    jax.config.update("jax_disable_most_optimizations", True)
    with locked(out):
        mend(results)
        runs = missing(known_results(results), FLAGS.methods or names, list(map(int, FLAGS.seeds)), FLAGS.regimes)
        for method, seed, regime in runs:
            if FLAGS.budget_minutes and time.monotonic() - began > 60 * FLAGS.budget_minutes:
                print("the time is up; the same command goes on")
                break
            result = compete(out, method, seed, regime)
            metrics.append_jsonl(results, result)
            print(json.dumps(result), flush=True)
            shutil.rmtree(out / f"{regime}_{method}_{seed}", ignore_errors=True)
            jax.clear_caches()  # Programs of a run that is over; the next one reads what is equal from the disk.


if __name__ == "__main__":
    app.run(main)
