"""Definitions of everything that is logged, and the files that hold it."""

import json
import math

import pytest
from training.tiny_preferences import finished_reward_model
from training.tiny_runs import METHOD_OPTIONS, finished, finished_both_phases, quick_compilation  # noqa: F401

from jaxrl_llm.training import metrics
from jaxrl_llm.training.report import SHOWN


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHOD_OPTIONS))
def test_every_name_that_a_method_logs_is_defined(name):
    logged = {key for record in finished(name).metrics for key in record}
    assert not {key for key in logged if not metrics.defined(key)}


@pytest.mark.slow
def test_every_name_that_the_supervised_phase_logs_is_defined():
    logged = {key for record in finished_both_phases().metrics for key in record}
    assert not {key for key in logged if not metrics.defined(key)}


@pytest.mark.slow
def test_no_definition_without_a_metric():
    """Every plain name of the table is logged by some run; those of experts and of further methods are so in other tests."""
    runs = [*map(finished, METHOD_OPTIONS), finished_both_phases(), finished_reward_model()]
    logged = {key for run in runs for record in run.metrics for key in record}
    plain = {name for name in metrics.DEFINITIONS if "*" not in name}
    assert plain - {"expert_load_max"} - OF_OTHER_METHODS <= logged


# What a step of each method measures is looked up in `methods.test_methods`; of samples ahead in `test_ahead`, of episodes in
# `test_environments`.
OF_OTHER_METHODS = {
    "anchor_reward", "begun/tokens", "constrained_kl", "critic/deviation", "critic/variance",
    "episode/calls", "episode/cut", "episode/failed", "episode/turns",
    "evaluation/label_accuracy", "evaluation/label_accuracy_error", "evolution/best", "evolution/spread", "exits",
    "fast/loss", "greedy_reward", "hindsight/rows", "label_accuracy", "labelled/count", "labelled/reward",
    "log_partition", "policy_entropy", "ranking_left_out", "resumed/waiting", "reward_center", "reward_desirable",
    "reward_reference_point", "reward_undesirable", "speculative/kept", "spoiled/wrong", "stage", "staleness", "taught",
    "top_entropy", "tree/leaves", "values/states",
}  # fmt: skip


def test_undefined_names_are_told_apart():
    assert metrics.defined("reward/some.module:function") and metrics.defined("evaluation/pass@64_error")
    assert not metrics.defined("nosuch") and not metrics.defined("evaluation/nosuch") and not metrics.defined("rewards")


def test_what_the_display_shows_is_defined():
    assert all(metrics.defined(name) for name in SHOWN if name != "tokens_per_second")


def test_the_table_has_a_row_for_each():
    lines = metrics.definitions_table().splitlines()
    assert lines[:2] == ["| metric | definition |", "|---|---|"] and len(lines) == 2 + len(metrics.DEFINITIONS)


def test_numbers_that_are_not_finite_become_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics.append_jsonl(path, {"step": 1, "a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.5, "e": None})
    text = path.read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert metrics.read_jsonl(path) == [{"step": 1, "a": None, "b": None, "c": None, "d": 0.5, "e": None}]


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 0.')
    assert [record["step"] for record in metrics.read_jsonl(path)] == [1, 2]
    metrics.keep_until(path, 10)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert metrics.read_jsonl(tmp_path / "nosuch.jsonl") == []


def test_keep_until(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(1, 6):
        metrics.append_jsonl(path, {"step": step, "loss": step / 3})
    lines = path.read_bytes().splitlines(keepends=True)
    metrics.keep_until(path, 3)
    assert path.read_bytes() == b"".join(lines[:3])
    metrics.keep_until(path, 0)
    assert path.read_bytes() == b""
    metrics.keep_until(tmp_path / "nosuch.jsonl", 3)
    assert not (tmp_path / "nosuch.jsonl").exists()


def test_atomic_writes_leave_the_old_file_where_they_fail(tmp_path):
    path = tmp_path / "deep" / "table.jsonl"
    metrics.write_atomically(path, ["one\n", "two\n"])
    assert path.read_text() == "one\ntwo\n"

    def parts():
        yield "three\n"
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        metrics.write_atomically(path, parts())
    assert path.read_text() == "one\ntwo\n"
    metrics.write_atomically(path, ["four\n"])
    assert path.read_text() == "four\n" and [entry.name for entry in path.parent.iterdir()] == ["table.jsonl"]


def test_tables_keep_text_as_it_is(tmp_path):
    rows = [{"completion": "naïve → 3 €\nnext", "rewards": [None, 0.5]}]
    metrics.write_table(tmp_path / "rows.jsonl", rows)
    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert "naïve → 3 €" in text and [json.loads(line) for line in text.splitlines()] == rows
