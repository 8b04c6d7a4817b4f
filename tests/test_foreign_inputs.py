"""Malformed inputs of each kind, by seed: read, or refused in one line that names the file (more: benchmarks/fuzz.py)."""

import pathlib
import sys

import pytest

from jaxrl_llm.data import template_limits

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
COUNTS = {"template": 6, "run": 150, "rows": 2000}


@pytest.fixture(scope="module")
def fuzz():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import fuzz

        yield fuzz
    finally:
        sys.path.remove(str(BENCHMARKS))


KINDS = ("config", "converted", "run", "adapter", "index", "tensors", "tokenizer", "sentencepiece", "template", "rows")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_raw_and_nothing_silent(kind, fuzz, monkeypatch):
    for name in ("STEPS", "BYTES"):  # The driver lowers them for its own kind.
        monkeypatch.setattr(template_limits, name, getattr(template_limits, name))
    found = fuzz.fuzz(kind, range(COUNTS.get(kind, 300)))
    assert found["raw"] == found["silent"] == 0, found["failures"]
    assert found["refused"] > 0


def test_every_kind_is_tried(fuzz):
    assert set(KINDS) == set(fuzz.KINDS)
