"""All methods that learn from samples, on one small task, from the same start, with equal samples.

python benchmarks/bakeoff.py --out=FOLDER [--methods=grpo,rloo --seeds=0,1,2 --steps=12 --samples_per_step=128]

The task is the quickstart's: a policy that imitated careless sums learns from a verifier alone. Each step samples
`--samples_per_step` completions and makes four updates (two passes in two parts), so that ratios leave 1. Learning rate and
network are the same for all; no method is tuned. Every finished run is a line of FOLDER/results.jsonl, and a run that has its
line is not repeated: an interrupted bake-off goes on. `--write` writes docs/bakeoff.md and docs/bakeoff.png from the lines.
"""

import contextlib
import dataclasses
import json
import pathlib
import runpy
import time

import jax
import numpy as np
from absl import app, flags

from jaxrl_llm import methods
from jaxrl_llm.data import Cursor
from jaxrl_llm.training import checkpoint, loop, phases, reinforcement
from jaxrl_llm.training.annotate import scoring_passes
from jaxrl_llm.training.run import Run, open_run

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLAGS = flags.FLAGS
flags.DEFINE_string("out", None, "folder of the results", required=True)
flags.DEFINE_list("methods", [], "names; none for every method that the loop can run on samples")
flags.DEFINE_list("seeds", ["0", "1", "2"], "of data, samples and initial parameters")
flags.DEFINE_integer("steps", 12, "steps of each run", lower_bound=1)
flags.DEFINE_integer("samples_per_step", 128, "completions sampled in each step", lower_bound=16)
flags.DEFINE_integer("evaluate_every", 2, "steps between evaluations", lower_bound=1)
flags.DEFINE_bool("write", False, "write the table and the plot of the docs, and train nothing")

# What a method has to be told on this task, where answers have at most 28 tokens.
LONGEST = 28
OPTIONS = {"max_length": LONGEST, "kl_coefficient": 0.0, "max_rounds": 1}
SAMPLES = 8
LEARNING_RATE = 2.5e-5


def configuration(seed: int):
    """The quickstart, with several updates a step."""
    config = runpy.run_path(str(ROOT / "configs" / "quickstart.py"))["get_config"]()
    config.seed = seed
    config.rl.update(steps=FLAGS.steps, epochs=2, minibatches=2)
    # A twelfth of the quickstart's rate: at that one every method is at its end after a few steps.
    config.rl.optimizer.update(learning_rate=f"{LEARNING_RATE:g}", warmup_steps=2, decay="constant")
    config.evaluation.update(prompts=128, batch=128)
    config.log.update(live=False, tensorboard=False)
    config.rewards.workers = 1
    return config


def make(name: str) -> methods.Method:
    """The method with the options of this task, as far as it has them."""
    known = methods.options_of(name)
    chosen = {option: value for option, value in OPTIONS.items() if option in known}
    samples = {"samples": 2 if known.get("samples") == 2 else SAMPLES} if "samples" in known else {}
    return methods.get(name, **chosen, **samples)


def eligible() -> list[str]:
    """Methods on samples for which the loop can make everything they need without another network than the policy's."""
    found = []
    for name in methods.names():
        method = methods.get(name)
        if method.learns_from != "samples" or method.needs_teacher:
            continue
        with contextlib.suppress(ValueError):
            scoring_passes(method, {"proximal": _NOBODY, "reference": _NOBODY})
            found.append(name)
    return found


class _NOBODY:
    network, temperature = staticmethod(lambda *inputs: None), 1.0


def started(seed: int, folder: pathlib.Path):
    """Parameters after the supervised phase, which all methods begin with."""
    config = configuration(seed)
    config.rl.steps = 0
    loop.train(config, folder)
    with open_run(config, folder) as run:
        return checkpoint.restore_params(folder / "checkpoints", run.network.params)


def compete(run: Run, name: str, starts: dict[int, object]):
    """Trains from each start and yields one result a seed; programs are compiled once for all of them."""
    run = dataclasses.replace(run, method=make(name))
    samples = run.method.strategy.options["samples"]
    run.config.rl.prompts = FLAGS.samples_per_step // samples
    step = None
    for seed, params in starts.items():
        begin, run.config.seed = time.perf_counter(), seed
        # The reference is the start itself: the update donates its own copy.
        reference = jax.tree.map(jax.numpy.copy, params) if run.method.needs_reference else None
        step = step if step and reference is None else reinforcement.make_reinforcement_step(run, reference)
        state = reinforcement.initial_state(run, jax.tree.map(jax.numpy.copy, params))
        cursor, curve, entropy, length, skipped = Cursor(), [], [], [], 0.0
        for number in range(FLAGS.steps + 1):
            if number % FLAGS.evaluate_every == 0:
                measured = phases.evaluate_samples(run, reinforcement.policy_params(run, state), number)
                curve.append(measured["evaluation/accuracy"])
            if number < FLAGS.steps:
                state, cursor, metrics, _ = step(state, cursor, number)
                entropy.append(metrics["entropy"])
                length.append(metrics["length/mean"])
                skipped += metrics["skipped"]
        yield {
            "method": name,
            "seed": seed,
            "curve": curve,
            "entropy": float(np.mean(entropy[-4:])),
            "length": float(np.mean(length[-4:])),
            "skipped": skipped,
            "samples": samples,
            "seconds": time.perf_counter() - begin,
            "steps": FLAGS.steps,
        }


def main(_):
    """Runs what has no result yet, or writes the page."""
    out = pathlib.Path(FLAGS.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if FLAGS.write:
        write(known)
        return
    seeds, done = [int(seed) for seed in FLAGS.seeds], {(row["method"], row["seed"]) for row in known}
    starts = {seed: started(seed, out / f"start_{seed}") for seed in seeds}
    with open_run(configuration(seeds[0]), out / "run") as run:
        for name in FLAGS.methods or eligible():
            missing = {seed: params for seed, params in starts.items() if (name, seed) not in done}
            try:
                for result in compete(run, name, missing):
                    print(json.dumps(result), flush=True)
                    with results.open("a") as file:
                        file.write(json.dumps(result) + "\n")
            except ValueError as error:
                print(f"{name} cannot take part: {error}", flush=True)


HEAD = """# Bake-off

{count} methods on the quickstart's task, three seeds each: a policy that imitated careless sums (accuracy {before:.2f})
learns from a verifier. Each step samples {samples} completions and makes four updates (two passes over them in two parts, so
that importance ratios leave 1); {steps} steps; AdamW at {rate} for all. Accuracy is greedy on 128 held-out problems;
the *area* is the mean accuracy over the evaluations every {every} steps, the start included; entropy (nats a token) and
length (tokens) are those of the last four steps' samples. Means over the seeds, with the lowest and the highest.

No method was tuned, and the task is small and easy: the order says how fast a method's defaults learn here, and nothing
about long reasoning, noisy rewards or large models. Differences within the spread of the seeds mean nothing. Methods whose
defaults are meant for answers of thousands of tokens are at a disadvantage. Written by `python benchmarks/bakeoff.py --write`.

What can be read off: most methods are within the spread of the seeds, as AdamW takes away the scale of a loss and on an
easy task group-relative gradients point alike. GSPO and LUSPO are slower because their clips of a few 1e-4 stop most
sequences after the first of the four updates; DAPO because it may not draw further prompts here, so that it learns from
informative groups alone; methods of two samples a prompt because fewer of their groups tell anything.

![Area under the accuracy curve, by method](bakeoff.png)

| method | area | final accuracy | entropy | length | skipped updates |
|---|---|---|---|---|---|
"""


def write(results: list[dict]) -> None:
    """docs/bakeoff.md and docs/bakeoff.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = {name: [row for row in results if row["method"] == name] for name in {row["method"] for row in results}}
    table = {name: rows for name, rows in table.items() if len(rows) >= len(FLAGS.seeds)}
    ranked = sorted(table, key=lambda name: -np.mean([np.mean(row["curve"]) for row in table[name]]))
    head = HEAD.format(
        count=len(ranked),
        before=np.mean([row["curve"][0] for row in results]),
        samples=FLAGS.samples_per_step,
        steps=results[0]["steps"],
        every=FLAGS.evaluate_every,
        rate=f"{LEARNING_RATE:g}",
    )
    lines = [f"| {name} | " + " | ".join(_cells(table[name])) + " |" for name in ranked]
    (ROOT / "docs" / "bakeoff.md").write_text(head + "\n".join(lines) + "\n")
    figure, axes = pyplot.subplots(figsize=(7, 0.22 * len(ranked) + 1), layout="constrained")
    for place, name in enumerate(reversed(ranked)):
        areas = [np.mean(row["curve"]) for row in table[name]]
        axes.plot([min(areas), max(areas)], [place, place], color="lightgray", zorder=1)
        axes.scatter(areas, [place] * len(areas), s=12, color="tab:blue", zorder=2)
    axes.set_yticks(range(len(ranked)), list(reversed(ranked)), fontsize=7)
    axes.set_xlabel("mean held-out accuracy over the run (each dot a seed)")
    axes.margins(y=0.01)
    figure.savefig(ROOT / "docs" / "bakeoff.png", dpi=110)


def _cells(rows: list[dict]) -> list[str]:
    def spread(values, digits):
        return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    return [
        spread([np.mean(row["curve"]) for row in rows], 3),
        spread([row["curve"][-1] for row in rows], 3),
        spread([row["entropy"] for row in rows], 3),
        spread([row["length"] for row in rows], 1),
        f"{sum(row['skipped'] for row in rows):g}",
    ]


if __name__ == "__main__":
    app.run(main)
