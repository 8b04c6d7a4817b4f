"""Whole runs: every method for two steps, both phases, meshes, seeds, files."""

import json
import signal

import jax
import numpy as np
import pytest
from training.tiny_chat_model import BEGIN, END
from training.tiny_runs import (
    METHOD_OPTIONS,
    PROBLEMS,
    finish,
    finished,
    finished_both_phases,
    finished_grade_school,
    grade_school_config,
    opened,
    quick_compilation,  # noqa: F401
    tiny_config,
)

from jaxrl_llm import data, methods, rewards
from jaxrl_llm.training import checkpoint, loop, metrics, phases, reinforcement
from jaxrl_llm.training.run import warn_of_lost_steps
from jaxrl_llm.training.timing import PARTS


def start_params(config, workdir):
    with opened(config, workdir) as run:
        return jax.device_get(reinforcement.initial_state(run, run.network.params).params)


def final_params(run, like):
    return jax.device_get(checkpoint.restore_params(run.workdir / "checkpoints", like))


def largest_change(one, other):
    return max(float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_the_table_of_runs_has_methods_on_samples():
    assert set(METHOD_OPTIONS) <= {name for name in methods.names() if methods.get(name).learns_from == "samples"}


# One without and one with a critic; the others are runs of the slow part.
QUICK_ONES = ("grpo", "ppo")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK_ONES else pytest.mark.slow) for name in sorted(METHOD_OPTIONS)]
)
def test_every_method_runs_and_learns(name, tmp_path):
    run = finished(name)
    assert [record["step"] for record in run.metrics] == [1, 2] and run.summary["method"] == name
    for record in run.metrics:
        numbers = {key: value for key, value in record.items() if key != "phase"}
        assert all(value is not None and np.isfinite(value) for value in numbers.values()), record
        assert record["logp_gap"] <= 1e-4 and record["skipped"] == 0
        # Methods without an importance ratio report none.
        assert record["gradient_norm"] > 0 and abs(record.get("ratio/mean", 1.0) - 1) < 1e-5
    before = start_params(run.config, tmp_path / name)
    after = final_params(run, before)
    assert largest_change(before, after) > 1e-3
    if methods.get(name).needs_critic:
        assert largest_change(before["policy"], after["policy"]) > 1e-3
        assert largest_change(before["critic"], after["critic"]) > 1e-3
        assert np.abs(after["critic"]["value_head"]).max() > 0
    assert not (run.workdir / "warnings.jsonl").exists()


def test_both_phases():
    run = finished_both_phases()
    assert [record["phase"] for record in run.metrics] == ["sft"] * 3 + ["rl"] * 2
    assert [record["step"] for record in run.metrics] == [1, 2, 3, 4, 5]
    losses = [record["loss"] for record in run.metrics[:3]]
    assert losses[2] < losses[0]
    # The reference is the policy at the beginning of the RL phase: the penalty starts at zero, and grows.
    assert run.metrics[3]["reference_kl"] == pytest.approx(0, abs=1e-9) and run.metrics[4]["reference_kl"] > 1e-9
    # Held-out accuracy is measured at the end of each phase.
    measured = ["evaluation/accuracy" in record for record in run.metrics]
    assert measured == [False, False, True, False, True]
    assert run.summary["accuracy_before"] == run.metrics[2]["evaluation/accuracy"]
    assert run.summary["accuracy_after"] == run.metrics[4]["evaluation/accuracy"]


def test_files_of_a_run():
    run = finished_both_phases()
    summary = json.loads((run.workdir / "summary.json").read_text())
    assert summary == run.summary
    assert {"accuracy_before", "accuracy_after", "wall_seconds"} <= summary.keys()
    assert summary["wall_seconds"] > 0 and summary["steps"] == 5 and summary["seed"] == 0
    timing = metrics.read_jsonl(run.workdir / "timing.jsonl")
    assert [record["step"] for record in timing] == [1, 2, 3, 4, 5]
    for record in timing:
        assert record.keys() - {"step", "phase"} <= metrics.TIMINGS.keys()
        assert sum(record[part] for part in (*PARTS, "idle")) == pytest.approx(record["seconds"], rel=1e-6)
    assert all((record["sample"] > 0) == (record["step"] > 3) for record in timing)
    assert [("evaluate" in record) for record in timing] == [False, False, True, False, True]
    # The first step of each phase compiles.
    assert timing[0]["compilations"] > 0 and timing[3]["compilations"] > 0
    assert json.loads((run.workdir / "config.json").read_text())["seed"] == 0
    # Two steps of RL, 4 prompts with 4 samples each.
    tables = {path.name: metrics.read_jsonl(path) for path in (run.workdir / "completions").iterdir()}
    assert set(tables) == {"step_000004.jsonl", "step_000005.jsonl"}
    for rows in tables.values():
        assert len(rows) == 16
        for row in rows:
            assert row["prompt"].endswith("=") and len(row["rewards"]) == 2 and 1 <= row["length"] <= 12
            assert row["finish_reason"] in ("stop", "length")
            assert row["rewards"][1] == pytest.approx(1 / (1 + row["length"]))
    means = np.mean([row["rewards"] for row in tables["step_000004.jsonl"]], axis=0)
    assert run.metrics[3]["reward/arithmetic"] == pytest.approx(means[0])
    assert run.metrics[3]["reward/training.tiny_rewards:shortness"] == pytest.approx(means[1])
    assert run.metrics[3]["reward"] == pytest.approx(means.sum())
    assert run.metrics[3]["length/mean"] == pytest.approx(np.mean([row["length"] for row in tables["step_000004.jsonl"]]))


def test_a_finished_run_gives_its_summary_again_and_writes_nothing_new():
    run = finished_both_phases()
    before = (run.workdir / "metrics.jsonl").read_bytes()
    again = loop.train(run.config, run.workdir)
    assert (run.workdir / "metrics.jsonl").read_bytes() == before
    for name in ("accuracy_before", "accuracy_after", "steps", "method", "seed"):
        assert again[name] == run.summary[name]


def test_a_run_of_the_same_seed_is_the_same_and_of_another_is_not(tmp_path):
    first = finished("dr_grpo")
    second = finish(tiny_config("dr_grpo"), tmp_path / "same")
    assert (first.workdir / "metrics.jsonl").read_bytes() == (second.workdir / "metrics.jsonl").read_bytes()
    config = tiny_config("dr_grpo")
    config.seed = 1
    third = finish(config, tmp_path / "other")
    tables = [metrics.read_jsonl(run.workdir / "completions" / "step_000001.jsonl") for run in (first, second, third)]
    assert tables[0] == tables[1]
    assert [row["prompt"] for row in tables[0]] != [row["prompt"] for row in tables[2]]
    assert [row["completion"] for row in tables[0]] != [row["completion"] for row in tables[2]]


@pytest.mark.slow
def test_resuming_with_more_steps_equals_a_longer_run(tmp_path):
    """`rl.steps` may be raised: with a constant learning rate the run goes on as if it had been asked for from the start."""
    config = tiny_config("grpo", kl_coefficient=0.1)
    config.rl.steps = 1
    finish(config, tmp_path / "resumed")
    config.rl.steps = 2
    finish(config, tmp_path / "resumed")
    # Not the shared run of another module, whose programs may have been compiled with other settings.
    longer = finish(config, tmp_path / "longer").metrics
    resumed = metrics.read_jsonl(tmp_path / "resumed" / "metrics.jsonl")
    for mine, theirs in zip(resumed, longer, strict=True):
        assert {name: (mine[name], theirs[name]) for name in mine.keys() & theirs.keys() if mine[name] != theirs[name]} == {}


@pytest.mark.slow
def test_a_mesh_changes_nothing_but_rounding(tmp_path):
    config = tiny_config("dr_grpo")
    config.mesh.update(data=2, fsdp=-1)
    for mine, theirs in zip(finish(config, tmp_path).metrics, finished("dr_grpo").metrics, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"phase"}:
            np.testing.assert_allclose(mine[name], theirs[name], rtol=2e-4, atol=2e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "sizes"), [("grpo", {"fsdp": 4}), ("ppo", {"fsdp": 2, "context": 2})])
def test_a_mesh_for_reference_and_critic(method, sizes, tmp_path):
    config = tiny_config(method, **METHOD_OPTIONS[method])
    config.mesh.update(**sizes, tensor=2, sampling_tensor=4)
    config.rl.micro_batches = 2
    for mine, theirs in zip(finish(config, tmp_path).metrics, finished(method).metrics, strict=True):
        for name in mine.keys() - {"phase"}:
            np.testing.assert_allclose(mine[name], theirs[name], rtol=2e-4, atol=2e-6, err_msg=name)


def test_evaluation_happens_when_it_is_due(tmp_path):
    config = tiny_config("dr_grpo")
    config.rl.steps = 3
    config.evaluation.every = 2
    run = finish(config, tmp_path)
    assert ["evaluation/accuracy" in record for record in run.metrics] == [False, True, True]


@pytest.mark.slow
def test_the_best_checkpoint_by_a_metric_is_kept(tmp_path, monkeypatch):
    """The metric need not be measured at every checkpoint, and the last checkpoint of a run has it like any other."""
    accuracy, saved, save, log = {0: 0.0, 2: 0.9, 4: 0.1}, {}, checkpoint.save, loop._log
    monkeypatch.setattr(checkpoint, "save", lambda *given: saved.update({given[1]: given[4]}) or save(*given))
    monkeypatch.setattr(
        phases, "evaluate_samples", lambda run, _, params, step, state=None: {"evaluation/accuracy": accuracy[step]}
    )
    config = tiny_config("dr_grpo")
    config.evaluation.every = 2
    config.checkpoint.update(every=1, keep=1, best_metric="evaluation/accuracy")
    finish(config, tmp_path)
    config.rl.steps = 4

    def log_and_stop(run, files, progress, *rest):
        log(run, files, progress, *rest)
        if progress.step == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop, "_log", log_and_stop)
    with pytest.raises(loop.Stopped, match="by SIGTERM after step 3"):
        finish(config, tmp_path)
    finish(config, tmp_path)
    # What was not measured at the very step of a checkpoint is not saved with it.
    assert saved == {step: {"evaluation/accuracy": accuracy[step]} if step in accuracy else {} for step in range(5)}
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {2, 4}


def test_a_gap_between_sampler_and_learner_is_reported(tmp_path, caplog):
    config = tiny_config("dr_grpo")
    config.rl.max_logp_gap = 0.0
    run = finish(config, tmp_path)
    warnings = metrics.read_jsonl(tmp_path / "warnings.jsonl")
    assert [(warning["step"], *warning.keys() & {"logp_gap", "evaluation/logp_gap"}) for warning in warnings] == [
        (1, "logp_gap"),
        (2, "logp_gap"),
        (2, "evaluation/logp_gap"),
    ]
    assert warnings[0] == {"step": 1, "logp_gap": run.metrics[0]["logp_gap"], "bound": 0.0}
    assert 0 < run.metrics[1]["evaluation/logp_gap"] < 1e-4
    assert "nat on the evaluation's samples at step 2" in caplog.text
    assert "sampler and learner differ" in caplog.text


def test_failing_rewards_are_missing_values_and_never_stop_a_run(tmp_path):
    config = tiny_config("dr_grpo")
    config.rewards.names = ("training.tiny_rewards:shortness", "training.tiny_rewards:broken")
    run = finish(config, tmp_path)
    assert all(record["reward_missing"] == 0.5 for record in run.metrics)
    assert all(record["reward/training.tiny_rewards:broken"] is None for record in run.metrics)
    assert all(record["gradient_norm"] > 0 for record in run.metrics)
    failures = metrics.read_jsonl(tmp_path / "reward_failures.jsonl")
    assert failures and all("no mood to judge" in json.dumps(failure) for failure in failures)


@pytest.mark.slow
def test_stop_strings_end_completions(tmp_path):
    config = tiny_config("dr_grpo")
    config.rl.stop_strings = ("3",)
    run = finish(config, tmp_path)
    assert all(record["logp_gap"] <= 1e-4 for record in run.metrics)
    rows = metrics.read_jsonl(tmp_path / "completions" / "step_000001.jsonl")
    found = [row for row in rows if "3" in row["completion"]]
    assert found and all(row["completion"].index("3") == len(row["completion"]) - 1 for row in found)
    assert all(row["finish_reason"] == "stop" for row in found)


def test_tensorboard_gets_every_number(tmp_path):
    config = tiny_config("dr_grpo")
    config.rl.steps = 1
    config.log.trackers = ("tensorboard",)
    finish(config, tmp_path)
    content = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    for name in metrics.read_jsonl(tmp_path / "metrics.jsonl")[0].keys() - {"step", "phase"}:
        assert name.replace(":", "_").encode() in content, name


# ---- grade-school maths: rows as in the data set, a checkpoint with a chat template


@pytest.mark.slow
def test_grade_school_maths():
    """Both steps have the prompts of the data set, and what the verifier says."""
    run = finished_grade_school()
    assert [record["step"] for record in run.metrics] == [1, 2]
    assert all(record["logp_gap"] <= 1e-4 for record in run.metrics)
    assert not (run.workdir / "warnings.jsonl").exists()
    solutions, suffix = dict(PROBLEMS), run.config.task.suffix
    tables = [metrics.read_jsonl(run.workdir / "completions" / f"step_00000{step}.jsonl") for step in (1, 2)]
    for rows in tables:
        assert len(rows) == 8
        for row in rows:
            assert row["prompt"].endswith(suffix)
            assert row["answer"] == solutions[row["prompt"].removesuffix(suffix)]
            assert row["rewards"][0] == rewards.gsm8k([""], [row["completion"]], answer=[row["answer"]])[0]
            assert row["rewards"][1] == len(row["completion"]) % 2
    # Five problems, two a step: no problem comes twice in the first two steps.
    assert len({row["prompt"] for rows in tables for row in rows}) == 4
    for record, rows in zip(run.metrics, tables, strict=True):
        assert record["reward/gsm8k"] == pytest.approx(np.mean([row["rewards"][0] for row in rows]))


@pytest.mark.slow
def test_grade_school_maths_goes_on_where_it_stopped(tmp_path):
    config = grade_school_config()
    for steps in (1, 2):
        config.rl.steps = steps
        resumed = finish(config, tmp_path)
    whole = finished_grade_school()
    keep = ("loss", "reward", "gradient_norm", "entropy", "length/mean", "tokens")
    for mine, theirs in zip(resumed.metrics, whole.metrics, strict=True):
        assert [mine[name] for name in keep] == [theirs[name] for name in keep]
    tables = [(run.workdir / "completions" / "step_000002.jsonl").read_text() for run in (resumed, whole)]
    assert tables[0] == tables[1]


def test_grade_school_prompts_are_written_by_the_template(tmp_path):
    config = grade_school_config()
    with opened(config, tmp_path) as run:
        ids = data.encode_prompt(run.tokenizer, run.source[0]["prompt"])
        text = f"{BEGIN}user\n{PROBLEMS[0][0]}{config.task.suffix}{END}\n{BEGIN}assistant\n"
        assert run.tokenizer.decode(ids, skip_special_tokens=False) == text
        # Special tokens are one id each, and both ends of a text stop a completion.
        assert ids.count(run.tokenizer.eos_id) == 1 and len(run.tokenizer.stop_ids) == 2
        texts = ["36 - 11 = 25\n#### 25", "It is 25.", "#### 26", "no idea"]
        found = run.scorer(("gsm8k",), 0)[0]([PROBLEMS[0][0]] * 4, texts, {"answer": [PROBLEMS[0][1]] * 4})
        np.testing.assert_array_equal(found[:, 0], [1, 1, 0, 0])


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh(tmp_path, capsys):
    """The same prompts and samples, and numbers equal up to rounding."""
    config = tiny_config("grpo", kl_coefficient=0.1)
    config.mesh.update(fsdp=4, tensor=2)
    config.rl.steps = 1
    finish(config, tmp_path / "moved")
    config.mesh.update(data=2, fsdp=1, expert=2, tensor=2, sampling_tensor=1)
    config.rl.steps, config.log.live = 2, True
    moved = finish(config, tmp_path / "moved")
    assert "another mesh than before" in capsys.readouterr().out
    config.log.live = False
    stayed = finish(config, tmp_path / "stayed")
    mine, theirs = (metrics.read_jsonl(run.workdir / "metrics.jsonl") for run in (moved, stayed))
    for one, other in zip(mine, theirs, strict=True):
        for name in one.keys() & other.keys() - {"phase"}:
            np.testing.assert_allclose(one[name], other[name], rtol=2e-4, atol=2e-6, err_msg=name)
    tables = [metrics.read_jsonl(run.workdir / "completions" / "step_000002.jsonl") for run in (moved, stayed)]
    assert [(row["prompt"], row["completion"]) for row in tables[0]] == [
        (row["prompt"], row["completion"]) for row in tables[1]
    ]


@pytest.mark.parametrize(
    ("dtype", "rate", "warned"), [("bfloat16", 1e-6, True), ("bfloat16", 1e-3, False), ("float32", 1e-6, False)]
)
def test_parameters_too_coarse_for_the_steps_are_named(dtype, rate, warned, caplog):
    config = tiny_config("grpo")
    config.network.param_dtype, config.rl.optimizer.learning_rate = dtype, rate
    warn_of_lost_steps(config)
    assert ("param_dtype is bfloat16 and config.rl.optimizer.learning_rate 1e-06" in caplog.text) is warned


def test_an_address_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="s3://bucket/run is no folder of this machine; mount the bucket"):
        loop.train(tiny_config("grpo"), "s3://bucket/run")
    assert not list(tmp_path.iterdir())
