"""Every fenced block of the documents is of a kind that some test runs, and every command line of the program can be parsed.

Commands that train are run by `test_commands.py`, blocks of Python by `test_documents.py`, tutorials with the outputs that they
show by `test_tutorials.py`; compositions are those of a generated page. Nothing executes the commands of `OTHERS`.
"""

import json
import pathlib
import re
import shlex

import pytest
import setuptools.config.setupcfg

from jaxrl_llm import cli, training

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Clouds, clusters and containers.
OTHERS = {"printf", "twine", "gcloud", "xpk", "docker", "srun", "git", "sudo", "cd", "gcsfuse", "pytest", "mkdocs", "ruff"}
DRAWINGS = {"architecture.md": 2}  # blocks that are no code
PROGRAM = re.compile(r"(?:jaxrl-llm|python -m jaxrl_llm)((?: [^`\n\"'&|\\;>]*(?:\"[^\"`\n]*\"|'[^'`\n]*')?)*)")


def blocks(path: pathlib.Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def lines_of(block: str) -> list[str]:
    """Lines of a shell; what goes on behind a backslash or within quotes is one."""
    joined = re.sub(r'"[^"]*"', lambda quoted: quoted[0].replace("\n", " "), block.replace("\\\n", " "))
    return [line.strip().removeprefix("!") for line in joined.splitlines() if line.strip()]


def commands() -> list[str]:
    """What stands behind `jaxrl-llm` wherever documents and notebooks write it, each once."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    cells = (cell for book in NOTEBOOKS for cell in json.loads(book.read_text(encoding="utf-8"))["cells"])
    texts += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    found = [match.strip() for text in texts for match in PROGRAM.findall(text.replace("\\\n", " "))]
    return list(dict.fromkeys(" ".join(each.split()) for each in found if re.match(r"[a-z]+\b", each)))


# What stands for something else in the words of a table: an option in brackets may be left out, a variable has some, dots are
# whatever fits.
def filled(command: str) -> list[str]:
    return shlex.split(re.sub(r"\[([^\]]*)\]|\$\w+", r"\1", command).replace("...", "").replace("TEXT", "words"))


# Verbs that are named without what they need, as in "`jaxrl-llm sample --chat` talks".
def is_mention(arguments: list[str]) -> bool:
    return all(argument.startswith("--") and "=" not in argument for argument in arguments[1:])


def test_there_are_some():
    verbs = {command.split()[0] for command in commands()}
    assert verbs >= {"train", "evaluate", "sample", "serve", "convert", "plan", "report", "methods", "completion"}


@pytest.mark.parametrize("command", commands())
def test_a_command_can_be_parsed_and_its_configuration_is_possible(command):
    check_command(command)


@pytest.mark.parametrize(
    "wrong", ["trains", "train --dry-runs", "train --config.rl.stepz=3", "plan --model=qwen3-8b", "convert A B"]
)
def test_a_wrong_command_is_found(wrong):
    with pytest.raises((SystemExit, ValueError, AssertionError, KeyError)):
        check_command(wrong)


def check_command(command: str) -> None:
    arguments = filled(command)
    parser = cli._parser()
    if is_mention(arguments):
        verbs = next(action for action in parser._actions if action.dest == "verb").choices
        assert set(arguments[1:]) <= set(verbs[arguments[0]]._option_string_actions)
        return
    options, rest = parser.parse_known_args(arguments)
    overrides = [argument for argument in rest if argument.startswith("--config.")]
    assert rest == overrides
    if hasattr(options, "topology"):
        assert options.topology.count(":") == 1
    if getattr(options, "config", None) not in (None, "FILE"):
        training.check_config(cli.load_config(options.config, overrides))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_is_of_a_kind_that_is_checked(path):
    unknown = []
    for language, block in blocks(path):
        if language == "json":
            assert [json.loads(line) for line in block.splitlines()]
        elif language not in ("python", "text", "bash" if path.parent.name == "tutorials" else "python") and not re.match(
            r"strategy +=", block
        ):
            unknown += [block] if not all(is_known(line) for line in lines_of(block)) else []
    assert len(unknown) == DRAWINGS.get(path.name, 0), unknown


def is_known(line: str) -> bool:
    """Whether each command of a line is the program, one of others, or something of this project that is there."""
    parts = re.split(r" (?:&&|\|) ", re.sub("[\"']", "", line))
    return all(_is_known(re.sub(r"^(\w+=\S+ +)+", "", part).partition(" #")[0].split()) for part in parts)


def _is_known(words: list[str]) -> bool:
    name = words[0].rpartition("/bin/")[2]
    if name == "python":
        return words[1] == "-m" or (ROOT / words[1]).is_file()
    if name == "pip":
        asked = {extra for word in words for extra in re.findall(r"\[([\w,]+)\]", word)}
        return {extra for extras in asked for extra in extras.split(",")} <= extras_of_the_package()
    return name in {"jaxrl-llm", *OTHERS} or (ROOT / name).is_file()


def extras_of_the_package() -> set[str]:
    return set(setuptools.config.setupcfg.read_configuration(ROOT / "setup.cfg")["options"]["extras_require"])
