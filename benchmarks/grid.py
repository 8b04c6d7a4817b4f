"""GiGPO against GRPO on a frozen lake, from nothing, at as many sampled tokens: python benchmarks/grid.py --out=FOLDER

Runs of a seed begin with the same network of random parameters, see the same lakes in the same order and are measured on the
same held-out ones; they differ in the step-level advantage of GiGPO alone. Steps sample differently many tokens, since walks
end where they succeed, so that what counts is the mean of held-out success over the tokens that both have sampled, by linear
interpolation between measurements, and the success behind them. A line of FOLDER/results.jsonl is written for each run, none
is made twice, and `--table` prints what there is.
"""

import pathlib
import zlib

import jax
import numpy as np
import paired
from absl import app, flags

from jaxrl_llm.training import default_config, loop, metrics

FLAGS = flags.FLAGS
EQUAL = {"kl_coefficient": 0.0, "samples": 8}
# The first has the formulas of the second but for the step-level term.
ARMS = {"grpo": EQUAL | {"degrees_of_freedom": 1, "aggregation": "token_mean"}, "gigpo": EQUAL}
REGIMES = {"ice": {"size": 3, "holes": 0.3}, "slippery": {"size": 3, "holes": 0.3, "slippery": 0.2}}
TURNS, STEPS, EVERY = 8, 120, 12


def configuration(method: str, seed: int, regime: str):
    """The configuration of a run."""
    config = default_config()
    config.seed = seed
    config.network.tokenizer = "characters:.O@G/:lrud"
    config.network.update(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16)
    config.task.source = "numbered"
    config.task.options = {"size": 4096, "prompt": "."}
    config.task.test_options = {"size": 256, "first": 4096}
    config.task.max_prompt_tokens = 12  # a lake has three lines of three fields, two slashes and a colon
    config.rl.update(steps=STEPS, prompts=16, max_new_tokens=TURNS * 13, row_tokens=12 + TURNS * 13)
    config.rl.optimizer.update(learning_rate=3e-3, warmup_steps=5)
    config.method.name = method
    config.method.options.update(ARMS[method])
    config.environment.update(name="frozen_lake", turns=TURNS, turn_tokens=1)
    config.environment.options.update(REGIMES[regime])
    config.rewards.names = ("environment",)
    config.evaluation.update(prompts=256, batch=256, temperature=1.0, every=EVERY)
    config.log.update(live=False, trackers=(), completions_every=0)
    config.checkpoint.every = STEPS
    return config


def setting(regime: str, method: str) -> int | None:
    """The digest of all that a result depends on."""
    if method not in ARMS or regime not in REGIMES:
        return None
    return zlib.crc32(configuration(method, 0, regime).to_json().encode())


def compete(method: str, seed: int, regime: str, folder: pathlib.Path) -> dict:
    """The result of one run; what is there of it goes on."""
    jax.config.update("jax_disable_most_optimizations", False)  # here sampling is the most of the work
    summary = loop.train(configuration(method, seed, regime), folder)
    steps = metrics.read_jsonl(folder / "metrics.jsonl")
    sampled = np.cumsum([step["sampled_tokens"] for step in steps])
    measured = [place for place, step in enumerate(steps) if "evaluation/accuracy" in step]
    return {
        "curve": [summary["accuracy_before"], *(steps[place]["evaluation/accuracy"] for place in measured)],
        "tokens": [0.0, *(float(sampled[place]) for place in measured)],
        "turns": [steps[place]["episode/turns"] for place in measured],
    }


def table(rows: list[dict]) -> str:
    """What the runs say, a line for each regime."""
    lines = ["| lake | seeds | tokens | GiGPO, GRPO, mean success | difference | at the end | difference |", "|" + "---|" * 7]
    for regime in REGIMES:
        found = {(row["method"], row["seed"]): row for row in rows if row["regime"] == regime and "failed" not in row}
        seeds = sorted({seed for _, seed in found if all((arm, seed) in found for arm in ARMS)})
        pairs = [[found[arm, seed] for arm in ("gigpo", "grpo")] for seed in seeds]
        if not pairs:
            continue
        budgets = [min(row["tokens"][-1] for row in pair) for pair in pairs]
        values = np.array([[_until(row, budget) for row in pair] for pair, budget in zip(pairs, budgets, strict=True)])
        told = [f"{np.mean(budgets) / 1000:.0f}k"]
        for measure in range(2):
            mean = values[:, :, measure].mean(axis=0)
            cell = paired.interval(values[:, 0, measure] - values[:, 1, measure])
            told += [f"{mean[0]:.3f}, {mean[1]:.3f}", f"{cell.difference:+.3f} ± {cell.half:.3f}"]
        lines.append(f"| {regime} | {len(seeds)} | {' | '.join(told)} |")
    return "\n".join(lines)


def _until(row: dict, budget: float) -> tuple[float, float]:
    """Mean success over a budget of sampled tokens, and the success at its end, both between measurements on a line."""
    places = np.linspace(0.0, budget, 1001)
    curve = np.interp(places, row["tokens"], row["curve"])
    return float(curve.mean()), float(curve[-1])


def main(_):
    """Runs what has no result yet, or prints the table."""
    out = pathlib.Path(FLAGS.out).absolute()
    if not FLAGS.table:
        cases = [(arm, seed, regime) for regime in FLAGS.regimes for seed in map(int, FLAGS.seeds) for arm in ARMS]
        paired.finish(out, cases, setting, compete, FLAGS.budget_minutes)
    print(table(paired.known_results(out / "results.jsonl", setting)))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "folder of the results", required=True)
    flags.DEFINE_list("regimes", ["ice"], "lakes")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "of parameters, lakes and samples")
    flags.DEFINE_float("budget_minutes", 0.0, "after which no further run begins; 0 for none", lower_bound=0.0)
    flags.DEFINE_bool("table", False, "print the table, and train nothing")
    app.run(main)
