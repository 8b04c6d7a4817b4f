"""Malformed inputs of each kind, by seed: read, or refused in one line that names the file (all of them: benchmarks/fuzz.py)."""

import importlib.util
import pathlib

import pytest

PATH = pathlib.Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
COUNTS = {"template": 6, "run": 150}


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KINDS = ("config", "converted", "run", "adapter", "index", "tokenizer", "sentencepiece", "template")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_raw_and_nothing_silent(kind, fuzz, monkeypatch):
    limits = fuzz.templates.template_limits
    monkeypatch.setattr(limits, "STEPS", limits.STEPS)  # The driver lowers them for its own kind.
    monkeypatch.setattr(limits, "BYTES", limits.BYTES)
    found = fuzz.fuzz(kind, range(COUNTS.get(kind, 300)))
    assert found["raw"] == found["silent"] == 0, found["failures"]
    assert found["refused"] > 0


def test_every_kind_is_tried(fuzz):
    assert set(KINDS) == set(fuzz.KINDS)
