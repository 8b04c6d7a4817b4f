"""Benchmarks are programs of a folder of their own, in which they find each other."""

import contextlib
import importlib
import pathlib
import sys

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@contextlib.contextmanager
def benchmark(name: str):
    """The module of a benchmark."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))
