"""Runs small enough to be a test: a network of 16 units on one-digit sums. Runs that several tests look at happen once."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import tempfile

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from training.tiny_chat_model import write_tiny_chat_model

from jaxrl_llm import cli
from jaxrl_llm.training import default_config, loop
from jaxrl_llm.training.run import open_run

ALPHABET = "characters:0123456789+-*=;#"
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
# Four samples of each prompt for every method, so that they share the compiled sampler.
METHOD_OPTIONS = {
    "cispo": {},
    "dapo": {"max_rounds": 2},
    "dr_grpo": {},
    "grpo": {"kl_coefficient": 0.1},
    "gspo": {},
    "ppo": {"kl_coefficient": 0.0},
    "reinforce": {},
    "reinforce_plus_plus": {"kl_coefficient": 0.05},
    "rloo": {"kl_coefficient": 0.05},
}


def tiny_config(method: str = "grpo", **options):
    """Two steps of RL from scratch, with a reward that differs between samples even of a network that knows nothing."""
    config = default_config()
    config.tokenizer = ALPHABET
    config.network.update(**SIZES)
    config.task.options.update(size=50, digits=(1, 1))
    config.task.test_options.update(split="test", size=4)
    config.task.max_prompt_tokens = 4
    config.sft.update(steps=0, batch=8, row_tokens=64)
    config.rl.update(steps=2, prompts=4, max_new_tokens=12, row_tokens=64)
    config.rl.optimizer.learning_rate = 1e-2
    config.method.name = method
    config.method.options.update(samples=4, **options)
    config.rewards.names = ("training.tiny_rewards:shortness",)
    config.evaluation.update(prompts=4, batch=4)
    config.log.update(completions_every=1, trackers=(), live=False)
    return config


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that has ended."""

    config: object
    workdir: pathlib.Path
    summary: dict
    metrics: list


def finish(config, workdir) -> Finished:
    """Trains to the end."""
    summary = loop.train(config, workdir)
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return Finished(config, pathlib.Path(workdir), summary, [json.loads(line) for line in lines])


def failing_at(number: int, function):
    """The function, whose call of that number fails."""
    calls = itertools.count(1)

    def called(*arguments):
        if next(calls) == number:
            raise RuntimeError(f"a fault in call {number}")
        return function(*arguments)

    return called


def assert_a_fault_changes_nothing(config, folder, monkeypatch, place, name: str, faulty):
    """A run that ends by a fault in `faulty`, for `place.name`, and goes on has the metrics of one without."""
    finish(config, folder / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(place, name, faulty)
        with pytest.raises(RuntimeError, match="a fault in call"):
            loop.train(config, folder / "broken")
    loop.train(config, folder / "broken")
    assert (folder / "broken/metrics.jsonl").read_bytes() == (folder / "whole/metrics.jsonl").read_bytes()


@functools.cache
def _folder():
    return tempfile.TemporaryDirectory()


@functools.cache
def finished(method: str) -> Finished:
    """The tiny run of a method."""
    return finish(tiny_config(method, **METHOD_OPTIONS[method]), pathlib.Path(_folder().name) / method)


@functools.cache
def finished_both_phases() -> Finished:
    """Three supervised steps, then two of GRPO; both rewards."""
    config = tiny_config("grpo", kl_coefficient=0.1)
    config.sft.update(steps=3, examples=20)
    config.rewards.names = ("arithmetic", "training.tiny_rewards:shortness")
    return finish(config, pathlib.Path(_folder().name) / "both")


# Rows as in GSM8K: steps of the solution in brackets, the answer behind "####".
PROBLEMS = (
    ("A shelf has 4 rows of 9 jars. 11 jars break. How many are left?", "4*9=<<4*9=36>>36\n36-11=<<36-11=25>>25\n#### 25"),
    ("Ola runs 3 km on each of 5 days. How far is that?", "3*5=<<3*5=15>>15 km\n#### 15"),
    ("A coat costs $1,250 and is sold at half price. What does it cost?", "1250/2=<<1250/2=625>>625\n#### 625"),
    ("Six boxes hold 1,200 nails in all. How many are in one?", "1200/6=<<1200/6=200>>200\n#### 200"),
    ("Ben has twice as many cards as Ann, who has 7. How many has Ben?", "2*7=<<2*7=14>>14 cards\n#### 14"),
)


@functools.cache
def chat_model() -> pathlib.Path:
    """A tiny checkpoint with a chat template."""
    write_tiny_chat_model(pathlib.Path(_folder().name) / "chat_model")
    return pathlib.Path(_folder().name) / "chat_model"


def grade_school_config():
    """configs/gsm8k.py on the problems above with the chat model; beside the verifier, a reward that differs."""
    folder = pathlib.Path(_folder().name)
    for name, rows in (("train", PROBLEMS), ("test", PROBLEMS[:2])):
        lines = [json.dumps({"question": question, "answer": answer}) for question, answer in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    overrides = {
        "network.directory": chat_model(),
        "task.options.path": folder / "train.jsonl",
        "task.test_options.path": folder / "test.jsonl",
        "network.dtype": "float32",
        "network.remat": "none",
        "method.options.samples": 4,
        "rewards.names": ("gsm8k", "training.tiny_rewards:odd_text"),
        "rl.prompts": 2,
        "rl.steps": 2,
        "rl.micro_batches": 2,
        "rl.row_tokens": 1024,  # so wide that all batches have one shape
        "rl.max_new_tokens": 12,
        "rl.max_logp_gap": 1e-4,
        "rl.optimizer.warmup_steps": 0,
        "log.completions_every": 1,
        "log.trackers": (),
        "log.live": False,
    }
    file = pathlib.Path(__file__).parents[2] / "configs" / "gsm8k.py"
    return cli.load_config(str(file), [f"--config.{name}={value}" for name, value in overrides.items()])


@functools.cache
def finished_grade_school() -> Finished:
    """Two steps of grade-school maths."""
    return finish(grade_school_config(), pathlib.Path(_folder().name) / "grade_school")


@contextlib.contextmanager
def opened(config, workdir):
    """The `Run` of a configuration."""
    with open_run(config, workdir) as run:
        yield run


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compiles once what several runs share, and without optimisations, which take longer than these networks do.

    Import it into a test module to use it there.
    """
    settings = {
        "jax_disable_most_optimizations": (True, os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"),
        "jax_compilation_cache_dir": (_folder().name + "/compiled", None),
        "jax_persistent_cache_min_compile_time_secs": (0.0, 1.0),
    }
    for name, (during, _) in settings.items():
        jax.config.update(name, during)
    compilation_cache.reset_cache()
    # Programs that other modules compiled with other settings round otherwise.
    jax.clear_caches()
    yield
    for name, (_, after) in settings.items():
        jax.config.update(name, after)
    compilation_cache.reset_cache()
    jax.clear_caches()
