"""Each moment of a step counts for one part, the innermost one; programs are counted where they are compiled."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.training.timing import IDLE, PARTS, timed, timed_step


@pytest.fixture
def ticks(monkeypatch):
    """A clock that moves by a second with every look at it."""
    seconds = iter(np.arange(100.0))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))


def test_each_second_counts_for_the_innermost_part(ticks):
    with timed_step() as timing:  # looks at 0
        with timed("sample"):  # 1
            with timed("reward"):  # 2
                pass  # 3
            with timed("annotate"), timed("pack"):  # 4 and 5
                pass  # 6
        # 7 and 8
        with timed("update"):  # 9
            pass  # 10
    expected = {"sample": 3.0, "reward": 1.0, "annotate": 2.0, "pack": 1.0, "update": 1.0, IDLE: 3.0}
    assert {name: timing[name] for name in (*PARTS, IDLE)} == expected
    assert timing["seconds"] == sum(expected.values()) == 11.0


def test_a_part_that_fails_ends_and_the_step_is_timed_all_the_same(ticks):
    with pytest.raises(ZeroDivisionError), timed_step() as timing, timed("sample"), timed("reward"):
        raise ZeroDivisionError
    assert timing["reward"] == timing["sample"] - 1.0 == 1.0
    with timed("sample"):  # of no step
        pass
    assert timing["sample"] == 2.0


def test_programs_are_counted_in_the_step_that_compiles_them():
    programs = [jax.jit(lambda x, n=n: x * n + 1.0) for n in (2.0, 3.0)]
    counts = []
    for _ in range(2):
        with timed_step() as timing, timed("update"):
            for program in programs:
                jax.block_until_ready(program(np.ones(3, np.float32)))
        counts.append(timing["compilations"])
    assert counts == [2, 0]
    with timed_step() as timing:
        jnp.ones(3)
    assert timing["compile_seconds"] >= 0.0
