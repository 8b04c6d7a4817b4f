"""The check of mechanisms: what it pairs, what equal budgets are, its tasks and configurations, and one pair that runs."""

import dataclasses

import numpy as np
import pytest
from benchmark_programs import benchmark

from jaxrl_llm.training.config import check_config


@pytest.fixture(scope="module")
def bench():
    with benchmark("mechanisms") as module:
        yield module


def row(method, seed, before, *measured, task="long_credit"):
    tokens, curve = zip(*measured, strict=True)
    return {"regime": task, "method": method, "seed": seed, "before": before, "tokens": list(tokens), "curve": list(curve)}


def test_runs_are_compared_up_to_the_tokens_that_both_have(bench):
    page = bench.mechanisms_page
    run = row("ppo", 0, 0.0, (10.0, 1.0), (20.0, 0.0))
    np.testing.assert_allclose(page.at_budget(run, 20.0), (0.5, 0.0))
    np.testing.assert_allclose(page.at_budget(run, 15.0), ((0.5 * 10 + 0.75 * 5) / 15, 0.5))
    results = [run, row("reinforce", 0, 0.0, (15.0, 0.3)), row("ppo", 1, 0.0, (5.0, 0.2)), row("grpo", 1, 0.0, (5.0, 0.2))]
    found = page.compared(results, bench.PAIRS["critic"])
    assert found.mean.seeds == 1 and found.budget == 15.0 and found.tokens == (20.0, 15.0)
    np.testing.assert_allclose([found.mean.difference, found.last.difference], [0.583333 - 0.15, 0.5 - 0.3], atol=1e-6)
    assert page.compared(results, bench.PAIRS["trees"]) is None


def test_evolution_is_compared_with_its_start(bench):
    results = [row("evolution_strategies", seed, 0.1, (10.0, 0.3), task="careless") for seed in range(3)]
    found = bench.mechanisms_page.compared(results, bench.PAIRS["evolution"])
    np.testing.assert_allclose([found.mean.difference, found.last.difference, found.last.half], [0.1, 0.2, 0.0], atol=1e-12)
    assert found.mean.seeds == 3


def test_each_run_of_a_pair_is_made_once_and_can_be(bench):
    cases = bench.cases(list(bench.PAIRS), [0, 1, 2])
    assert len(cases) == len(set(cases)) and ("grpo", 0, "rare_success") in cases
    for method, seed, name in cases:
        check_config(bench.configuration(bench.TASKS[name], method, seed, bench.ARMS[name][method]))
        assert bench.setting(name, method) is not None
    assert {(method, name) for name, arms in bench.ARMS.items() for method in arms} == {(m, name) for m, _, name in cases}
    assert bench.setting("long_credit", "gspo") is None is bench.setting("nowhere", "grpo")


@pytest.mark.parametrize("name", ["told", "mostly_unsolvable", "two_lengths"])
def test_tasks_are_what_they_say(bench, name):
    task = bench.TASKS[name]
    trained, held_out, shown = (bench.rows(task, split) for split in ("train", "test", "imitation"))
    assert len(trained) == task.prompts and not {line["prompt"] for line in trained} & {line["prompt"] for line in held_out}
    for line in held_out:
        assert line["right"].endswith("#" + line["answer"]) and len(line["right"]) == len(line["prompt"]) + 1
    assert max(len(line["prompt"]) for line in shown) == task.prompt_tokens
    lost = [line["domain"] != "solvable" for line in trained]
    assert np.mean(lost) == pytest.approx(task.unsolvable, abs=0.01)
    assert [line["answer"] == "none" for line in trained] == lost
    told = [line for line in shown if ";" in line["prompt"]]
    assert len(told) == pytest.approx(task.told * len(shown) / 4, abs=1) and all(
        line["prompt"].startswith(line["completion"]) for line in told
    )
    assert {len(line["prompt"]) for line in held_out} == {task.regime.chain + 1} | ({task.short + 1} if task.short else set())


def test_a_pair_runs_and_has_its_line_on_the_page(bench, tmp_path, monkeypatch):
    tiny = dataclasses.replace(bench.CARELESS, chain=3, steps=1, imitation=1)
    monkeypatch.setitem(bench.TASKS, "rare_success", bench.Task(tiny, prompts=32))
    monkeypatch.setattr(bench.regimes, "TRAINING", 64)
    monkeypatch.setattr(bench.regimes, "HELD_OUT", 16)
    monkeypatch.setattr(bench, "MEASUREMENTS", 1)
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(bench.mechanisms_page, "DOCS", tmp_path / "docs")
    cases, made = bench.cases(["hints"], [0]), []

    def compete(*case):
        made.append(case)
        return bench.compete(tmp_path, *case)

    for _ in range(2):  # of which the second finds all done
        bench.paired.finish(tmp_path, cases, bench.setting, compete, 0.0)
    results = bench.paired.known_results(tmp_path / "results.jsonl", bench.setting)
    assert [line["method"] for line in results] == ["grpo", "ghpo"] and len(made) == 2
    assert all(len(line["curve"]) == len(line["tokens"]) == 1 for line in results)
    grpo, ghpo = results
    assert 0 < grpo["tokens"][0] <= 128 * (3 + 3) and grpo["acted"] == {} and "hints/asked" in ghpo["acted"]
    bench.mechanisms_page.write(results, bench.PAIRS.values(), bench.TASKS)
    page = (tmp_path / "docs" / "mechanisms.md").read_text()
    assert "| hints | rare_success | ghpo | grpo | " in page and "1 seeds)* | nothing yet: " in page
    assert "| trees | long_credit | tree_po | grpo | not run |" in page
