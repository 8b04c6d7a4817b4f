"""Writes docs/quickstart.svg, and what README.md and docs/index.md say of the first run.

`python docs/quickstart.py [FOLDER]` trains `configs/quickstart.py` from three seeds in FOLDER (default: runs/quickstart_seeds),
a minute each on two CPU cores; runs that are there are gone on with. It wants the extra `report`.
"""

import pathlib
import re
import sys

from jaxrl_llm import cli
from jaxrl_llm.training.loop import train
from jaxrl_llm.training.metrics import read_jsonl
from jaxrl_llm.training.pages import interval

ROOT = pathlib.Path(__file__).parent.parent
SEEDS = (0, 1, 2)
# Greys and colours that can be read on a white and on a black page.
GREY, COLOURS = "#7b7b7b", ("#2f81f7", "#d9822b")
SERIES = {"reward": "reward at temperature 1", "evaluation/accuracy": "held-out accuracy, greedy"}


def curves(runs: list[list[dict]], series: dict[str, str]) -> list[dict]:
    """Means over runs of both measures by step of the RL phase, with 95% intervals within 0 and 1.

    Args:
      runs: records of `metrics.jsonl` of each run.
      series: what they are called, by measure.
    """
    begin = sum(record["phase"] != "rl" for record in runs[0])
    points = []
    for measure, name in series.items():
        for records in zip(*runs, strict=True):
            values = [record[measure] for record in records if measure in record]
            if values:
                mean, half = sum(values) / len(values), interval(values)
                point = {"step": records[0]["step"] - begin, "series": name, "value": mean}
                points.append(point | {"low": max(mean - half, 0), "high": min(mean + half, 1)})
    return points


def svg(points: list[dict]) -> str:
    """The figure of `curves`: lines with bands, and dots where measures are rare, on no background."""
    import vl_convert

    axis = {"labelColor": GREY, "titleColor": GREY, "domainColor": GREY, "tickColor": GREY, "gridColor": GREY}
    axis |= {"gridOpacity": 0.25, "labelFontSize": 13, "titleFontSize": 13, "titleFontWeight": "normal"}
    x = {"field": "step", "type": "quantitative", "title": "step of GRPO", "scale": {"domain": [0, points[-1]["step"]]}}
    y = {"type": "quantitative", "scale": {"domain": [0, 1]}, "axis": {"format": "%"}, "title": None}
    names = list(dict.fromkeys(point["series"] for point in points))
    colour = {"field": "series", "scale": {"domain": names, "range": COLOURS}}
    legend = {"orient": "bottom-right", "title": None, "symbolType": "stroke", "labelColor": GREY, "labelFontSize": 13}
    colour["legend"] = legend | {"labelLimit": 300}
    band = {"mark": {"type": "area", "opacity": 1, "fillOpacity": 0.25}}
    band["encoding"] = {"y": y | {"field": "low"}, "y2": {"field": "high"}}
    line = {"mark": {"type": "line", "strokeWidth": 2.5}, "encoding": {"y": y | {"field": "value"}}}
    dots = {"mark": {"type": "point", "filled": True, "size": 40, "opacity": 1}, "encoding": line["encoding"]}
    dots["transform"] = [{"filter": {"field": "series", "equal": names[-1]}}]
    spec = {
        "data": {"values": points}, "width": 620, "height": 260, "encoding": {"x": x, "color": colour},
        "layer": [band, line, dots], "config": {"background": None, "view": {"stroke": None}, "axis": axis},
    }  # fmt: skip
    return vl_convert.vegalite_to_svg(spec)


def words(summaries: list[dict], figure: str) -> str:
    """What stands on the front pages, in Markdown."""
    before, after = (sum(own[f"accuracy_{name}"] for own in summaries) / len(summaries) for name in ("before", "after"))
    sample = summaries[0]["sample"]
    return f"""![Reward and held-out accuracy by step of GRPO, of three seeds]({figure})

Means of three seeds: held-out accuracy {100 * before:.0f}% after imitation of careless demonstrations, {100 * after:.1f}% after
GRPO; bands are 95% intervals over the seeds. The first held-out prompt whose reward changed:

```text
prompt  {sample["prompt"]}
before  {sample["before"]}
after   {sample["after"]}
```
"""


def main() -> None:
    """Trains, draws and writes."""
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart_seeds")
    summaries, runs = [], []
    for seed in SEEDS:
        config = cli.load_config("configs/quickstart.py", [f"--config.seed={seed}", "--config.evaluation.every=4"])
        summaries.append(train(config, folder / str(seed)))
        runs.append(read_jsonl(folder / str(seed) / "metrics.jsonl"))
    (ROOT / "docs" / "quickstart.svg").write_text(svg(curves(runs, SERIES)), encoding="utf-8")
    for page, figure in {"README.md": "docs/quickstart.svg", "docs/index.md": "quickstart.svg"}.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        block = rf"\g<1>{words(summaries, figure)}\g<2>"
        text = re.sub(r"(<!-- written by docs/quickstart.py -->\n).*?(<!-- end -->)", block, text, flags=re.DOTALL)
        (ROOT / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
