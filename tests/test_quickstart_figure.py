"""The figure of the first run: what is drawn, and that it is small and can be read on any page."""

import importlib.util
import pathlib
import xml.etree.ElementTree

import pytest

ROOT = pathlib.Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("quickstart", ROOT / "docs" / "quickstart.py")
quickstart = importlib.util.module_from_spec(spec)
spec.loader.exec_module(quickstart)


def test_curves_are_means_over_runs_with_intervals_within_bounds():
    def run(before, rewards, after):
        sft = {"phase": "sft", "step": 1, "evaluation/accuracy": before}
        rl = [{"phase": "rl", "step": 2 + number, "reward": value} for number, value in enumerate(rewards)]
        return [sft, rl[0], rl[1] | {"evaluation/accuracy": after}]

    points = quickstart.curves([run(0.2, (0.4, 0.5), 1.0), run(0.4, (0.6, 0.5), 1.0)], quickstart.SERIES)
    reward, accuracy = ([point for point in points if point["series"] == name] for name in quickstart.SERIES.values())
    assert [(point["step"], point["value"]) for point in reward] == [(1, 0.5), (2, 0.5)]
    assert [(point["step"], point["value"]) for point in accuracy] == [(0, pytest.approx(0.3)), (2, 1.0)]
    # Two values 0.2 apart have an interval of 12.7 * 0.1 to each side, of which 0 to 1 is shown.
    assert (accuracy[0]["low"], accuracy[0]["high"]) == (0, 1)
    assert (reward[1]["low"], reward[1]["high"]) == (0.5, 0.5)


def test_the_figure_of_the_front_pages():
    text = (ROOT / "docs" / "quickstart.svg").read_text(encoding="utf-8")
    assert len(text) < 60_000
    drawing = xml.etree.ElementTree.fromstring(text)
    told = {element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")}
    assert {*quickstart.SERIES.values(), "step of GRPO", "100%"} <= told
    # No colour of the page is taken for granted: no background, no black and no white.
    fills = {element.get(name) for element in drawing.iter() for name in ("fill", "stroke")} - {None, "none", "transparent"}
    assert fills == {quickstart.GREY, *quickstart.COLOURS}


def test_front_pages_show_the_figure_and_one_text():
    blocks = []
    for page in ("README.md", "docs/index.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        blocks.append(text.split("<!-- written by docs/quickstart.py -->\n")[1].split("<!-- end -->")[0])
    assert "](docs/quickstart.svg)" in blocks[0] and blocks[0].replace("docs/quickstart.svg", "quickstart.svg") == blocks[1]
    assert all(word in blocks[0] for word in ("prompt  ", "before  ", "after   "))
