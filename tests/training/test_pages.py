"""The report of runs: what is computed of them, and the page in a browser."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from jaxrl_llm import cli
from jaxrl_llm.training import default_config, pages

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def write_run(folder, seed=0, clip=0.2, completions=3, steps=4):
    """A run as the loop leaves it; texts in it try to end the page."""
    (folder / "completions").mkdir(parents=True)
    config = default_config()
    config.seed, config.rl.steps, config.method.options = seed, steps, {"clip_high": clip}
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "summary.json").write_text(json.dumps({"measure": "accuracy", "accuracy_before": 0.1, "accuracy_after": 0.5}))
    lines, times = [], []
    for step in range(1, steps + 1):
        lines.append({"step": step, "phase": "rl", "reward": step + 10.0 * clip + seed, "entropy": None, "opponent/loss": 0.5})
        lines[-1] |= {"evaluation/accuracy": step / 10 + seed, "evaluation/accuracy_error": 0.05} if step % 2 == 0 else {}
        times.append({"step": step, "sample": 1.0, "update": 2.0})
        record = {"prompt_id": 7, "prompt": "</script><b>", "completion": f"step {step} & more", "rewards": [1.0, None, 0.5]}
        record |= {"length": 5, "finish_reason": "stop", "turns": 2}
        table = folder / "completions" / f"step_{step:06d}.jsonl"
        table.write_text("".join(json.dumps(record) + "\n" for _ in range(completions)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in times))
    failure = {"step": 1, "name": "maths", "row": 0, "reason": "too late", "timed_out": True}
    (folder / "reward_failures.jsonl").write_text(json.dumps(failure) + "\n" + json.dumps(failure) + "\n")
    return folder


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / f"run{clip}_{seed}", seed, clip) for clip in (0.2, 0.3) for seed in (0, 2)]


def part(page, name):
    return page.partition(f'id="{name}"')[2].partition(">")[2].partition("</script>")[0]


def test_curves_have_means_and_intervals_over_seeds(runs):
    data = json.loads(part(pages.report(runs), "data"))
    assert [(group["name"], group["runs"]) for group in data["groups"]] == [
        ("clip_high=0.2", [0, 1]),
        ("clip_high=0.3", [2, 3]),
    ]
    curve = next(curve for curve in data["curves"] if curve["name"] == "reward")
    first = curve["rows"][0]
    # Two seeds, 3.0 and 5.0: their mean, and t(1) = 12.706 times a standard error of 1.
    assert (first["step"], first["value"], first["runs"]) == (1, 4.0, 2)
    assert first["high"] - 4.0 == pytest.approx(12.706)
    assert {item["key"] for item in data["differences"]} == {"seed", "method.options.clip_high"}
    told = data["comparisons"][1]
    assert told["pairs"] == 2 and told["difference"] == pytest.approx(0.0) and told["difference_half"] == 0.0
    assert [curve["name"] for curve in data["curves"]][:2] == ["evaluation/accuracy", "reward"]  # and no curve of entropies


def test_one_run_has_the_intervals_that_it_measured(runs):
    data = json.loads(part(pages.report(runs[:1]), "data"))
    accuracy = data["curves"][0]["rows"]
    assert [row["step"] for row in accuracy] == [2, 4] and accuracy[0]["high"] - accuracy[0]["low"] == pytest.approx(0.1)
    assert data["runs"][0]["faults"] == [{"name": "maths", "reason": "too late", "count": 2}]
    assert "strategy    = grouped()" in data["runs"][0]["composition"]


def test_runs_of_one_name_are_told_apart_by_the_folders_they_lie_in(tmp_path):
    folders = [write_run(tmp_path / f"{parent}/run", clip=clip) for parent, clip in (("one", 0.2), ("two", 0.3))]
    data = json.loads(part(pages.report(folders), "data"))
    assert [run["name"] for run in data["runs"]] == ["one/run", "two/run"]
    curve = next(curve for curve in data["curves"] if curve["name"] == "reward")
    assert [(row["group"], row["value"]) for row in curve["rows"] if row["step"] == 1] == [("one/run", 3.0), ("two/run", 4.0)]
    with pytest.raises(ValueError, match="run is given twice"):
        pages.report([folders[0], folders[0]])


def test_intervals_are_those_of_student():
    assert pages.interval([1.0]) == 0.0 and pages.interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / np.sqrt(3))
    assert pages.interval([0.0, 1.0] * 10) == pytest.approx(1.96 * np.std([0.0, 1.0] * 10, ddof=1) / np.sqrt(20))


def test_of_too_many_completions_steps_at_even_distances_are_kept(tmp_path):
    folder = write_run(tmp_path / "run", completions=10, steps=9)
    kept, left_out = pages._completions(folder / "completions", 30)
    assert [step["step"] for step in kept] == [3, 6, 9] and left_out == 60
    assert kept[0]["rows"][0] == ["</script><b>", "step 3 & more", 1.5, 5, "stop", 7, {"rewards": [1.0, None, 0.5], "turns": 2}]


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "is no run: it has no config.json" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
def test_the_page_opens_in_a_browser(runs, tmp_path):
    assert cli.main(["report", *map(str, runs), f"--out={tmp_path / 'report.html'}"]) == 0
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += [
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    done = subprocess.run(
        [CHROMIUM, *options, f"file://{tmp_path / 'report.html'}"], capture_output=True, text=True, timeout=120
    )
    assert 'data-ready="48"' in done.stdout and "48 of 48, page 1 of 2" in done.stdout
    assert done.stdout.count("<svg") >= 3 and "&lt;/script&gt;&lt;b&gt;" in done.stdout
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stderr
