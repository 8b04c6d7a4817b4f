"""What is measured: one definition each, and the files of a run that hold the measurements.

`metrics.jsonl` holds one object a step and nothing that depends on the clock, so that it is the same, byte for byte,
whether or not the run was interrupted. `timing.jsonl` holds the clock.
"""

import fnmatch
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from jaxrl_llm import distributed, reading

BAR = "\\|"  # a bar within a cell of a Markdown table

DEFINITIONS = {
    "step": "steps done, of all phases together, this one included",
    "phase": "`sft`, `preference` or `rl`",
    "loss": "value of the objective; on policy, a group-relative loss is 0 whatever is learned: see `surrogate/*`",
    "loss/*": "weighted sum over actions of one term of the objective",
    "gradient_norm": "global norm of the gradient before clipping",
    "skipped": "share of the step's updates that were skipped because loss or gradient was not finite",
    "logp_gap": "largest |learner's - sampler's| log-probability (nats) of an action, at the first update after sampling; with "
    "`rl.staleness`, what has been learned since is part of it",
    "staleness": "mean over the learned tokens of the steps that have changed the parameters since those that drew the token; "
    "the run can be repeated, bit for bit, one thing after the other, with `rl.overlap` off",
    "surrogate/positive_advantage": "weighted sum of the surrogate over actions with positive advantage, to be raised",
    "surrogate/negative_advantage": "the same over actions with negative advantage",
    "expert_load_max": "choices of the most used expert of a layer by an action, over those if all were used alike",
    "ratio/mean": "mean importance ratio of the actions",
    "ratio/max": "largest importance ratio of an action",
    "behavior_kl": "mean over actions of the k3 estimate of KL(sampler || policy), nats",
    "reference_kl": "weighted mean over actions of the KL estimate of the loss between policy and reference, nats",
    "*_kl": "the same between the policy and another one: `teacher_kl`, `proximal_kl`",
    "*_2": "the same metric of the second such term of an objective, and so on",
    "source_*": "a metric of the rows of one source alone: 0 for samples, 1 for demonstrations",
    "divergence/*": "weighted mean over actions of the divergence of the loss between policy and teacher or reference, nats",
    "constrained_kl": "KL (nats) between the policy before the step and now that a penalty bounds",
    "gap/*": "perplexity, chi-squared divergence and effective sample size of `objectives.policy_gap`, which defines each",
    "policy_entropy": "weighted mean over actions of the policy's entropy, nats",
    "log_partition": "weighted mean over answers of the learned log-partition function of their prompts, nats",
    "top_entropy": "the same of the distribution without its least likely entries",
    "greedy_reward": "mean reward of the greedy answers that are a baseline",
    "anchor_reward": "mean reward of the reference policy's answers that are a baseline",
    "ranking_left_out": "share of groups that are larger than a ranking takes, and have no part",
    "reward_desirable": "mean implicit reward of the desirable rows",
    "reward_undesirable": "mean implicit reward of the undesirable rows",
    "reward_center": "mean implicit reward halfway between desirable and undesirable rows",
    "reward_reference_point": "implicit reward that counts as neither gain nor loss",
    "evolution/best": "mean reward of the best perturbation of a step",
    "evolution/spread": "standard deviation over the perturbations of a step of their mean rewards",
    "critic/deviation": "mean over actions of the standard deviation that a critic of normal distributions gives the return",
    "critic/variance": "mean over actions of the variance that such a critic gives the return",
    "fast/loss": "loss of the first of the fast updates of a step",
    "clip_fraction/low": "share of actions whose gradient the lower clip removes",
    "clip_fraction/high": "share of actions whose gradient the upper clip removes",
    "entropy": "mean over actions of -log-probability of the sampled token (nats): unbiased for the policy's entropy",
    "reward": "mean over rows of the weighted sum of reward components, missing ones counted as 0; each lies within +-1e6",
    "reward/*": "mean of one component over the rows that have it",
    "episode/turns": "mean number of turns of an episode, where there is an environment",
    "episode/calls": "mean number of tool calls of an episode",
    "episode/failed": "share of the episodes whose environment failed: it raised, took too long or died",
    "episode/cut": "share of the episodes that ended for want of turns or tokens",
    "reward_missing": "share of reward values that are missing (exception, time-out or None)",
    "reward_timeouts": "number of reward values that are `rewards.timeout_value` since their row took too long alone",
    "reward_std": "mean over groups of the population standard deviation of the total reward",
    "uniform_groups": "share of groups whose rows all have the same total reward, and so teach nothing",
    "length/mean": "mean tokens of a completion, the stop token included",
    "length/max": "most tokens of a completion",
    "truncated": "share of completions cut by `max_new_tokens`",
    "pair_accuracy": "share of pairs whose preferred text has the higher reward, a tie counting one half",
    "pair_margin": "mean over pairs of the difference of the two rewards",
    "pair_chosen": "mean over pairs of the reward of the preferred text",
    "pair_rejected": "mean over pairs of the reward of the other text",
    "labelled/reward": "sum over labelled rows of their implicit rewards",
    "labelled/count": "number of labelled rows",
    "label_accuracy": "share of labelled answers on the side of the reference point that their label says, ties counting half",
    "pairs_equal": "share of pairs of two equal texts, which teach nothing",
    "tokens": "tokens that the step trained on",
    "sampled_tokens": "tokens that policies wrote for the step, those of values and of rows that nobody learns included",
    "dynamic_sampling/rounds": "rounds of sampling that the step took",
    "dynamic_sampling/kept": "share of the sampled groups that were kept",
    "hints/*": "of the groups the share that was asked with a hint (asked), of the hinted rows that are right (right)",
    "stage": "number of the stage whose template is asked",
    "taught": "share of the rows whose teacher was told a right answer",
    "hindsight/rows": "share of the rows that are learned again for what they achieved",
    "recycled/*": "prompts that were made of the step's samples (prompts), and the share of right answers to them (right)",
    "modes/*": "share of the rows that choose for themselves and begin in that mode",
    "values/states": "different states whose values were sampled",
    "tree/leaves": "leaves of a prompt's tree, the mean",
    "exits": "exits of a prompt's paths, the mean",
    "begun/tokens": "tokens of the beginnings that were given, the mean",
    "budget/*": "mean reward of the answers at a budget of so many tokens",
    "verifier/*": "of a verifier's judgements the share that is true, or complete; of a module, its measures",
    "spoiled/wrong": "share of the spoiled answers that are wrong",
    "replay/*": "rows that were replayed (rows), and how many steps ago their tokens were sampled (age)",
    "speculative/kept": "share of the tokens of the last visit that stayed",
    "resumed/waiting": "groups that go on in the next step",
    "chosen/*": "share of right rows at the last visit of the drawn prompts (success), rows of the largest group (largest)",
    "evaluation/accuracy": "mean over held-out prompts of the share of its samples that are correct (avg@k): whose reward, the "
    "first of `rewards.names` or `evaluation.reward`, is at least `evaluation.success`, 1 by default",
    "evaluation/loss": "of held-out completions: mean negative log-likelihood (nats a token) of what is learned of them; of "
    "held-out pairs: value of the objective, a mean over pairs",
    "evaluation/accuracy_error": "half width of its 95% confidence interval, from the spread over prompts",
    "evaluation/pass@*": "unbiased probability that one of k samples is correct, mean over prompts",
    "evaluation/pass@*_error": "half width of its 95% confidence interval",
    "evaluation/maj@*": "share of prompts whose most frequent answer among k samples is correct",
    "evaluation/maj@*_error": "half width of its 95% confidence interval",
    "evaluation/length": "mean tokens of a held-out completion",
    "evaluation/reward": "mean of the held-out rewards that are not missing",
    "evaluation/logp_gap": "largest |learner's - sampler's| log-probability (nats) of a token of the held-out completions",
    "evaluation/greedy_mismatch": "share of greedy held-out tokens that the learner holds for less likely than "
    "its likeliest by more nats than `rl.max_logp_gap`",
    "evaluation/pair_*": "the same of held-out pairs: `pair_accuracy`, `pair_margin`, `pair_chosen`, `pair_rejected`",
    "evaluation/pair_accuracy_error": "half width of its 95% confidence interval",
    "evaluation/label_accuracy": "the same of held-out answers that are marked one by one",
    "evaluation/label_accuracy_error": "half width of its 95% confidence interval",
    "evaluation/missing": "share of held-out rewards that are missing; they count as wrong, but where all are missing "
    "nothing was measured",
    "evaluation/timeouts": "the same number as `reward_timeouts`, of held-out rewards",
}

# Of `timing.jsonl`, and of TensorBoard too.
TIMINGS = {
    "seconds": "of the step, without what is measured or saved after it: the sum of the six below",
    "sample": "the strategy: drawing examples, sampling, decoding text",
    "reward": "waiting for rewards",
    "annotate": "log-probabilities and values of the policies before the update, advantages",
    "pack": "laying the rows out, before the annotations and before the updates",
    "update": "all updates of the step",
    "idle": "the rest, in which the device has nothing to do",
    "compilations": "programs that the step compiled, or read from the compilation cache",
    "compile_seconds": "how long that took, within the parts that asked for them",
    "evaluate": "of the measurement after the step, where there is one",
    "elapsed": "of the run until now, of all its processes",
}


def defined(name: str) -> bool:
    """Whether `DEFINITIONS` has `name`, a `*` in it standing for any text."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in DEFINITIONS)


def definitions_table(definitions: Mapping[str, str] = DEFINITIONS) -> str:
    """The definitions as a Markdown table."""
    rows = [f"| `{name}` | {text.replace('|', BAR)} |" for name, text in definitions.items()]
    return "\n".join(["| metric | definition |", "|---|---|", *rows]) + "\n"


def append_jsonl(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Adds one line; numbers that are not finite become null, which is what JSON has for them.

    Of several processes the first one writes, here and below.
    """
    if not distributed.is_first():
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain(record)) + "\n")


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with null for numbers that are not finite, which JSON has not."""
    lost = {name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)}
    return {name: None if name in lost else value for name, value in record.items()}


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
    """Records of whole lines; a last line that a kill cut short is left out.

    Raises ValueError: a line is no JSON object; the message names file and line.
    """
    return [record for _, record in _lines(path)]


def keep_until(path: pathlib.Path, step: int) -> list[int]:
    """Removes the records after `step`, which the resumed run will write again; the file is replaced at once.

    Returns: The steps that are left.
    Raises ValueError: as `read_jsonl` says, or a line without a step.
    """
    if not path.exists():
        return []
    steps, kept = [], []
    for number, (line, record) in enumerate(_lines(path), 1):
        if type(record.get("step")) is not int:
            raise ValueError(f"line {number} of {path}: it has no step: {line[:80]!r}; {_MEND_OF_LINES}")
        if record["step"] <= step:
            steps.append(record["step"])
            kept.append(line + "\n")
    write_atomically(path, kept)
    return steps


_MEND_OF_LINES = "remove the line, or restore the file from a copy"


def _lines(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """Whole lines of a file as they stand, and as records."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    texts = [line.decode(errors="backslashreplace") for line in lines]
    places = (f"line {number} of {path}" for number in range(1, len(texts) + 1))
    return [(text, reading.parse_object(text, place, _MEND_OF_LINES)) for text, place in zip(texts, places, strict=True)]


def write_atomically(path: pathlib.Path, parts: Iterable[str]) -> None:
    """Writes a text file aside and renames it, so that nobody ever sees half of it."""
    if not distributed.is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text("".join(parts), encoding="utf-8")
    os.replace(aside, path)


def write_table(path: pathlib.Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records as JSONL, whole or not at all."""
    write_atomically(path, (json.dumps(record, ensure_ascii=False) + "\n" for record in records))
