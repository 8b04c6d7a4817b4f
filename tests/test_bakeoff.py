"""The bake-off: what it pairs, what its intervals are, what a cut file loses, which verdicts flip, and its configurations."""

import itertools
import json

import numpy as np
import pytest
from benchmark_programs import benchmark

from jaxrl_llm.training.config import check_config

NAMES = ("long_credit", "noisy_verifier", "rare_success", "off_policy", "diversity", "length")


@pytest.fixture(scope="module")
def bench():
    with benchmark("bakeoff") as module:
        yield module


def row(method, seed, *curve, regime="length"):
    return {"regime": regime, "method": method, "seed": seed, "curve": list(curve)}


def test_differences_are_those_of_equal_seeds(bench):
    results = [row("grpo", 2, 0.5, 0.7), row("grpo", 0, 0.1, 0.3), row("rloo", 0, 0.2, 0.6), row("rloo", 2, 0.6, 0.4)]
    results += [row("rloo", 1, 1.0), row("grpo", 3, 1.0), row("rloo", 0, 0.9, regime="diversity")]
    results += [{"regime": "length", "method": "rloo", "seed": 3, "failed": "ValueError: x"}]
    np.testing.assert_allclose(bench.bakeoff_page.paired(results, "length", "rloo"), [0.2, -0.1])
    assert bench.bakeoff_page.paired(results, "length", "gspo") == []
    assert set(bench.bakeoff_page.cells(results, ["grpo", "rloo", "gspo"])) == {("rloo", "length")}


@pytest.mark.parametrize(("values", "quantile"), [((0.02, 0.05, 0.03), 4.302653), ((0.1, -0.1), 12.706205)])
def test_intervals_are_those_of_student(bench, values, quantile):
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    cell = bench.bakeoff_page.interval(values)
    np.testing.assert_allclose(cell.difference, mean, atol=1e-12)
    np.testing.assert_allclose(cell.half, quantile * (variance / len(values)) ** 0.5, rtol=1e-6)


def test_only_complete_cells_are_told_apart(bench):
    interval = bench.bakeoff_page.interval
    assert interval([0.10, 0.11, 0.12]).distinguishable
    assert not interval([0.10, 0.11]).distinguishable  # though its interval may leave zero out
    assert not interval([0.1, -0.2, 0.3]).distinguishable
    assert not interval([0.0, 0.0, 0.0]).distinguishable
    assert np.isnan(interval([0.1]).half) and interval([]).seeds == 0


def test_a_cut_file_loses_its_last_line_alone(bench, tmp_path):
    path, setting = tmp_path / "results.jsonl", bench.setting("length", "grpo")
    done = [row(name, 0, 0.5) | {"setting": setting} for name in ("grpo", "rloo")]
    path.write_text("".join(json.dumps(line) + "\n" for line in done) + '{"regime": "length", "met')
    assert bench.paired.known_results(path, bench.setting) == done
    bench.paired.mend(path)
    bench.paired.mend(tmp_path / "none.jsonl")
    with path.open("a") as file:  # as the next result is
        file.write(json.dumps(done[0] | {"seed": 1}) + "\n")
    known = bench.paired.known_results(path, bench.setting)
    assert known == [*done, done[0] | {"seed": 1}]
    left = bench.paired.missing(known, itertools.product(["grpo", "rloo"], [0, 1], ["length", "diversity"]))
    assert left == [
        ("grpo", 0, "diversity"), ("grpo", 1, "diversity"),
        ("rloo", 0, "diversity"), ("rloo", 1, "length"), ("rloo", 1, "diversity"),
    ]  # fmt: skip
    assert bench.paired.known_results(tmp_path / "none.jsonl", bench.setting) == []
    path.write_text(json.dumps(done[0] | {"setting": setting + 1}) + "\n")
    with pytest.raises(ValueError, match="line 1 is of another regime 'length'"):
        bench.paired.known_results(path, bench.setting)


def test_the_stated_share_of_the_verdicts_is_flipped(bench):
    prompts = [f"{number}=" for number in range(1000) for _ in range(8)]
    first = bench.regimes.flips(prompts, 0.2, seed=0)
    assert first == bench.regimes.flips(prompts, 0.2, seed=0) != bench.regimes.flips(prompts, 0.2, seed=1)
    assert abs(np.mean(first) - 0.2) < 4 * (0.2 * 0.8 / len(prompts)) ** 0.5
    # Samples of a prompt apart: about as many groups without a flip as independent ones would leave.
    assert abs(np.mean(~np.any(np.reshape(first, (1000, 8)), axis=1)) - 0.8**8) < 0.05
    reward, completions = bench.regimes.noisy_verdicts(share=0.2, seed=0), ["1#1", "1#2"] * 4000
    found = reward(prompts, completions, ["1"] * 8000)
    assert [value != (place % 2 == 0) for place, value in enumerate(found)] == first
    # What a row is told does not depend on the rows of other prompts.
    assert bench.regimes.flips(prompts[80:], 0.2, seed=0) == first[80:]


def test_a_working_needs_each_of_its_steps(bench):
    digits, slips = np.array([7, 3, 0, 2]), np.zeros(4, bool)
    assert bench.regimes.worked(digits, 0, slips, written=False) == "7002#2"
    assert bench.regimes.worked(digits, 5, slips, written=True) == "52557#7"
    for place in range(4):
        assert bench.regimes.worked(digits, 0, np.arange(4) == place, written=False).endswith("#3")


@pytest.mark.parametrize("name", NAMES)
def test_regimes_are_what_they_say(bench, name):
    regime, held_out = bench.regimes.REGIMES[name], bench.regimes.rows(bench.regimes.REGIMES[name], "test")
    config = bench.regimes.configuration(regime, seed=1)
    check_config(config)
    check_config(bench.regimes.beginning(regime))
    assert config.rl.staleness == (8 if name == "off_policy" else 0)
    assert config.rewards.options.to_dict() == ({"noisy_verdicts": {"share": 0.2, "seed": 1}} if regime.flipped else {})
    assert config.rl.prompts * config.method.options.samples == bench.regimes.SAMPLES_PER_STEP
    assert max(len(line["completion"]) for line in held_out) < config.rl.max_new_tokens
    trained = {line["prompt"] for line in bench.regimes.rows(regime, "train")}
    assert not trained & {line["prompt"] for line in held_out}


def test_the_page_says_what_is_complete_and_what_is_not(bench, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(bench.bakeoff_page, "DOCS", tmp_path)
    more = {"before": 0.4, "entropy": 0.2, "length": 9.0}
    results = [row("grpo", seed, 0.5, 0.7) | more for seed in range(3)]
    results += [row("rloo", seed, 0.6, 0.8 + 0.01 * seed) | more for seed in range(3)]
    results += [row("gspo", 0, 0.6, 0.4) | more, row("dapo", 0) | more | {"failed": "ValueError: no"}]
    del results[-1]["curve"]
    bench.bakeoff_page.write(results, ["grpo", "rloo", "gspo", "dapo", "ppo"], {"gkd": "'gkd' needs a teacher"})
    page = (tmp_path / "bakeoff.md").read_text()
    assert "| rloo | - | - | - | - | - | **+0.105 ± 0.012** |" in page
    assert "| gspo | - | - | - | - | - | *(-0.100, 1 of 3 seeds)* |" in page
    assert "1 of 24 cells are complete, and 1 of these" in page
    assert "dapo in length, seed 0, failed: ValueError: no" in page and "Not run yet (1): ppo." in page
    assert "* gkd: it needs a teacher" in page and "0.600 (0.600 to 0.600; 3 of 3 seeds)" in page
    assert [json.loads(line) for line in (tmp_path / "bakeoff.jsonl").read_text().splitlines()] == results
    assert (tmp_path / "bakeoff.png").stat().st_size
