"""What a release consists of fits together: one version, and an image that has all that the package is built from."""

import fnmatch
import pathlib
import re

import pytest

import jaxrl_llm

ROOT = pathlib.Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_there_is_one_version():
    assert "\nversion = attr: jaxrl_llm.__version__\n" in (ROOT / "setup.cfg").read_text(encoding="utf-8")
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited and cited[1] == jaxrl_llm.__version__
    released = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert jaxrl_llm.__version__ in released


def copied() -> list[str]:
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    return [name for line in lines for name in line.split()]


def test_the_image_has_what_the_package_is_built_from():
    wanted = {"jaxrl_llm", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"}
    links = {str(path.resolve().relative_to(ROOT)) for path in (ROOT / "jaxrl_llm").iterdir() if path.is_symlink()}
    assert set(copied()) == wanted | links


@pytest.mark.parametrize("name", sorted(set(copied())))
def test_what_the_image_copies_is_there_and_is_sent(name):
    first, *rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert (ROOT / name).exists() and first == "*" and f"!{name}" in rules
    assert not any(fnmatch.fnmatch(name, rule) for rule in rules if not rule.startswith("!"))


def test_the_image_has_a_python_that_the_package_admits():
    oldest = re.search(r"^python_requires = >=3\.(\d+)$", (ROOT / "setup.cfg").read_text(encoding="utf-8"), re.MULTILINE)
    versions = {int(version) for version in re.findall(r"^FROM python:3\.(\d+)-slim", DOCKERFILE, re.MULTILINE)}
    assert len(versions) == 1 and min(versions) >= int(oldest[1])  # its environment is made for the one that runs it


def test_the_oldest_jax_of_the_release_is_that_of_the_package():
    oldest = re.search(r"^    jax>=([\d.]+)$", (ROOT / "setup.cfg").read_text(encoding="utf-8"), re.MULTILINE)
    assert f'"jax=={oldest[1]}.0\\n' in (ROOT / "docs" / "releasing.md").read_text(encoding="utf-8")
