"""Malformed inputs of each kind, by seed: read, or refused in one line that names the file (more: benchmarks/fuzz.py)."""

import pytest
from benchmark_programs import benchmark

from jaxrl_llm.data import template_limits

COUNTS = {"template": 6, "run": 150, "rows": 2000}


@pytest.fixture(scope="module")
def fuzz():
    with benchmark("fuzz") as module:
        yield module


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
