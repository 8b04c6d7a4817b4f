"""Rounds: runs that feed each other, such as RL, imitation of its right answers, preferences between its best and worst.

Each round is a run with a folder of its own in the workdir, exact and resumable as any; it begins with the parameters of the
round before it or with the first ones, and with an optimizer and a reference policy of its own.
"""

import copy
import json
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxrl_llm import data, reading
from jaxrl_llm.networks import Network
from jaxrl_llm.training import build, loop, metrics
from jaxrl_llm.training.combining import depth
from jaxrl_llm.training.config import check_config
from jaxrl_llm.training.policies import load_policy

PHASES = ("sft", "preference", "rl")
STARTS = ("previous", "first")
# What a round learns from: by phase. "task" is the source of the configuration.
DATA = {"rl": ("task",), "sft": ("task", "correct"), "preference": ("task", "best_and_worst")}
OWN_KEYS = ("phase", "data", "start", "extrapolate")
_LOGGER = logging.getLogger(__name__)


def train_in_rounds(config: ConfigDict, workdir: str | pathlib.Path, callbacks: Sequence[Callable] = ()) -> dict[str, Any]:
    """Runs, or resumes, the rounds of `config.rounds` one behind the other, in `workdir/round_01` and so on.

    A round is a dict: "phase", one of "sft", "preference" and "rl", whose steps are those of the configuration; "data",
    "task" or what was sampled in the last RL round: "correct", its right completions, or "best_and_worst", of each prompt of
    a step the two whose rewards differ most; "start", the parameters of the "previous" round, or the "first" ones;
    "extrapolate", how far to go on beyond the round before the start, in the direction that it went; and any dotted keys of
    the configuration, which hold for this round. With a learning rate of 0 an RL round only samples.

    Returns: The summaries of all rounds, which stand in `workdir/summary.json`.
    Raises ValueError: an impossible round, or one that finds nothing to learn from; the message names it.
    """
    workdir = reading.local(workdir)
    configs = [round_config(config, number) for number in range(len(config.rounds))]
    for number, own in enumerate(configs):
        with reading.about(f"config.rounds[{number}]"):
            check_config(own)
    summaries = {}
    for number, own in enumerate(configs):
        folder = _folder(workdir, number)
        given = _given(configs, config.rounds, number, workdir)
        summaries[folder.name] = loop.train(own, folder, callbacks=callbacks, **given)
    metrics.write_atomically(workdir / "summary.json", [json.dumps(summaries, indent=2) + "\n"])
    return summaries


def _folder(workdir: pathlib.Path, number: int) -> pathlib.Path:
    return workdir / f"round_{number + 1:02d}"


def round_config(config: ConfigDict, number: int) -> ConfigDict:
    """The configuration of a round as that of a run of its own.

    Raises ValueError: a phase, data or start that there is not, or a key that is none of the configuration.
    """
    wanted, place = dict(config.rounds[number]), f"config.rounds[{number}]"
    phase, material = wanted.get("phase"), wanted.get("data", "task")
    for name, value, choices in (
        ("phase", phase, PHASES), ("data", material, DATA.get(phase, ())), ("start", wanted.get("start", "previous"), STARTS),
    ):  # fmt: skip
        if value not in choices:
            raise ValueError(f"{place}.{name} is {value!r}; it must be one of {choices}")
    own = copy.deepcopy(config)
    own.rounds = ()
    for other in PHASES:
        own[other].steps = config[other].steps if other == phase else 0
    for name, value in wanted.items():
        if name in OWN_KEYS:
            continue
        *path, key = name.split(".")
        section = own
        for part in path:
            section = section.get(part, {})
        if key not in section:
            raise ValueError(f"{place} has {name!r}, which is no key of the configuration")
        section[key] = value
    if phase == "rl":
        own.log.completions_every = 1  # a later round may learn from them
    if material != "task":
        # Its prompts are as the RL round asked them.
        own.task.update(chat=False, system="", suffix="", goal="", revision="")
    before = config.rounds[:number]
    if material != "task" and all(other["phase"] != "rl" for other in before):
        raise ValueError(f"{place}.data is {material!r}, and no RL round comes before it; add one")
    share = wanted.get("extrapolate", 0.0)
    if share and (number < 2 or wanted.get("start", "previous") != "previous"):
        raise ValueError(f"{place}.extrapolate is {share}; it needs two rounds before it, and the start 'previous'")
    if config.network.adapter.pattern or config.network.quantization or depth(config):
        raise ValueError(
            f"{place}: rounds train whole networks; set config.network.adapter.pattern, quantization, combined.mode and "
            "grammar.behind to ''"
        )
    if number and wanted.get("start", "previous") == "previous":
        own.tokenizer = build.tokenizer_name(config)
        own.network.update(directory="", name="")
    return own


def _given(configs, rounds, number: int, workdir: pathlib.Path) -> dict[str, Any]:
    """What the run of a round is given: parameters, rows, and the held-out examples of the task."""
    wanted, found = rounds[number], {}
    if number and wanted.get("start", "previous") == "previous":
        found["network"] = _start(workdir, number, wanted.get("extrapolate", 0.0))
    material = wanted.get("data", "task")
    if material == "task":
        return found
    sampled = max(n for n in range(number) if rounds[n]["phase"] == "rl")
    config = configs[sampled]
    source = build.build_source(config, build.build_tokenizer(config))
    rows = MATERIALS[material](source, _records(_folder(workdir, sampled)), config.evaluation.success)
    if not rows:
        raise ValueError(f"config.rounds[{number}].data is {material!r}, and round {sampled + 1} has sampled none; sample more")
    _LOGGER.info("round %d learns from %d rows of round %d", number + 1, len(rows), sampled + 1)
    found["data"] = rows
    if wanted["phase"] == "sft":
        test = build.build_source(config, build.build_tokenizer(config), test=True)
        found["held_out"] = [test[index] for index in range(len(test))]
    return found


def _start(workdir: pathlib.Path, number: int, share: float) -> Network:
    """The network of the round before, beyond that of the one before it by a share of the way between both.

    Source of the extrapolation: APO, https://arxiv.org/abs/2410.06293
    """
    network, _ = load_policy(_folder(workdir, number - 1))
    if not share:
        return network
    before, _ = load_policy(_folder(workdir, number - 2))
    params = jax.tree.map(lambda now, then: now + share * (now - then), network.params, before.params)
    return network.with_params(params)


def _records(folder: pathlib.Path) -> list[list[dict[str, Any]]]:
    """What was sampled, step by step."""
    return [metrics.read_jsonl(path) for path in sorted((folder / "completions").glob("step_*.jsonl"))]


def _total(record: dict[str, Any]) -> float | None:
    known = [value for value in record["rewards"] if value is not None]
    return sum(known) if known else None


def correct(source: data.Source, steps, success: float) -> list[dict[str, Any]]:
    """Examples with each right completion, once: those whose first reward is at least `success`."""
    rows = {}
    for record in (record for records in steps for record in records):
        first = record["rewards"][0]
        if first is not None and first >= success:
            rows.setdefault((record["prompt_id"], record["completion"]), record)
    return [source[number] | {"completion": completion} for number, completion in rows]


def best_and_worst(source: data.Source, steps, success: float) -> list[dict[str, Any]]:
    """A pair of each prompt of each step whose completions have rewards that differ: the best and the worst one."""
    del success
    rows = []
    for records in steps:
        for number in dict.fromkeys(record["prompt_id"] for record in records):
            own = [record for record in records if record["prompt_id"] == number and _total(record) is not None]
            totals = np.array([_total(record) for record in own])
            if len(own) > 1 and np.ptp(totals) > 0:
                chosen, rejected = own[totals.argmax()]["completion"], own[totals.argmin()]["completion"]
                rows.append({"prompt": source[number]["prompt"], "chosen": chosen, "rejected": rejected})
    return rows


MATERIALS = {"correct": correct, "best_and_worst": best_and_worst}
