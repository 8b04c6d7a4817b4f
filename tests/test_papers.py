"""docs/papers.tsv says what is so: its lines make configurations that the program takes, its names are there."""

import ast
import importlib.util
import pathlib
import re

import pytest

from jaxrl_llm import environments, estimators, methods, objectives, rollouts
from jaxrl_llm.estimators import off_policy_evaluation
from jaxrl_llm.methods import base
from jaxrl_llm.methods.updates import Critic
from jaxrl_llm.networks import combined
from jaxrl_llm.objectives.heads import ensemble
from jaxrl_llm.optimizers import extrapolate_every, online_dare, online_ties
from jaxrl_llm.rewards import FACTORIES, final_answer
from jaxrl_llm.rollouts import choosing, forks
from jaxrl_llm.rollouts.asking import ASKING
from jaxrl_llm.training import default_config
from jaxrl_llm.training.config import check_config
from jaxrl_llm.training.rounds import round_config

DOCS = pathlib.Path(__file__).parent.parent / "docs"


def load_papers():
    spec = importlib.util.spec_from_file_location("papers", DOCS / "papers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


papers = load_papers()
ROWS = papers.read()
CARRIED = [row for row in ROWS if row["status"] != "not carried"]
# What a line may use: the public names of the rooms that methods are composed of.
NAMES = {
    name: getattr(room, name) for room in (rollouts, estimators, objectives) for name in dir(room) if not name.startswith("_")
}
NAMES |= {"methods": methods, "choosing": choosing, "every": forks.every, "Critic": Critic, "ensemble": ensemble}
NAMES |= {"off_policy_evaluation": off_policy_evaluation}
# What "here" may name beside methods and these.
OTHERS = {"whole_groups", "share", "train", final_answer.__name__, *FACTORIES, *ASKING, *environments.NAMED} | set(
    dir(combined)
)
OTHERS |= {wrapper.__name__ for wrapper in (online_dare, online_ties, extrapolate_every)}


def values_of(line, config):
    """Runs a line on a configuration; what its last expression is worth, None where it has none."""
    value, space = None, NAMES | {"config": config}
    for statement in ast.parse(line).body:
        if isinstance(statement, ast.Expr):
            value = eval(compile(ast.Expression(statement.value), line, "eval"), space)
        else:
            exec(compile(ast.Module([statement], []), line, "exec"), space)
    return value


def with_lengths(config, line):
    """The phases that the page says a line is run with."""
    phases = [phase for phase in ("sft", "preference") if f"config.{phase}.method" in line]
    for phase in phases:
        config[phase].steps = config[phase].steps or 1
    if phases and not config.rounds and "config.method.name" not in line:
        config.rl.steps = 0
    if phases == ["preference"] and not config.rounds:
        config.task.source = "preferences"
    return config


def test_each_paper_has_one_row():
    assert set(ROWS[0]) == set(papers.COLUMNS)
    assert len(ROWS) == len({int(row["id"]) for row in ROWS}) == 291
    assert all(row["wave"] in papers.WAVES and row["name"] and row["paper"] for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_a_status_says_what_its_row_has(row):
    status = row["status"]
    assert status in papers.STATUSES
    assert row["mechanism"] in (papers.CARRIERS if status != "not carried" else papers.CARRIERS | papers.WANTED)
    assert bool(row["run"]) or status not in papers.WORKS
    assert bool(row["missing"]) or status in papers.WORKS
    assert bool(row["here"]) == (status != "not carried") >= bool(row["run"])


def test_most_papers_work():
    assert sum(row["status"] in papers.WORKS for row in ROWS) >= 150


@pytest.mark.parametrize("row", CARRIED, ids=lambda row: row["id"])
def test_methods_that_a_row_names_are_in_the_catalogue(row):
    named = re.findall(r"`(\w+)`", row["here"])
    known = set(methods.names())
    assert set(named) <= known | NAMES.keys() | OTHERS
    if row["status"] == "method":
        (chosen,) = re.findall(r'config\.(?:method\.name|preference\.method|sft\.method) = "(\w+)"', row["run"])
        assert chosen in named and chosen in known


@pytest.mark.parametrize("row", [row for row in CARRIED if row["run"]], ids=lambda row: row["id"])
def test_the_program_takes_the_line_of_a_row(row, monkeypatch):
    monkeypatch.setattr(base, "_ENTRIES", dict(base._ENTRIES))  # methods of lines are gone behind the test
    line, config = row["run"], default_config()
    value = values_of(line, config)
    assert (value is None) <= ("config." in line)
    if isinstance(value, tuple):

        def own():
            """The composition of the line."""
            return value

        methods.method("A line (2026)", "docs/papers.tsv")(own)
        if value[0] is None:  # nothing is sampled
            config.preference.update(method="own", steps=1)
            config.rl.steps, config.task.source = 0, "preferences"
        else:
            config.method.name = "own"
    config = with_lengths(config, line)
    for own_config in [round_config(config, number) for number in range(len(config.rounds))]:
        check_config(own_config)
    if not config.rounds:
        check_config(config)


def test_the_check_of_lines_finds_what_is_wrong():
    for line in ('config.method.name = "nobody"', 'config.method.name = "otc"', 'config.method.options = {"nothing": 1}'):
        config = default_config()
        values_of(line, config)
        with pytest.raises(ValueError):
            check_config(config)
    with pytest.raises(AttributeError):
        values_of("config.rl.nothing = 1", default_config())


def test_the_page_has_a_row_and_a_count_for_each():
    page = papers.page()
    table = page.split("## All papers")[1]
    assert len(re.findall(r"^\| \d+ \|", table, re.MULTILINE)) == 291
    works = sum(row["status"] in papers.WORKS for row in ROWS)
    assert f"Of 291 papers {works} run here" in page
    assert "[`riskpo`](methods.md#riskpo)" in table
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 9 for line in table.splitlines() if line.startswith("| "))
