"""What mechanisms of rollouts, critics and evolution do for learning: with and without each, at as many sampled tokens.

python benchmarks/mechanisms.py --out=FOLDER [--pairs=trees,replay --seeds=0,1,2 --budget_minutes=60]
python benchmarks/mechanisms.py --out=FOLDER --write

A pair is two runs of a task that differ in one mechanism; each task is one of the regimes of `regimes.py`, perhaps changed so
that the mechanism has something to do. All runs of a task begin with one policy, and those of a seed see the same prompts in
the same order. Steps of different mechanisms sample differently much, so that numbers of prompts are chosen for about equal
tokens, and runs are compared up to the tokens that both have. Results are kept as those of `bakeoff.py`.
`--write` makes docs/mechanisms.md and docs/mechanisms.jsonl of the lines, and trains nothing.
"""

import dataclasses
import functools
import pathlib
import zlib
from typing import Any, NamedTuple

import mechanisms_page
import numpy as np
import paired
import regimes
from absl import app, flags
from ml_collections import ConfigDict

from jaxrl_llm.training.config import free_section

FLAGS = flags.FLAGS
MEASUREMENTS = 5  # of a run, behind the start
SAMPLES = 2  # of each held-out prompt
# Metrics that tell whether a mechanism did anything.
ACTED = ("hints/", "replay/", "values/", "tree/", "chosen/", "taught", "resumed/", "evolution/")


@dataclasses.dataclass(frozen=True)
class Task:
    """Where a mechanism should matter: a regime, and what is otherwise with its prompts."""

    regime: regimes.Regime
    prompts: int = regimes.TRAINING  # different ones in the RL phase
    unsolvable: float = 0.0  # share of them of which no answer counts as right
    told: bool = False  # whether imitation has also shown prompts behind their right working, and that it is to be repeated
    short: int = 0  # steps of every second prompt's chain; 0 for chains of one length

    @property
    def prompt_tokens(self) -> int:
        """Of the longest prompt: digits and "=", in front of it perhaps a working with its answer and ";"."""
        return self.regime.chain + 1 + self.told * (self.regime.chain + 3)


CARELESS = regimes.Regime("one sample in six is right at the start", chain=8, careless=0.2, steps=30)
LONG = dataclasses.replace(regimes.REGIMES["long_credit"], steps=40)
RARE = dataclasses.replace(regimes.REGIMES["rare_success"], steps=30)
TASKS = {
    "long_credit": Task(LONG),
    # Few prompts, so that they come again.
    "rare_success": Task(RARE, prompts=128),
    "mostly_unsolvable": Task(CARELESS, prompts=192, unsolvable=2 / 3),
    "two_lengths": Task(dataclasses.replace(LONG, steps=30), short=4),
    "careless": Task(CARELESS),
    "told": Task(dataclasses.replace(CARELESS, imitation=1200), told=True),
}
# Beginnings of a right working behind the prompt, of up to 8 tokens: the policy knows how to go on from them.
HINTS = {
    "method.options.levels": tuple(("{prompt}{part}", "right", share) for share in (0.25, 0.5, 0.75)),
    "task.max_prompt_tokens": 17, "rl.row_tokens": 56,
}  # fmt: skip
# Method by task, and what it is told there, besides what `regimes.configuration` tells it; "method" where the name is another.
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "long_credit": {
        "grpo": {},
        "tree_po": {"rl.prompts": 12, "method.options.widths": (4, 2, 2), "method.options.segment": 4},
        "spo_tree": {"rl.prompts": 12, "method.options.widths": (4, 2, 2), "method.options.segment": 4},
        "vine_ppo": {
            "rl.prompts": 4, "method.strategy": "valued",
            "method.strategy_options": {"samples": 8, "continuations": 2, "cuts": {"every": {"tokens": 4}}},
        },
        "reinforce": {},
        "reinforce_plus_plus": {},
        "ppo": {"critic.learning_rate_factor": 5.0},
        "vapo": {"method.options.warmup_steps": 5, "critic.learning_rate_factor": 5.0},
    },
    "rare_success": {
        "grpo": {},
        "ghpo": {"rl.prompts": 10} | HINTS,
        "scaf_grpo": {"rl.prompts": 14, "method.options.warmup_steps": 0} | HINTS,
        "repo": {"method.options.least": 8, "method.options.capacity": 2048},
    },
    "told": {
        "grpo": {},
        "sdpo": {"method.options.template": "{solution};{prompt}", "method.options.count": 8},
        "sdpo_average": {
            "method": "sdpo", "method.options.template": "{solution};{prompt}", "method.options.count": 8,
            "method.options.teacher": "reference", "rl.reference.every": 1, "rl.reference.share": 0.05,
        },
        "sdft": {"method.options.template": "{right};{prompt}", "method.options.count": 8},
    },
    "mostly_unsolvable": {"grpo": {}, "uncertain_prompts": {}, "knapsack_grpo": {"method.options.most": 32}, "dump": {}},
    "two_lengths": {"grpo": {}, "partial_rollouts": {"rl.steps": 45, "method.options.window": 8}},
    "careless": {
        "evolution_strategies": {
            "method.options.samples": 1, "method.options.pairs": 8, "rl.prompts": 32, "rl.steps": 20, "network.trains": "norm",
            "method.options.scale": 0.05, "rl.optimizer.learning_rate": 0.03,
        }
    },
}  # fmt: skip


class Pair(NamedTuple):
    """One mechanism, and the same without it."""

    mechanism: str
    task: str
    method: str  # with it
    base: str  # without it; "start" for the policy that the run begins with
    about: str  # what the two differ in, and what that leaves open, for the page


PAIRS = {
    pair.mechanism: pair
    for pair in (
        Pair(
            "trees", "long_credit", "tree_po", "grpo",
            "leaves of a tree against single chains; TreePO also whitens and has a higher upper clip",
        ),
        Pair(
            "values by sampling", "long_credit", "vine_ppo", "grpo",
            "advantages of segments of 4 tokens by 2 continuations each; a step has 4 prompts for 16",
        ),
        Pair("hints", "rare_success", "ghpo", "grpo", "beginnings of right workings, which GRPO never sees, on fewer prompts"),
        Pair("replay", "rare_success", "repo", "grpo", "8 earlier rows of each prompt beside the fresh ones: it must not harm"),
        Pair(
            "privileged teacher", "told", "sdpo", "grpo",
            "the policy of the step teaches itself with a right sample of the group in its prompt; it rises and then falls, "
            "as nothing holds its teacher, see the next line",
        ),
        Pair(
            "averaged teacher", "told", "sdpo_average", "grpo",
            "as before, but the teacher is an average of the policies of the steps (5% of the newest), as in the paper",
        ),
        Pair(
            "chosen prompts", "mostly_unsolvable", "uncertain_prompts", "grpo", "two thirds of the prompts can teach nothing"
        ),
        Pair(
            "critic", "long_credit", "ppo", "reinforce",
            "a critic, a clip and whitening against rewards alone; on a trial seed the critic had learned the mean reward "
            "and no more by the end, its squared error being the rewards' variance, also at six times the learning rate",
        ),
        Pair(
            "critic alone", "long_credit", "ppo", "reinforce_plus_plus",
            "both clip and whiten; what differs are a critic that knows the mean reward alone, and the trace decay",
        ),
        Pair("partial rollouts", "two_lengths", "partial_rollouts", "grpo", "windows of 8 tokens: it must not be worse"),
        Pair(
            "evolution", "careless", "evolution_strategies", "start",
            "the scales of norms alone; nothing is said about other ways to spend the tokens",
        ),
        Pair(
            "shared samples", "mostly_unsolvable", "knapsack_grpo", "grpo",
            "the same prompts, with 2 to 32 samples by what is known of them",
        ),
        Pair("one hinted row", "rare_success", "scaf_grpo", "grpo", "in a group that has no right one; GRPO sees no hints"),
        Pair(
            "demonstrations", "told", "sdft", "grpo",
            "the teacher reads a right working of each prompt, which GRPO never sees: what is possible rather than a contest",
        ),
        Pair("chosen domains", "mostly_unsolvable", "dump", "grpo", "one of three domains can be solved, and all are named"),
        Pair("trees of values", "long_credit", "spo_tree", "grpo", "a segment is worth what it has over the node before it"),
        Pair("adaptive critic", "long_credit", "vapo", "reinforce", "of its steps the first 5 train the critic alone"),
    )
}  # fmt: skip


def setting(task: str, method: str) -> int | None:
    """The digest of all that a result depends on, see `paired.known_results`."""
    if method not in ARMS.get(task, {}):
        return None
    told = (dataclasses.replace(TASKS[task], regime=None), ARMS[task][method], MEASUREMENTS, SAMPLES)
    return zlib.crc32(repr((regimes.setting(TASKS[task].regime), told)).encode())


def rows(task: Task, split: str) -> list[dict[str, str]]:
    """The prompts of the regime with their right working and their domain; all of them for split "imitation"."""
    part = "test" if split == "test" else "train"
    found = regimes.rows(task.regime, part)
    if task.short:
        found[1::2] = regimes.rows(dataclasses.replace(task.regime, chain=task.short), part)[1::2]
    for row in found:
        digits = np.array([int(digit) for digit in row["prompt"][:-1]])
        row["right"] = regimes.worked(digits, 0, np.zeros(len(digits), bool), written=False)
    if split == "imitation":
        told = [row | {"prompt": f"{row['right']};{row['prompt']}", "completion": row["right"]} for row in found]
        return found + told[::3] * task.told
    if split == "train":
        found = found[: task.prompts]
        for number, row in enumerate(found):
            solvable = number >= task.unsolvable * len(found)
            row |= {"domain": "solvable" if solvable else f"unsolvable {number % 2}"} | ({} if solvable else {"answer": "none"})
    return found


def configuration(task: Task, method: str, seed: int, changes: dict[str, Any]) -> ConfigDict:
    """The configuration of a run; the supervised one, of the policy that all of a task begin with, is `beginning`."""
    config = _widened(regimes.configuration(task.regime, changes.get("method", method), seed), task)
    for path, value in changes.items():
        if path == "method":
            continue
        section, _, name = path.rpartition(".")
        free_section(config, section)[name] = value
    config.evaluation.update(every=config.rl.steps // MEASUREMENTS, samples=SAMPLES)
    return config


def beginning(task: Task) -> ConfigDict:
    """The configuration of the supervised phase, the same for all runs of a task."""
    return _widened(regimes.beginning(task.regime), task)


def _widened(config: ConfigDict, task: Task) -> ConfigDict:
    config.task.max_prompt_tokens = task.prompt_tokens
    config.rl.row_tokens = 2 * (task.prompt_tokens + config.rl.max_new_tokens)
    config.sft.row_tokens = config.rl.row_tokens
    return config


def compete(out: pathlib.Path, method: str, seed: int, name: str, folder: pathlib.Path) -> dict:
    """The result of one run; what is there of it goes on."""
    task = TASKS[name]
    data = {"data": rows(task, "train"), "held_out": rows(task, "test")}
    config = configuration(task, method, seed, ARMS[name][method])
    start = out / f"start_{zlib.crc32(repr((regimes.setting(task.regime), task.told, task.short)).encode()):08x}"
    summary, steps = paired.run(folder, config, data, start, beginning(task), rows(task, "imitation"))
    if "failed" in summary:
        return summary
    sampled = np.cumsum([step["sampled_tokens"] for step in steps])
    measured = [place for place, step in enumerate(steps) if "evaluation/accuracy" in step]
    acted = {key for step in steps for key in step if key.startswith(ACTED)}
    return {
        "before": summary["accuracy_before"],
        "curve": [steps[place]["evaluation/accuracy"] for place in measured],
        "tokens": [float(sampled[place]) for place in measured],
        "skipped": float(np.mean([step["skipped"] for step in steps])),
        "acted": {key: float(np.mean([step[key] for step in steps if key in step])) for key in sorted(acted)},
    }


def cases(names: list[str], seeds: list[int]) -> list[paired.Case]:
    """The runs of the pairs, pair by pair and method by method, whose runs share programs; each run once."""
    found = [
        (method, seed, PAIRS[name].task)
        for name in names
        for method in (PAIRS[name].base, PAIRS[name].method)
        for seed in seeds
        if method != "start"
    ]
    return list(dict.fromkeys(found))


def main(_):
    """Runs what has no result yet, or writes the page."""
    out = pathlib.Path(FLAGS.out).absolute()
    if FLAGS.write:
        mechanisms_page.write(paired.known_results(out / "results.jsonl", setting), PAIRS.values(), TASKS)
        return
    names = FLAGS.pairs or list(PAIRS)
    if unknown := set(names) - set(PAIRS):
        raise app.UsageError(f"there is no pair {sorted(unknown)[0]!r}; there are {list(PAIRS)}")
    wanted = cases(names, list(map(int, FLAGS.seeds)))
    paired.finish(out, wanted, setting, functools.partial(compete, out), FLAGS.budget_minutes)


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "folder of the results", required=True)
    flags.DEFINE_list("pairs", [], "names; none for all")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "of prompts and samples")
    flags.DEFINE_float("budget_minutes", 0.0, "after which no further run begins; 0 for none", lower_bound=0.0)
    flags.DEFINE_bool("write", False, "write the page of the docs, and train nothing")
    app.run(main)
