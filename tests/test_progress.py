"""What takes long says how far it is, by a clock that the tests turn."""

import json

import jax
import pytest

from jaxrl_llm import progress
from jaxrl_llm.data import jsonl_source
from jaxrl_llm.progress import advancing, lasting, paced, programs_under_way, shown


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but where a test moves it."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_a_line_every_ten_seconds_with_an_estimate_of_the_end(clock):
    lines = []
    told = paced(lines.append, "loading parameters", "bytes")
    for clock[0], done in [(4.0, 1.0e9), (10.0, 4.0e9), (15.0, 5.0e9), (20.0, 8.0e9), (40.0, 16.0e9)]:
        told(done, 16.0e9)
    assert lines == [
        "loading parameters: 4.0 of 16.0 GB, about 30 s left",
        "loading parameters: 8.0 of 16.0 GB, about 20 s left",
    ]


def test_nothing_done_has_no_estimate(clock):
    lines = []
    told = paced(lines.append, "evaluating")
    clock[0] = 10.0
    told(0, 64)
    clock[0] = 20.0
    told(1, 64)
    assert lines == ["evaluating: 0 of 64", "evaluating: 1 of 64, about 21 min left"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (99.0, "99 s"), (150.0, "2 min"), (9000.0, "2.5 h")])
def test_times_as_people_say_them(seconds, text):
    assert lasting(seconds) == text


@pytest.mark.parametrize("enabled", [True, False])
def test_only_where_somebody_asked(enabled, clock, capsys):
    with shown(enabled), advancing("encoding", 4, "examples") as advance:
        for _ in range(4):
            clock[0] += 6.0
            advance(1)
    told = capsys.readouterr()
    assert told.err == ("encoding: 2 of 4 examples, about 12 s left\n" if enabled else "") and told.out == ""
    with advancing("encoding", 4) as advance:
        clock[0] += 60.0
        advance(1)
    assert capsys.readouterr().err == ""


def test_a_bar_where_there_is_a_terminal(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with shown(True), advancing("loading parameters", 10e9, "bytes") as advance:
        clock[0] = 2.0
        advance(4e9)
    assert "loading parameters: 4.0 of 10.0 GB, about 3 s left" in capsys.readouterr().err


def test_a_program_that_is_compiled_for_long(clock):
    heard = []

    def look(event: str, value: float, **_) -> None:  # behind our own listener, in the midst of the compilation
        if event.endswith("backend_compile_duration"):
            clock[0] += 25.0
            heard.extend(programs_under_way())

    def thrice(x):
        return 3.0 * x + 1.5

    with shown(True):
        jax.monitoring.register_scalar_listener(look)
        try:
            jax.jit(thrice)(1.0)
        finally:
            jax.monitoring.unregister_scalar_listener(look)
    assert any("thrice" in line and line.endswith(": 25 s so far") for line in heard)
    assert programs_under_way() == []


def test_a_large_file_is_read_with_progress(tmp_path, clock, capsys, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": str(number)}) + "\n" for number in range(9)))
    ticking = iter(range(0, 1000, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticking)))
    with shown(True):
        assert len(jsonl_source(path)) == 9
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith(f"reading {path}: ") and line.endswith(" left") for line in lines)
