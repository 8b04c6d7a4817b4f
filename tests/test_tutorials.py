"""The tutorials run as they stand: blocks of Python in one namespace, commands in one shell, with outputs like those shown."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from test_documents import FREE_SECTIONS, _has

from jaxrl_llm import training

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
# A block of code, and the block of its output where one follows it.
MARK = "-- end of a block --"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)


def blocks(path: pathlib.Path, language: str) -> list[tuple[str, str]]:
    found = BLOCK.findall(path.read_text(encoding="utf-8"))
    return [(code, output) for kind, code, output in found if kind == language]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_keys_and_length(path):
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    assert not [link for link in links if "://" not in link and not (path.parent / link).exists()]
    config = training.default_config()
    keys = set(re.findall(r"\bconfig\.([a-z_0-9]+(?:\.[a-z_0-9]+)+)", text))
    assert not [key for key in keys if not key.startswith(FREE_SECTIONS) and not _has(config, key)]
    assert len(text.splitlines()) < 150 and not re.search(r"(?<![\w.:/])/(?:work|tmp|root|home)\b", text)


def run(command: list[str], folder: pathlib.Path, script: str) -> str:
    """What the script prints, by a process of its own that compiles as those of users do."""
    (folder / "jaxrl-llm").write_text(f'#!/bin/sh\nexec {sys.executable} -m jaxrl_llm "$@"\n')
    (folder / "jaxrl-llm").chmod(0o755)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
    }
    environment |= {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([*command, script], cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path, "python")], ids=lambda path: path.stem)
def test_blocks_run_in_order_and_print_what_is_shown(path, tmp_path):
    found = blocks(path, "python")
    printed = run([sys.executable, "-c"], tmp_path, f"\nprint({MARK!r})\n".join(code for code, _ in found))
    for (code, shown), said in zip(found, printed.split(f"{MARK}\n"), strict=True):
        if "runs/" in code:  # of what was trained, numbers differ between machines
            assert len(said.splitlines()) == len(shown.splitlines())
        else:
            assert said == shown


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path, "bash")], ids=lambda path: path.stem)
def test_commands_run_in_order(path, tmp_path):
    found = blocks(path, "bash")
    printed = run(["bash", "-e", "-c"], tmp_path, "\n".join(code for code, _ in found))
    assert printed.endswith(found[-1][1])
