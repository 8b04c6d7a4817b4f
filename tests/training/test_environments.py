"""Runs whose policy talks with an environment, or serves agents."""

import json

import numpy as np
import pytest
from training.tiny_chat_model import write_tiny_chat_model
from training.tiny_runs import finish, tiny_config

from jaxrl_llm.training import loop
from jaxrl_llm.training.config import check_config


def playing(name, method="grpo", **options):
    config = tiny_config(method, **options)
    config.environment.name = f"training.tiny_environments:{name}"
    config.environment.turn_tokens = 4
    config.rewards.names = ("environment",)
    config.rl.update(max_new_tokens=16, prompts=2, row_tokens=0)
    return config


def test_every_method_plays(tmp_path):
    done = finish(playing("twice", "gigpo"), tmp_path)
    assert [own["episode/turns"] for own in done.metrics] == [2.0, 2.0]
    assert all(own["skipped"] == 0 and own["episode/failed"] == 0 and own["episode/calls"] == 2 for own in done.metrics)
    # The sampler and the learner read the same text: replies within the rows too.
    assert max(own["logp_gap"] for own in done.metrics) < 1e-4
    lines = [json.loads(line) for line in (tmp_path / "completions" / "step_000001.jsonl").read_text().splitlines()]
    assert {line["ended"] for line in lines} == {"done"} and all(len(line["turn_rewards"]) == 2 for line in lines)


@pytest.mark.slow
def test_faults_of_an_environment_cost_their_rows(tmp_path):
    config = playing("faulty")
    config.rewards.deadline_seconds = 4.0
    done = finish(config, tmp_path)
    assert 0 < done.metrics[0]["episode/failed"] < 1 and done.metrics[0]["skipped"] == 0
    told = (tmp_path / "reward_failures.jsonl").read_text()
    assert "the world broke" in told and "environment.step" in told


def test_environments_that_cannot_be_are_refused_by_name():
    config = playing("twice")
    config.environment.name = ""
    with pytest.raises(ValueError, match=r"config\.environment would change nothing"):
        check_config(config)
    config = tiny_config()
    config.rewards.names = ("environment",)
    with pytest.raises(ValueError, match=r"set config\.environment\.name"):
        check_config(config)


def test_an_environment_that_cannot_be_imported_is_called_one(tmp_path):
    with pytest.raises(ValueError, match=r"^config\.environment\.name 'training\.tiny_environments:none' cannot be imported"):
        loop.train(playing("none"), tmp_path)


def test_what_nobody_serves_or_would_change_nothing_is_refused(tmp_path):
    config = playing("asker")
    with pytest.raises(ValueError, match="environment.turn_tokens would change nothing"):
        loop.train(config, tmp_path)
    config.environment.turn_tokens = 0
    config.rl.update(staleness=1, in_flight=4)
    with pytest.raises(ValueError, match=r"set config\.rl\.in_flight to 0"):
        loop.train(config, tmp_path)
    config = playing("twice")
    config.environment.by = ("policy", "reference")
    with pytest.raises(ValueError, match="2 names, and .* has 1 roles"):
        loop.train(config, tmp_path)


@pytest.mark.slow
def test_agents_are_served_and_learned_from(tmp_path):
    write_tiny_chat_model(tmp_path / "model")
    config = playing("asker")
    config.environment.turn_tokens = 0
    config.tokenizer, config.network.directory = "", str(tmp_path / "model")
    rows = [{"prompt": "?", "question": text} for text in ("How many rolls are left?", "How much juice is there?")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.task.update(source="jsonl", max_prompt_tokens=40)
    config.task.options = {"path": str(path)}
    config.task.test_options = {}
    config.rewards.workers = 2
    config.rl.update(max_new_tokens=80)
    done = finish(config, tmp_path / "run")
    assert all(own["skipped"] == 0 and own["episode/failed"] == 0 for own in done.metrics)
    assert max(own["logp_gap"] for own in done.metrics) < 1e-4
    assert np.isfinite([own["loss"] for own in done.metrics]).all()
