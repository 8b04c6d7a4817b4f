"""The sandbox against programs that attack it: none gets out, none gets more than its share, none says its own verdict."""

import os
import socket
import threading
import time

import hostile_programs as hostile
import pytest
from sandboxes import in_sandboxes, needs_sandbox, outlived

from jaxrl_llm import rewards
from jaxrl_llm.rewards import sandbox, system_calls

TESTS = {"helpers": "", "setup": "", "tests": ["assert f(3) == 10", "assert f(4) == 17"], "entry": None}
RIGHT = "def f(x): return x * x + 1"
SECONDS = 0.5
PATIENCE = 20.0  # of a machine that has much else to do


pytestmark = needs_sandbox


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    """What attacks look for: a file of the run, a variable, and a server."""
    secret = tmp_path_factory.mktemp("run") / "secret"
    secret.write_text("secret")
    os.environ["JAXRL_LLM_SECRET"] = "secret"
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"SECRET, VARIABLE, PORT = {str(secret)!r}, 'JAXRL_LLM_SECRET', {server.getsockname()[1]}\n"
    del os.environ["JAXRL_LLM_SECRET"]


@pytest.fixture(scope="module")
def judge():
    """What judges programs has started."""
    assert sandbox.verdict([RIGHT], TESTS) == [True, True]


@pytest.fixture
def nothing_is_left(judge):
    """After an attack no process of it is there, and the next program is judged as ever, by the same process."""
    before = in_sandboxes()
    yield
    assert sandbox.verdict([RIGHT], TESTS) == [True, True]
    assert not outlived(before)


def attempt(text, surroundings):
    began = time.monotonic()
    found = sandbox.run([surroundings + text], seconds=SECONDS, memory_mb=256, errors=True)
    assert time.monotonic() - began < 2 * SECONDS + PATIENCE
    assert len(found.output) <= sandbox.MOST_OUTPUT and "NameError" not in found.output
    return found


@pytest.mark.parametrize("name", hostile.ESCAPES)
def test_nothing_gets_out(name, surroundings, nothing_is_left):
    found = attempt(hostile.ESCAPES[name], surroundings)
    assert hostile.SUCCESS not in found.output.splitlines()


@pytest.mark.parametrize("name", hostile.EXHAUSTIONS)
def test_nothing_gets_more_than_its_share(name, surroundings, nothing_is_left):
    found = attempt(hostile.EXHAUSTIONS[name], surroundings)
    assert hostile.SUCCESS not in found.output.splitlines()


@pytest.mark.parametrize("name", hostile.FORGERIES)
def test_no_verdict_is_forged(name, nothing_is_left):
    began = time.monotonic()
    held = sandbox.verdict([hostile.FORGERIES[name]], TESTS, seconds=SECONDS, memory_mb=256)
    assert not any(held) and time.monotonic() - began < 2 * SECONDS + PATIENCE


def test_what_outlives_would_be_seen(judge):
    before = in_sandboxes()
    left = sandbox._start("execute", [["import time\ntime.sleep(60)"]], sandbox._limits(SECONDS, 256))
    assert len(outlived(before)) == 3  # bubblewrap, the first process of the namespace, and the program
    left.close()
    assert not outlived(before)


def test_a_check_is_no_easier_to_pass():
    test = "def check(candidate):\n    assert candidate(3) == 10, 'no'\n    assert candidate(4) == 17, 'no'"
    for name in ("own check", "equal to all", "exit", "own built-ins", "exit within"):
        tests = TESTS | {"tests": [test], "entry": "f", "helpers": "def f(x):\n    'x * x + 1'\n"}
        assert not any(sandbox.verdict([hostile.FORGERIES[name]], tests, seconds=SECONDS))
        assert sandbox.verdict([RIGHT], tests) == [True, True]


def test_what_tests_name_is_pythons_unless_nothing_else_is():
    liar = "def f(x): return [0]\ndef sorted(x): return [1, 2]\ndef len(x): return 2\nclass math:\n    pi = [0]"
    asked = ["assert sorted(f([2, 1])) == [1, 2]", "assert len(f(1)) == 2", "assert math.pi == f(1)"]
    assert sandbox.verdict([liar], TESTS | {"tests": asked}) == [False] * 3
    own = "def sum(a, b): return a + b"
    assert sandbox.verdict([own], TESTS | {"tests": ["assert sum(10, 15) == 25", "assert sum(1, 2) == 4"]}) == [True, False]


def test_programs_answer_with_what_they_hold():
    text = """
import collections
class Node:
    def __init__(self, value): self.value, self.next = value, None
Pair = collections.namedtuple("Pair", "a b")
def total(node): return 0 if node is None else node.value + total(node.next)
def count(n):
    for i in range(n): yield i
def plain(): return {(1, 2): {3.5, None}, "é\\ud800": [True, b"x", 2j, 10**40, float("inf")], 1: frozenset({2})}
def pair(): return Pair(1, 2)
def window(): return collections.deque([1, 2])
def wrong(x): raise KeyError(x)
"""
    asked = [
        "root = Node(1)\nroot.next = Node(2)\nassert total(root) == 3 and root.next.value == 2",
        "assert list(count(3)) == [0, 1, 2] and next(count(1)) == 0",
        'assert plain() == {(1, 2): {3.5, None}, "é\\ud800": [True, b"x", 2j, 10**40, float("inf")], 1: frozenset({2})}',
        "assert pair() == (1, 2) and isinstance(pair(), tuple)",
        "assert len(window()) == 2 and window()[1] == 2 and [*window()] == [1, 2]",
        "try:\n    wrong(5)\nexcept KeyError as error:\n    assert '5' in str(error)",
        "assert missing(1) == 1",
        "assert not Node(1) == Node(1)",
        "x = total(None)\nassert x == 0\nassert x == 1",
        "def helper():\n    for x in range(2):\n        assert (y := total(None)) == x\n    return y\nassert helper() == 0",
    ]
    held = sandbox.verdict([text], TESTS | {"tests": asked})
    assert held == [True] * 6 + [False, True] + [True, False] * 2 + [True]


@pytest.mark.parametrize(
    ("tests", "fault"),
    [
        ({"tests": ["assert f(3 = 10"]}, "they are no Python"),
        ({"tests": ["return f(3)"]}, "they are no Python"),
        ({"tests": ["f(3)"]}, "they assert nothing"),
        ({"tests": ["assert f(lambda x: x) == 1"]}, "they give the program a function"),
        ({"setup": "import nosuchmodule"}, "their setup raises ModuleNotFoundError"),
        ({"entry": "f"}, "they define no check"),
    ],
)
def test_tests_at_fault_are_told(tests, fault):
    with pytest.raises(ValueError, match=f"the tests are at fault: {fault}.*correct the columns of the tests"):
        sandbox.verdict([RIGHT], TESTS | tests)


def test_runs_read_print_and_end():
    assert sandbox.run(["print(input(), input())"], "aé\nb") == ("aé b\n", "")
    assert sandbox.run(["print(open(0).read())"], "aé\nb") == ("aé\nb\n", "")
    assert sandbox.run(["x = 1 +", "print(__name__)"]) == ("__main__\n", "")
    output, fault = sandbox.run(["print(1)\n1/0"], errors=True)
    assert "line 2" in output and "ZeroDivisionError" in output and "inside" not in output
    assert fault == "it ended with status 1"
    assert sandbox.run(["import sys\nsys.exit(3)"]).fault == "it ended with status 3"
    assert sandbox.run(["print('x' * 100)"], most_output=10) == ("x" * 10, "it wrote more than 10 bytes")
    assert sandbox.run(["while True: pass"], seconds=SECONDS).fault == "it took too long"
    assert sandbox.run(["import ctypes\nctypes.string_at(0)"]).fault == "its interpreter crashed"
    assert sandbox.run(["print(hash('a'))"]) == sandbox.run(["print(hash('a'))"])


def test_threads_have_their_own_judge_and_may_end():
    found = []
    for _ in range(2):
        threads = [threading.Thread(target=lambda: found.append(sandbox.verdict([RIGHT], TESTS))) for _ in range(3)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert found == [[True, True]] * 6


def test_a_verdict_that_nobody_took_is_nobody_elses(monkeypatch):
    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(sandbox, "_reply", lambda channel: (_ for _ in ()).throw(KeyboardInterrupt))
        sandbox.verdict([RIGHT], TESTS)
    assert sandbox.verdict([""], TESTS) == [False, False]


def test_without_bubblewrap_nothing_runs(monkeypatch):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="does not work here: there is no command bwrap on PATH; apt-get install bubblewrap"):
        rewards.code()


def test_without_namespaces_nothing_runs(monkeypatch):
    monkeypatch.setattr(sandbox, "_options", lambda: ["--ro-bind", "/nowhere", "/"])
    with pytest.raises(ValueError, match="does not work here: .*nowhere.*kernel.unprivileged_userns_clone=1"):
        rewards.code()


def test_unknown_machines_are_refused(monkeypatch):
    monkeypatch.setattr(system_calls.platform, "machine", lambda: "riscv64")
    with pytest.raises(ValueError, match="knows the system calls of x86_64, aarch64, and this machine is riscv64"):
        rewards.code()
