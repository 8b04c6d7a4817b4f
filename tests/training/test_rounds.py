"""Rounds: each is a run, learns from what the one before sampled, and begins where it says."""

import json

import jax
import numpy as np
import pytest
from training.tiny_runs import tiny_config

from jaxrl_llm.training import loop
from jaxrl_llm.training.policies import load_policy
from jaxrl_llm.training.rounds import best_and_worst, correct, round_config, train_in_rounds

SAMPLED = {"phase": "rl", "rl.steps": 1, "rl.optimizer.learning_rate": 0.0}


def config_of(*rounds):
    config = tiny_config("grpo")
    config.rl.max_new_tokens = 20
    config.rl.row_tokens = 0
    config.sft.steps, config.preference.steps = 1, 1
    config.preference.update(method="dpo", batch=2, row_tokens=64)
    config.rounds = rounds
    config.checkpoint.every = 1
    return config


def params_of(folder):
    return load_policy(folder)[0].params


def differs(one, other):
    return not jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_imitation_and_preferences_of_what_was_sampled(tmp_path):
    rounds = (
        {**SAMPLED, "data": "task"},
        {"phase": "sft", "data": "correct", "evaluation.success": 0.0},
        {"phase": "preference", "data": "best_and_worst"},
        {"phase": "sft", "start": "first"},
    )
    config = config_of(*rounds)
    config.evaluation.success = -1.0  # every reward of the tiny task is right
    summaries = train_in_rounds(config, tmp_path)
    assert list(summaries) == [f"round_0{number}" for number in (1, 2, 3, 4)]
    assert list(json.loads((tmp_path / "summary.json").read_text())) == list(summaries)
    first, second, third, fourth = (params_of(tmp_path / name) for name in summaries)
    assert differs(first, second) and differs(second, third)
    own = json.loads((tmp_path / "round_02" / "config.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "round_01/completions/step_000001.jsonl").read_text().splitlines()]
    assert own["given"]["data"]["rows"] == len({(record["prompt_id"], record["completion"]) for record in records})
    assert own["given"]["held_out"]["rows"] == 4 and own["rl"]["steps"] == 0
    # With a learning rate of 0 nothing was learned in the first round, from which the last one would have begun too.
    assert differs(third, fourth)
    before = (tmp_path / "round_03" / "metrics.jsonl").read_bytes()
    again = train_in_rounds(config, tmp_path)
    assert [own["accuracy_after"] for own in again.values()] == [own["accuracy_after"] for own in summaries.values()]
    assert (tmp_path / "round_03" / "metrics.jsonl").read_bytes() == before


def test_rounds_go_on_from_each_other_and_beyond(tmp_path):
    learning = {"phase": "sft", "sft.optimizer.learning_rate": 1e-2}
    train_in_rounds(
        config_of(learning, learning, {**learning, "extrapolate": 0.5, "sft.optimizer.learning_rate": 0.0}), tmp_path
    )
    one, two, three = (params_of(tmp_path / f"round_0{number}") for number in (1, 2, 3))
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(c, b + 0.5 * (b - a), rtol=1e-5, atol=1e-6), one, two, three)


SOURCE = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"}]


def record(number, completion, *rewards):
    return {"prompt_id": number, "completion": completion, "rewards": list(rewards)}


def test_what_rounds_make_of_completions():
    steps = [
        [record(0, "x", 1.0, 0.0), record(0, "y", 0.0, 0.5), record(1, "z", 1.0, None), record(1, "w", None, None)],
        [record(0, "x", 1.0, 0.0), record(0, "v", 0.2, 0.9), record(1, "u", 0.5, 0.0), record(1, "t", 0.5, 0.0)],
    ]
    assert correct(SOURCE, steps, 1.0) == [SOURCE[0] | {"completion": "x"}, SOURCE[1] | {"completion": "z"}]
    assert best_and_worst(SOURCE, steps, 1.0) == [
        {"prompt": "a", "chosen": "x", "rejected": "y"},
        {"prompt": "a", "chosen": "v", "rejected": "x"},
    ]


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        (({"phase": "dpo"},), r"config.rounds\[0\].phase is 'dpo'; it must be one of"),
        (({"phase": "sft", "data": "best_and_worst"},), r"config.rounds\[0\].data is 'best_and_worst'; it must be one of"),
        (({"phase": "sft", "start": "last"},), r"config.rounds\[0\].start is 'last'"),
        (({"phase": "sft", "sft.step": 3},), "'sft.step', which is no key"),
    ],
)
def test_impossible_rounds_are_refused(rounds, message):
    with pytest.raises(ValueError, match=message):
        round_config(config_of(*rounds), 0)


def test_rounds_without_material_are_refused_and_plain_runs_have_none(tmp_path):
    with pytest.raises(ValueError, match="no RL round comes before it"):
        train_in_rounds(config_of({"phase": "sft", "data": "correct"}), tmp_path)
    with pytest.raises(ValueError, match="train_in_rounds"):
        loop.train(config_of({"phase": "sft"}), tmp_path / "plain")
    never = config_of(SAMPLED, {"phase": "sft", "data": "correct"})
    never.evaluation.success = 9.0
    with pytest.raises(ValueError, match=r"config.rounds\[1\].data is 'correct', and round 1 has sampled none"):
        train_in_rounds(never, tmp_path / "never")
    adapted = config_of({"phase": "sft"})
    adapted.network.adapter.pattern = "query"
    with pytest.raises(ValueError, match="rounds train whole networks"):
        round_config(adapted, 0)


def test_what_later_rounds_lack_is_said_before_the_first_one(tmp_path):
    learning = {"phase": "sft"}
    for last in ({"extrapolate": 0.5, "start": "first"}, {"data": "correct"}):
        with pytest.raises(ValueError, match=r"config.rounds\[2\]"):
            train_in_rounds(config_of(learning, learning, learning | last), tmp_path)
    with pytest.raises(ValueError, match=r"config.rounds\[1\].extrapolate is 0.5; it needs two rounds before it"):
        train_in_rounds(config_of(learning, learning | {"extrapolate": 0.5}), tmp_path)
    assert not list(tmp_path.iterdir())
