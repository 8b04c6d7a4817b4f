"""Methods that learn from samples, in six small regimes, from one start each, with as many samples and paired prompts.

python benchmarks/bakeoff.py --out=FOLDER [--methods=grpo,rloo --regimes=long_credit --seeds=0,1,2 --budget_minutes=120]
python benchmarks/bakeoff.py --out=FOLDER --write

The regimes stand in `regimes.py`. In each a policy is made once by imitation; all methods and seeds begin with it. Methods of a
seed see the same prompts in the same order and are measured on the same held-out ones, so that a method is compared with GRPO
pair by pair. Every finished run is a line of FOLDER/results.jsonl and is never made again; one that was killed is.
`--write` makes docs/bakeoff.md, docs/bakeoff.png and docs/bakeoff.jsonl of the lines, and trains nothing.
"""

import functools
import itertools
import pathlib

import bakeoff_page
import numpy as np
import paired
import regimes
from absl import app, flags

from jaxrl_llm import methods
from jaxrl_llm.training.config import check_config

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
            check_config(regimes.configuration(regimes.REGIMES["long_credit"], name))
            found.append(name)
        except ValueError as error:
            refused[name] = str(error)
    return found, refused


def setting(regime: str, method: str) -> int | None:
    """The digest that results of a regime carry, see `paired.known_results`."""
    return regimes.setting(regimes.REGIMES[regime]) if regime in regimes.REGIMES else None


def compete(out: pathlib.Path, method: str, seed: int, name: str, folder: pathlib.Path) -> dict:
    """The result of one run; what is there of it goes on."""
    regime = regimes.REGIMES[name]
    data = {split: regimes.rows(regime, part) for split, part in (("data", "train"), ("held_out", "test"))}
    config = regimes.configuration(regime, method, seed)
    summary, steps = paired.run(folder, config, data, out / f"start_{name}", regimes.beginning(regime))
    if "failed" in summary:
        return summary
    measured = [step for step in steps if regime.measure in step]
    last = steps[-len(steps) // 4 :]
    return {
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
    out = pathlib.Path(FLAGS.out).absolute()
    names, refused = eligible()
    if FLAGS.write:
        bakeoff_page.write(paired.known_results(out / "results.jsonl", setting), names, refused)
        return
    if unknown := set(FLAGS.methods) - set(names) or set(FLAGS.regimes) - set(regimes.REGIMES):
        reasons = {name: refused.get(name, "it is no method, or no regime") for name in sorted(unknown)}
        raise app.UsageError(f"cannot take part: {reasons}")
    # Method by method, so that cells are soon complete, and then seed by seed.
    seeds = map(int, FLAGS.seeds)
    cases = list(itertools.product(FLAGS.methods or names, seeds, FLAGS.regimes))
    paired.finish(out, cases, setting, functools.partial(compete, out), FLAGS.budget_minutes)


if __name__ == "__main__":
    app.run(main)
