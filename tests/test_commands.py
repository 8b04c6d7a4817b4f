"""Every command of the documents as somebody would type it: from another folder, on a tiny checkpoint, and from a wheel."""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import zipfile

import pytest
from training import tiny_runs
from training.tiny_runs import PROBLEMS, quick_compilation  # noqa: F401

from jaxrl_llm import cli, networks
from jaxrl_llm.training import loop, policies

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "configs").glob("[!_]*.py"))]
PAIRS = [
    {"prompt": f"{question} ({number})", "chosen": answer.splitlines()[-1], "rejected": "#### 1"}
    for number in range(12)
    for question, answer in PROBLEMS
]
CHECKPOINTS = ("DIR", "Qwen3-0.6B", "smollm2")
# One step, and no more than the files below have.
SHORT = {
    "sft": {"sft.steps": 1, "sft.batch": 2, "sft.micro_batches": 1},
    "preference": {"preference.steps": 1, "preference.batch": 2},
    "rl": {"rl.steps": 1, "rl.prompts": 1, "rl.micro_batches": 1, "rl.max_new_tokens": 4, "method.options.samples": 2},
}
ALWAYS = {"evaluation.prompts": 2, "evaluation.batch": 2, "log.trackers": (), "log.live": False}


def documented() -> list[str]:
    """Commands that train, each once; those that go on over several lines are joined."""
    lines = "\n".join(page.read_text(encoding="utf-8") for page in PAGES).replace("\\\n", " ")
    commands = re.findall(r"^(?:pip install -e \. && )?(jaxrl-llm train\b.*)$", lines, re.MULTILINE)
    return list(dict.fromkeys(" ".join(command.split()) for command in commands))


def test_there_are_some():
    commands = documented()
    assert "jaxrl-llm train" in commands
    configs = {match for command in commands for match in re.findall(r"configs/(\w+)\.py", command)}
    assert configs >= {"dpo", "gsm8k", "reasoning_gym", "reward_model", "sft"}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of a user with the files that the commands name."""
    monkeypatch.chdir(tmp_path)
    for name in CHECKPOINTS:
        (tmp_path / name).symlink_to(tiny_runs.chat_model())
    write_reward_model(tmp_path / "RUN")
    for name in ("train", "test"):
        rows = [{"question": question, "answer": answer} for question, answer in PROBLEMS]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return tmp_path


def write_reward_model(folder: pathlib.Path) -> None:
    """The chat model with a head of one output in place of that of its tokens."""
    network = networks.load_huggingface(tiny_runs.chat_model(), value_head=1)
    alone = networks.decoder(dataclasses.replace(network.config, language_head=False))
    networks.save_huggingface(alone, network.params, folder)
    for file in policies.tokenizer_files(tiny_runs.chat_model()):
        shutil.copy(file, folder)


def arguments_of(command: str) -> list[str]:
    """What `cli.main` gets of a command, cut short."""
    given = shlex.split(command)[1:]
    if "configs/sft.py" in command:
        for name in ("train", "test"):
            rows = [{"prompt": question, "completion": answer} for question, answer in PROBLEMS]
            pathlib.Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = next((argument.partition("=")[2] for argument in given if argument.startswith("--config=")), "configs/quickstart.py")
    own = cli.load_config(path, [argument for argument in given if argument.startswith("--config.")])
    phases = [values for phase, values in SHORT.items() if own[phase].steps]
    short = {name: value for values in (*phases, ALWAYS) for name, value in values.items()}
    if own.task.source == "reasoning_gym":
        short |= {"task.options.size": 4, "task.test_options.size": 2}
    return [*given, *(f"--config.{name}={value}" for name, value in short.items())]


class Opened(Exception):
    """All that a run needs was found."""


@pytest.mark.slow
@pytest.mark.parametrize("command", documented())
def test_a_documented_command_opens_its_run(command, elsewhere, monkeypatch):
    """Configuration, checkpoint, tokenizer, data and rewards fit each other; nothing is compiled."""

    def opened(run, files, phases):
        raise Opened

    monkeypatch.setattr(loop, "_resume", opened)
    with pytest.raises(Opened):
        cli.main(arguments_of(command))
    config = json.loads(next(elsewhere.glob("runs/*/config.json")).read_text())
    assert config["network"]["directory"] in ("", *CHECKPOINTS)


@pytest.mark.slow
@pytest.mark.parametrize("command", documented())
def test_a_documented_command_runs(command, elsewhere, capsys):
    assert cli.main(arguments_of(command)) == 0
    workdir = next(elsewhere.glob("runs/*"))
    assert (workdir / "summary.json").is_file() and "the same command resumes it" in capsys.readouterr().out
    assert cli.main(["evaluate", str(workdir)]) == 0
    measured = json.loads(capsys.readouterr().out)
    final = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    # Rounding differs between a process that trained and one that loads.
    assert measured and measured == pytest.approx({name: final[name] for name in measured}, abs=1e-5)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package as it is installed from its wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("jaxrl_llm", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


@pytest.mark.slow
def test_a_documented_command_runs_from_the_wheel(wheel, elsewhere):
    """The configurations lie in it, the mark of typed packages too, and nothing of the sources is needed."""
    assert (wheel / "jaxrl_llm" / "py.typed").is_file() and (wheel / "jaxrl_llm" / "configs" / "dpo.py").is_file()
    # Nothing else is put among the packages of the user.
    assert {path.name.partition("-")[0] for path in wheel.iterdir()} == {"jaxrl_llm"}
    (command,) = (command for command in documented() if "configs/dpo.py" in command and "DIR" in command)
    code = "import sys, jaxrl_llm.cli as cli; print(cli.__file__); sys.exit(cli.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments_of(command)],
        capture_output=True, text=True, timeout=600, env=os.environ | {"PYTHONPATH": str(wheel)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(wheel) in done.stdout and "Held-out pair accuracy" in done.stdout
