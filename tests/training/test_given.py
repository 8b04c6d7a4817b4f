"""Runs of Python objects: functions, rows, a network; named in config.json, and asked for again."""

import json
import pathlib
import subprocess
import sys

import jax
import pytest
from training.tiny_runs import opened, quick_compilation, tiny_config  # noqa: F401

import jaxrl_llm
from jaxrl_llm.data import arithmetic_source
from jaxrl_llm.training.policies import load_policy, run_config

ROOT = pathlib.Path(__file__).parents[2]
SOURCE = arithmetic_source(24, digits=(1, 1))
ROWS = [SOURCE[index] for index in range(24)]


def short(prompts, completions, **columns):
    """Fewer characters are better, and there are no other columns than those of the rows."""
    assert "answer" in columns
    return [1 / (1 + len(completion)) for completion in completions]


def plain_config():
    config = tiny_config("grpo", kl_coefficient=0.0)
    config.rl.steps, config.network.hidden_size = 1, 24
    return config


@pytest.fixture(scope="module")
def given_run(tmp_path_factory):
    """One step with all of them; the network is another than the configuration describes."""
    folder = tmp_path_factory.mktemp("given")
    with opened(tiny_config(), folder / "unused") as run:
        network = run.network
    seen = []

    def watch(step, metrics, records):
        seen.append((step, metrics["reward"], len(records)))

    objects = {"rewards": [short, "exact_match"], "data": ROWS, "held_out": ROWS[:4], "network": network, "callbacks": [watch]}
    summary = jaxrl_llm.train(plain_config(), folder / "run", **objects)
    return folder / "run", objects, seen, summary


def test_a_run_of_objects(given_run):
    workdir, objects, seen, summary = given_run
    assert summary["steps"] == 1 and seen[0][0] == 1 and seen[0][2] == 16
    metrics = json.loads((workdir / "metrics.jsonl").read_text())
    assert metrics[f"reward/{__name__}:short"] > 0 and seen[0][1] == metrics["reward"]
    # The user's own parameters are still there.
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(objects["network"].params))


def test_config_says_what_they_are(given_run):
    workdir, *_ = given_run
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["rewards"]["names"] == [f"{__name__}:short", "exact_match"]
    assert stored["given"]["rewards"] == [f"{__name__}:short"]
    assert stored["given"]["callbacks"] == [f"{__name__}:given_run.<locals>.watch"]
    assert stored["given"]["data"]["rows"] == 24 and stored["given"]["held_out"]["rows"] == 4
    assert len(stored["given"]["data"]["sha256"]) == 64 and stored["given"]["network"]["config"]["hidden_size"] == 16


def test_its_policy_can_be_used(given_run):
    workdir, *_ = given_run
    network, _ = load_policy(workdir)
    assert network.config.hidden_size == 16 and network.params["embedding"].shape[1] == 16


@pytest.mark.parametrize("name", ["rewards", "data", "held_out", "network", "callbacks"])
def test_resuming_asks_for_each_again(name, given_run):
    workdir, objects, *_ = given_run
    rest = {other: value for other, value in objects.items() if other != name}
    with pytest.raises(ValueError, match=f"{name} = none, but the run in .* was made with"):
        jaxrl_llm.train(plain_config(), workdir, **rest)


def test_another_object_is_not_taken_for_it(given_run):
    workdir, objects, *_ = given_run
    with pytest.raises(ValueError, match=r"data = .*given.data.sha256.*give data=\.\.\. as it was"):
        jaxrl_llm.train(plain_config(), workdir, **objects | {"data": ROWS[::-1]})
    with pytest.raises(ValueError, match="given.rewards"):
        jaxrl_llm.train(plain_config(), workdir, **objects | {"rewards": [test_a_run_of_objects, "exact_match"]})
    assert jaxrl_llm.train(plain_config(), workdir, **objects)["steps"] == 1


def test_the_stored_configuration_asks_too(given_run, tmp_path):
    """Not only in its own folder: the objects are no part of it."""
    with pytest.raises(ValueError, match=r"config.given.\w+ is .*give it to train\(\) again as"):
        jaxrl_llm.train(run_config(given_run[0]), tmp_path / "other")


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"rewards": [lambda prompts, completions: [], lambda prompts, completions: []]}, "two of the name .*<lambda>"),
        ({"data": []}, "data has no rows"),
        ({"data": ["1+1="]}, "data, row 0: it is str"),
        ({"data": [{"question": "1+1="}]}, "data, row 0: .*prompt"),
        ({"data": ROWS, "held_out": [{"prompt": "1" * 9}]}, "has 9 tokens, more than 4"),
    ],
)
def test_what_cannot_be_is_refused(objects, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        jaxrl_llm.train(plain_config(), tmp_path / "run", **objects)
    assert not (tmp_path / "run" / "config.json").exists()


def test_the_package_imports_its_rooms_when_they_are_used():
    code = (
        "import sys, jaxrl_llm; quick = 'jax' not in sys.modules; print(quick, jaxrl_llm.methods.get('grpo').name, "
        "jaxrl_llm.train.__module__, hasattr(jaxrl_llm, 'nosuch'), 'methods' in dir(jaxrl_llm))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.split() == ["True", "grpo", "jaxrl_llm.training.loop", "False", "True"], done.stderr
    assert (ROOT / "jaxrl_llm" / "py.typed").is_file() and "py.typed" in (ROOT / "setup.cfg").read_text()
