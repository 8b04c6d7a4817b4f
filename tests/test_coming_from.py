"""The page for users of other libraries: it is that of the tree, and what it calls ours is ours."""

import importlib.util
import pathlib
import re

import pytest

from jaxrl_llm import methods, training
from jaxrl_llm.training.config import flat

DOCS = pathlib.Path(__file__).parent.parent / "docs"
spec = importlib.util.spec_from_file_location("coming_from", DOCS / "coming_from.py")
coming_from = importlib.util.module_from_spec(spec)
spec.loader.exec_module(coming_from)


def test_the_page_is_up_to_date():
    assert (DOCS / "coming_from.md").read_text(encoding="utf-8") == coming_from.page(), "run `python docs/generate.py`"


@pytest.mark.parametrize("row", coming_from.OPTIONS, ids=lambda row: row[0])
def test_keys_of_the_first_column_exist(row):
    known = {*flat(training.default_config().to_dict())}
    known |= {f"method.options.{option}" for option in methods.options_of("grpo")}
    first, *others = re.findall(r"`([^`]+)`", row[0])
    section = first.rpartition(".")[0]
    assert {first, *(f"{section}.{name}" for name in others)} <= known
    assert len(row) == 4 and any(row[1:])


@pytest.mark.parametrize("convention", coming_from.LIBRARIES)
def test_every_method_with_the_convention_has_a_row_that_can_be_made(convention):
    named = {name for name in methods.names() if convention in methods.conventions_of(name)}
    assert named == set(coming_from.CHOSEN[convention])
    table = coming_from.page().split(f"`{convention}`\n")[1].split("\n### ")[0]
    for name in named:
        assert f"[{name}](methods.md#{name})" in table and methods.get(name, convention=convention).name == name
