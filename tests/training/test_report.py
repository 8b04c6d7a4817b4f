"""What a run shows: a live panel on a terminal, plain lines elsewhere, nothing where it is turned off."""

import io
import math

from rich.console import Console

from jaxrl_llm.training import report
from jaxrl_llm.training.report import live_report

METRICS = {"loss": 0.25, "reward": 0.5, "logp_gap": 1e-6, "reference_kl": None, "entropy": math.nan, "step": 3}
RECORDS = [
    {"prompt": "1+1=", "completion": "[bold]1+1=2#2", "rewards": [1.0, None]},
    {"prompt": "2+2=", "completion": "2+2=5#5", "rewards": [0.0]},
]


def test_plain_lines_where_there_is_no_terminal(capsys):
    with live_report("rl", 0, 3) as show:
        for _ in range(3):
            show(METRICS, RECORDS)
    lines = capsys.readouterr().out.splitlines()
    # The first and the last step always, and no more than one line every few seconds between them.
    assert [line.split()[1] for line in lines] == ["1/3", "3/3"]
    assert "loss 0.25" in lines[0] and "logp_gap 1e-06" in lines[0] and "reference_kl" not in lines[0]


def test_lines_after_a_while(capsys, monkeypatch):
    monkeypatch.setattr(report, "SECONDS_BETWEEN_LINES", 0.0)
    with live_report("sft", 5, 9) as show:
        for _ in range(4):
            show(METRICS, [])
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["6/9", "7/9", "8/9", "9/9"]


def test_nothing_where_it_is_turned_off(capsys):
    with live_report("rl", 0, 2, enabled=False) as show:
        show(METRICS, RECORDS)
        show(METRICS, RECORDS)
    assert capsys.readouterr().out == ""


def test_the_panel_of_a_terminal(monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(report, "_CONSOLE", Console(file=output, force_terminal=True, width=100))
    with live_report("rl", 3, 10) as show:
        show(METRICS, RECORDS)
        # What was measured once stays on the panel until it is measured again.
        show({"loss": 0.125}, RECORDS[1:])
    text = output.getvalue()
    assert "5/10" in text and "0.125" in text and "reward" in text
    # Square brackets of a completion are text, not markup.
    assert "2+2=5#5" in text
    with live_report("rl", 0, 10) as show:
        show(METRICS, RECORDS)
    assert "[bold]1+1=2#2" in output.getvalue() and "reward [1.0, None]" in output.getvalue()


def test_a_line_stands_above_the_panel_and_not_in_it(monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(report, "_CONSOLE", Console(file=output, force_terminal=True, width=80))
    with live_report("rl", 0, 10) as show:
        show(METRICS | {"surrogate/negative_advantage": -0.299, "surrogate/positive_advantage": 0.299}, RECORDS)
        report.say("compiling")  # the panel is painted below it
        report.say("evaluating held-out prompts")
    # The panel is erased, the line is written from its first column on, and the panel is painted anew below it.
    erased, line, rest = output.getvalue().rpartition("evaluating held-out prompts")
    assert line and erased.endswith("\x1b[2K") and "1/10" in rest
    assert "surrogate/negative_advantage" in rest  # names are whole in a narrow window
