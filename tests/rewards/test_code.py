"""Programs against the tests of their examples, in each form; HumanEval where JAXRL_LLM_HUMAN_EVAL names its file."""

import ast
import gzip
import json
import os
import pathlib

import hostile_programs as hostile
import numpy as np
import pytest
from programming_problems import RIGHT, SQUARES, SUMS, WORDS, WRONG
from sandboxes import in_sandboxes, needs_sandbox, outlived

from jaxrl_llm import data, rewards
from jaxrl_llm.rewards.code import program_of
from jaxrl_llm.rewards.worker import call_reward

pytestmark = needs_sandbox
COLUMNS = ("test", "entry_point", "test_list", "test_setup_code", "test_imports", "cases")
HUMAN_EVAL = os.environ.get("JAXRL_LLM_HUMAN_EVAL", "")


def columns_of(examples):
    return {name: [example.get(name) for example in examples] for name in COLUMNS}


def scored(pool, reward, rows):
    examples, completions = [row[0] for row in rows], [row[1] for row in rows]
    prompts = [example["prompt"] for example in examples]
    values, failures = pool.score({"code": reward}, prompts, completions, columns_of(examples), 120.0)
    assert not failures
    return values[:, 0]


@pytest.fixture(scope="module")
def pool():
    with rewards.RewardPool(1) as pool:
        yield pool


def test_right_programs_pass_and_wrong_ones_do_not(pool):
    rows = RIGHT + WRONG
    shares = [row[2] for row in rows]
    np.testing.assert_array_equal(scored(pool, rewards.code(), rows), [float(share == 1) for share in shares])
    np.testing.assert_allclose(scored(pool, rewards.code(share=True), rows), shares)


def test_hostile_programs_cost_their_own_rows(pool):
    example = {"prompt": "", "test_list": ["assert f(3) == 10", "assert f(4) == 17"]}
    attacks = [
        "exit at once",
        "written verdict",
        "equal to all",
        "endless answers",
        "hanging answer",
        "imports",
        "tests in memory",
    ]
    programs = [*map(hostile.FORGERIES.get, attacks), hostile.EXHAUSTIONS["fork bomb"], hostile.EXHAUSTIONS["memory"]]
    right = "def f(x): return x * x + 1"
    rows = [(example, text) for text in [right, *programs, right]]
    assert scored(pool, rewards.code(seconds=0.5), rows).tolist() == [1.0] + [0.0] * len(programs) + [1.0]


def test_a_program_ends_with_the_worker_that_waits_for_it():
    sleeper, before = "import time\ntime.sleep(60)\n", in_sandboxes()
    with rewards.RewardPool(1, row_seconds=1.0) as impatient:
        examples = [SUMS, SQUARES]
        values, failures = impatient.score(
            {"code": rewards.code(seconds=9.0)}, ["", ""], [sleeper, sleeper], columns_of(examples), 20.0
        )
    assert values.tolist() == [[0.0], [0.0]] and all(failure.timed_out for failure in failures)
    assert not outlived(before)


def test_examples_without_tests_have_no_value_and_rows_depend_on_nothing_else():
    reward = rewards.code()
    rows = [({"prompt": "p"}, "print(1)"), RIGHT[0], WRONG[0], (SUMS | {"cases": json.dumps(SUMS["cases"])}, RIGHT[6][1])]
    columns = columns_of([row[0] for row in rows])
    assert call_reward(reward, [row[0]["prompt"] for row in rows], [row[1] for row in rows], columns) == [None, 1.0, 0.0, 1.0]
    assert reward.rowwise and rewards.answer_of(reward)("x\n```python\na\n```") == "a\n"


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (SQUARES | {"entry_point": None}, "entry_point is None; it must be the name of the function"),
        (SQUARES | WORDS, r"tests in the columns \['test', 'test_list'\]"),
        (WORDS | {"test_list": "assert f(1) == 1"}, "test_list is 'assert f.1. == 1'; it must be a list"),
        ({"prompt": "", "cases": {"inputs": ["1"], "outputs": []}}, "cases is .*; it must be"),
        ({"prompt": "", "cases": {"inputs": [[1]], "outputs": [2], "fn_name": "f"}}, "cases is .*; it must be"),
    ],
)
def test_malformed_tests_are_told(example, message):
    with pytest.raises(ValueError, match=message):
        call_reward(rewards.code(), [example["prompt"]], ["x"], columns_of([example]))


def test_malformed_options_are_told():
    with pytest.raises(ValueError, match="seconds is 0 and memory_mb 512"):
        rewards.code(seconds=0)


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("a = 1", "a = 1"),
        ("```python\na = 1\n```", "a = 1\n"),
        ("x\n```\na\n```\ny\n  ```Python3\nb\n  ```", "b\n"),
        ("```text\nsome\n```\nwords", "some\n"),
        ("```python\nunfinished", "unfinished"),
        ("a ``` b", "a ``` b"),
    ],
)
def test_the_program_of_a_completion(completion, program):
    assert program_of(completion) == program


def test_demonstrations_of_the_built_in_task_pass_unless_they_are_careless(pool):
    careful, careless = (data.program_source(12, seed=3, careless=share) for share in (0.0, 1.0))
    assert scored(pool, rewards.code(), [(example, example["completion"]) for example in careful]).tolist() == [1.0] * 12
    found = scored(pool, rewards.code(), [(example, example["completion"]) for example in careless])
    same = [float(example["completion"] == example["answer"]) for example in careless]
    assert 0 < sum(same) < 12 and found.tolist() == same


# ---- HumanEval (arXiv:2107.03374, MIT licence), which is not part of this project


@pytest.fixture(scope="module")
def human_eval():
    path = pathlib.Path(HUMAN_EVAL)
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [json.loads(line) for line in text.splitlines()]


def with_changed_constant(problem):
    """The solution with its first number one larger, or None where it has none."""
    tree = ast.parse(problem["prompt"] + problem["canonical_solution"])
    body = next(node for node in tree.body if getattr(node, "name", "") == problem["entry_point"])
    numbers = [node for node in ast.walk(body) if isinstance(node, ast.Constant) and type(node.value) in (int, float)]
    if not numbers:
        return None
    numbers[0].value += 1
    return f"```python\n{ast.unparse(tree)}\n```"


@pytest.mark.slow
@pytest.mark.skipif(not HUMAN_EVAL, reason="JAXRL_LLM_HUMAN_EVAL names no file of HumanEval")
def test_solutions_of_human_eval_pass_and_broken_ones_do_not(human_eval, pool):
    assert len(human_eval) == 164
    reward = rewards.code()
    right = scored(pool, reward, [(problem, problem["canonical_solution"]) for problem in human_eval])
    assert [problem["task_id"] for problem, value in zip(human_eval, right, strict=True) if value != 1] == []
    broken = scored(pool, reward, [(problem, "    return None\n") for problem in human_eval])
    assert [problem["task_id"] for problem, value in zip(human_eval, broken, strict=True) if value != 0] == []
    changed = [(problem, found) for problem in human_eval if (found := with_changed_constant(problem))]
    assert scored(pool, reward, changed).mean() < 0.25  # some numbers do not matter
