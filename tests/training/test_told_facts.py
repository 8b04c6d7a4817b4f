"""Facts: what functions of a user say of rows, in the program."""

import json

import numpy as np
import pytest
from training.tiny_runs import finish, tiny_config

from jaxrl_llm.training import default_config
from jaxrl_llm.training.config import check_config

# Method -> the fact that it needs and the function of the tests that gives it.
FED = {
    "ada_grpo": ("format", "form"),
    "aspo_tools": ("first_call", "first_call"),
    "evol_rl": ("embedding", "embedding"),
    "fapo": ("flawed", "flawed"),
    "group_invariant": ("easy", "easy"),
    "igpo": ("token_rewards", "digit_rewards"),
    "otc": ("calls", "calls"),
    "rae": ("role", "role"),
    "stratified_grpo": ("stratum", "stratum"),
    "tabnas": ("feasible", "easy"),
    "verifree": ("answer_mask", "digit_rewards"),
}


def fed(method: str):
    name, function = FED[method]
    config = tiny_config(method)
    config.rl.steps = 1
    config.rewards.facts = {name: f"training.tiny_facts:{function}"}
    return config


@pytest.mark.parametrize("method", [pytest.param(name, marks=[] if name == "otc" else pytest.mark.slow) for name in FED])
def test_methods_that_need_a_fact_run_in_the_program(method, tmp_path):
    done = finish(fed(method), tmp_path)
    assert len(done.metrics) == 1
    assert np.isfinite(done.metrics[0]["loss"]) and done.metrics[0]["skipped"] == 0


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"stratum": "training.tiny_facts:stratum"}, "config.rewards.facts.stratum would change nothing: grpo needs"),
        ({"token_rewards": "digits"}, "config.rewards.facts.token_rewards is 'digits'; it must be 'package.module:function'"),
    ],
)
def test_facts_that_nobody_reads_or_that_are_no_functions_are_refused(facts, message):
    config = default_config()
    config.rewards.facts = facts
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_a_method_without_its_fact_names_the_key():
    with pytest.raises(ValueError, match="name a function that does in config.rewards.facts.calls"):
        check_config(tiny_config("otc"))


def test_a_fact_that_fails_for_all_rows_ends_the_run_and_one_that_fails_for_some_is_logged(tmp_path):
    config = fed("otc")
    config.rewards.facts = {"calls": "training.tiny_facts:missing_for_all"}
    with pytest.raises(ValueError, match="the fact 'calls' is missing for all 16 rows.*mend the fact"):
        finish(config, tmp_path / "all")
    config.rewards.facts = {"calls": "training.tiny_facts:missing_for_some"}
    finish(config, tmp_path / "some")
    lines = (tmp_path / "some" / "reward_failures.jsonl").read_text().splitlines()
    assert {json.loads(line)["name"] for line in lines} == {"calls"}
    assert all("give a number" in json.loads(line)["reason"] for line in lines)
