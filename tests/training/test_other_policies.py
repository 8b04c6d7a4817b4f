"""Runs whose methods look at other policies: a teacher, the policy before the step, a moving reference, greedy samples."""

import dataclasses
import json
import types

import numpy as np
import pytest
from training.tiny_runs import finish, finished, opened, quick_compilation, tiny_config  # noqa: F401

from jaxrl_llm import methods
from jaxrl_llm.data import Cursor
from jaxrl_llm.rollouts import requests_for
from jaxrl_llm.training import reinforcement
from jaxrl_llm.training.annotate import scoring_passes
from jaxrl_llm.training.config import check_config

pytestmark = pytest.mark.slow


def short(name, steps=2, **options):
    config = tiny_config("dr_grpo")
    config.method.name, config.method.options = name, {"samples": 4, **options}
    config.rl.steps = steps
    return config


def test_a_student_comes_nearer_to_its_teacher(tmp_path):
    teacher = finished("dr_grpo")
    config = short("gkd", steps=8)
    config.seed, config.teacher.directory = 1, str(teacher.workdir)
    config.rl.optimizer.learning_rate = 3e-3
    run = finish(config, tmp_path)
    distance = [record["divergence/teacher"] for record in run.metrics]
    assert distance[0] > 1e-3 and distance[-1] < 0.7 * distance[0]
    assert all(record["skipped"] == 0 for record in run.metrics)


def test_a_teacher_must_be_there_when_it_is_needed_and_only_then(tmp_path):
    config = short("gkd")
    with pytest.raises(ValueError, match="gkd: a method or reward needs a teacher; set config.teacher.directory"):
        check_config(config)
    config = short("dr_grpo")
    config.teacher.directory = str(finished("dr_grpo").workdir)
    with pytest.raises(ValueError, match="config.teacher.directory would change nothing: dr_grpo needs no teacher"):
        check_config(config)
    config = short("gkd")
    config.tokenizer, config.teacher.directory = "characters:0123456789+-*=;# ", str(finished("dr_grpo").workdir)
    with pytest.raises(ValueError, match="config.teacher.directory is .*, which has 1. tokens, the policy 1."):
        finish(config, tmp_path)


def test_what_the_policy_said_before_the_step(tmp_path):
    """On policy its statistics are the learner's own; candidates include every token that was sampled."""
    config = short("troll")
    with opened(config, tmp_path) as run:
        state = reinforcement.initial_state(run, run.network.params)
        examples, numbers, _ = run.draw(Cursor(), 4)
        collection = run.io(state.params, 0).sample(requests_for(examples, numbers, samples=4))
        found = reinforcement.make_annotate(run, None)(state, collection.rollouts, 0)
        ids, logp = found.extras["candidates"], found.extras["proximal_candidate_logp"]
        actions = collection.rollouts.mask > 0
        own = (ids == collection.rollouts.tokens[..., None])[actions]
        assert own.any(axis=-1).all()
        np.testing.assert_allclose(logp[actions][own], collection.rollouts.behavior_logp[actions], rtol=1e-4, atol=1e-4)
        assert ids.shape[-1] == run.network.config.vocab_size  # fewer than the 64 that are asked for


def test_a_moving_reference_is_the_policy_of_an_earlier_step(tmp_path):
    config = short("grpo", steps=3, kl_coefficient=0.1)
    config.rl.reference.every = 2
    run = finish(config, tmp_path)
    fixed = short("grpo", steps=3, kl_coefficient=0.1)
    other = finish(fixed, tmp_path / "fixed")
    # Step 2 still has the reference of the beginning; before step 3 it has become the policy.
    assert run.metrics[1]["reference_kl"] == other.metrics[1]["reference_kl"] > 0
    assert run.metrics[2]["reference_kl"] < 1e-9 < other.metrics[2]["reference_kl"]


def test_controllers_set_the_coefficients_of_the_next_step(tmp_path):
    config = short("skywork", steps=3, target=9.0, change=0.25)
    run = finish(config, tmp_path)
    # Nothing is known before the first step; afterwards the coefficient grows.
    terms = [record["loss/entropy_bonus"] for record in run.metrics]
    assert terms[0] == 0 and terms[1] < 0 and terms[2] < 1.5 * terms[1]


def test_an_interrupted_run_with_state_goes_on_exactly(tmp_path):
    """The moving reference is part of the checkpoint."""

    def config(steps):
        config = short("grpo", steps=steps, kl_coefficient=0.1)
        config.rl.reference.every, config.rl.optimizer.decay = 2, "constant"
        return config

    def of_training(run):
        return [{name: value for name, value in record.items() if "evaluation" not in name} for record in run.metrics]

    whole = finish(config(4), tmp_path / "whole")
    finish(config(3), tmp_path / "parts")
    assert of_training(finish(config(4), tmp_path / "parts")) == of_training(whole)


def test_impossible_references():
    config = short("grpo")
    config.rl.reference.share = 0.5
    with pytest.raises(ValueError, match="config.rl.reference.share would change nothing"):
        check_config(config)
    config.rl.reference.update(every=1, share=1.5)
    with pytest.raises(ValueError, match="share above 0 and at most 1"):
        check_config(config)


def test_needs_that_nobody_can_fill_are_refused_at_once():
    grpo = methods.get("grpo")
    with pytest.raises(ValueError, match="'grpo' needs a reference policy, and there is none"):
        scoring_passes(grpo, {})


def test_supervised_methods_that_sample_candidates(tmp_path):
    config = tiny_config("dr_grpo")
    config.sft.update(steps=3, method="otr", options={"count": 8})
    config.rl.steps = 0
    run = finish(config, tmp_path)
    assert [record["phase"] for record in run.metrics] == ["sft"] * 3
    assert all(record["gradient_norm"] > 0 and record["skipped"] == 0 for record in run.metrics)
    del config.sft.options["count"]
    config.sft.method = "grpo"
    with pytest.raises(ValueError, match="config.sft.method is 'grpo', which learns from samples; take one of .*'sft'"):
        check_config(config)


def test_greedy_samples_are_a_baseline(tmp_path):
    run = finish(short("remax"), tmp_path)
    assert all(record["greedy_reward"] is not None and record["skipped"] == 0 for record in run.metrics)
    assert all(record["logp_gap"] < 1e-4 for record in run.metrics)


def test_demonstrations_stand_among_the_samples(tmp_path):
    """Seven rows in eight are sampled; the gap of log-probabilities is that of the samples alone."""
    config = short("luffy", samples=3)
    config.rl.max_new_tokens = 24
    run = finish(config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "completions" / "step_000001.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * 4
    with opened(config, tmp_path / "other") as again:
        given = {example["completion"] for example in again.draw(Cursor(), 4)[0]}
    assert {row["completion"].rstrip() for row in rows[12:]} == given
    assert all(record["logp_gap"] < 1e-4 and record["gradient_norm"] > 0 for record in run.metrics)


def test_demonstrations_that_are_too_long_are_refused(tmp_path):
    config = short("luffy", samples=3)
    config.rl.max_new_tokens = 2
    with pytest.raises(ValueError, match="the completion of example 0 has .* tokens, more than max_new_tokens = 2"):
        finish(config, tmp_path)


def test_equal_answers_have_equal_numbers(tmp_path):
    with opened(short("grpo"), tmp_path) as run:
        examples, numbers, _ = run.draw(Cursor(), 1)
        collection = run.io(run.network.params, 0).sample(requests_for(examples, numbers, samples=4))
        texts = ["1+2#3", "3#3", "", "#4"]
        records = [record | {"completion": text} for record, text in zip(collection.records, texts, strict=True)]
        method = types.SimpleNamespace(needs={"answer"})
        found = reinforcement.with_answers(method, dataclasses.replace(collection, records=records)).extras["answer"]
    np.testing.assert_array_equal(found, [0, 0, -1, 1])


@pytest.mark.parametrize("name", ["pvpo", "a_star_po"])
def test_the_reference_policy_answers_too(name, tmp_path):
    assert methods.get(name).needs_reference
    config = short(name, anchors=3)
    run = finish(config, tmp_path)
    assert (tmp_path / "reference").exists()
    assert all(record["anchor_reward"] is not None and record["skipped"] == 0 for record in run.metrics)


@pytest.mark.parametrize("name", ["thr", "chord"])
def test_methods_whose_candidates_or_groups_the_loop_makes(name, tmp_path):
    """Candidates of whole groups, and demonstrations that have no part in any."""
    config = short(name, **({"warmup": 0} if name == "chord" else {}))
    config.rl.max_new_tokens = 24
    run = finish(config, tmp_path)
    assert all(record["skipped"] == 0 and np.isfinite(record["loss"]) for record in run.metrics)
    assert any(record["gradient_norm"] > 0 for record in run.metrics)
