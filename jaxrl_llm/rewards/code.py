"""Programs that a model wrote, run in the sandbox against the tests of their examples."""

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxrl_llm.rewards import sandbox

_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_KEPT = 1024  # verdicts that a process remembers: late in training many of a group's programs are one


def code(*, share: bool = False, seconds: float = 4.0, memory_mb: int = 512) -> Callable[..., list[float | None]]:
    """Reward: whether the program that a completion writes passes the tests of its example, in a sandbox.

    The program is the last fenced block of the completion, behind the prompt where that is code; without a block it is the
    prompt with the completion behind it, or the completion alone where that does not compile. The tests of an example are one
    of three:

    * `test`, which defines `check(candidate)`, and `entry_point`, the name of the function to check (HumanEval,
      arXiv:2107.03374);
    * `test_list`, texts of asserts that call the program's functions by name, behind the code of `test_setup_code` or the
      lines of `test_imports` (MBPP, arXiv:2108.07732);
    * `cases`, of which `inputs` are what a program reads and `outputs` what it is to print, white space at the ends of lines
      and of the text aside (APPS, arXiv:2105.09938), as an object or the text of one.

    Functions are judged by the plain values that they return: numbers, texts, bytes, and lists, tuples, sets and dicts of
    such. An argument that a function changes in place stays as it is for the tests.

    Args:
      share: the share of asserts or cases that hold, in place of 1.0 for all of them and else 0.0.
      seconds: of a processor, rounded up, for a program, or for each of its `cases`; after twice as many by the clock it is
        ended.
      memory_mb: address space of a program in 1e6 bytes.

    Raises ValueError: `seconds` or `memory_mb` is too little, or there is no sandbox; when the reward is made, which is at the
      start of a run.
    """
    if seconds <= 0 or memory_mb < 64:
        raise ValueError(f"seconds is {seconds} and memory_mb {memory_mb}; give seconds above 0 and at least 64 MB")
    sandbox.check()
    reward = functools.partial(_code, share, (seconds, memory_mb))
    reward.rowwise, reward.answer = True, program_of
    return reward


def program_of(completion: str) -> str:
    """The last fenced block of a text, or all of it."""
    blocks = _FENCED.findall(completion)
    return blocks[-1] if blocks else completion


def _code(
    share, limits, /, prompts: Sequence[Any], completions: Sequence[str], test=None, entry_point=None, test_list=None,
    test_setup_code=None, test_imports=None, cases=None,
) -> list[float | None]:  # fmt: skip
    """1.0 or 0.0, or a share; None for an example without tests. Each column has None where an example has no such."""
    nothing = [None] * len(completions)
    columns = (test, test_list, cases, entry_point, test_setup_code, test_imports)
    rows = zip(prompts, completions, *(column or nothing for column in columns), strict=True)
    return [_value(_held(limits, *row), share) for row in rows]


def _value(held: Iterable[bool] | None, share: bool) -> float | None:
    if held is None or not share:
        return None if held is None else float(all(held))
    held = list(held)
    return sum(held) / len(held)


def _held(limits, prompt, completion, test, asserts, cases, entry, setup, imports) -> Iterable[bool] | None:
    """Which of its tests a completion passes, cases as they are asked for; None where there are no tests."""
    begun = program_of(prompt) if isinstance(prompt, str) else ""
    texts, setup = _texts(begun, completion), "\n".join([*(imports or ()), setup or ""])
    kinds = [name for name, tests in (("test", test), ("test_list", asserts), ("cases", cases)) if tests is not None]
    if len(kinds) > 1:
        raise ValueError(f"an example has tests in the columns {kinds}; leave all but one of them out, or null")
    if cases is not None:
        return (_prints(texts, *case, *limits) for case in _pairs(cases))
    if test is not None:
        if not isinstance(entry, str) or not entry.isidentifier():
            raise ValueError(f"entry_point is {entry!r}; it must be the name of the function that `test` checks")
        return _verdict(texts, begun, setup, (test,), entry, *limits)
    if asserts is not None and (isinstance(asserts, str) or not all(isinstance(text, str) for text in asserts)):
        raise ValueError(f"test_list is {asserts!r:.80}; it must be a list of texts such as 'assert f(1) == 2'")
    return None if asserts is None else _verdict(texts, "", setup, tuple(asserts), None, *limits)


def _texts(begun: str, completion: str) -> tuple[str, ...]:
    """Programs that a completion may be, of which the first that compiles is."""
    block = program_of(completion)
    return (begun + completion, completion) if block == completion else (f"{begun}\n{block}", block)


@functools.lru_cache(_KEPT)
def _verdict(texts, helpers: str, setup: str, tests: tuple[str, ...], entry: str | None, seconds, memory_mb) -> Sequence[bool]:
    asked = {"helpers": helpers, "setup": setup, "tests": tests, "entry": entry}
    return sandbox.verdict(texts, asked, seconds=seconds, memory_mb=memory_mb)


@functools.lru_cache(_KEPT)
def _prints(texts, given: str, wanted: str, seconds: float, memory_mb: int) -> bool:
    """Whether a program prints what is wanted, which it never sees."""
    most = 2 * len(wanted.encode()) + sandbox.MOST_OUTPUT
    output, fault = sandbox.run(texts, given, seconds=seconds, memory_mb=memory_mb, most_output=most)
    return not fault and _lines(output) == _lines(wanted)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _pairs(cases: Mapping[str, Any] | str) -> list[tuple[str, str]]:
    """(what is read, what is to be printed) of each case."""
    found = json.loads(cases) if isinstance(cases, str) else cases
    columns = [found.get(name) for name in ("inputs", "outputs")] if isinstance(found, Mapping) else [None]
    texts = all(isinstance(column, list | tuple) and all(isinstance(text, str) for text in column) for column in columns)
    if not texts or not columns[0] or len(columns[0]) != len(columns[1]) or set(found) != {"inputs", "outputs"}:
        wanted = '{"inputs": [text, ...], "outputs": [text, ...]}, one of each for a case'
        raise ValueError(f"cases is {found!r:.80}; it must be {wanted}")
    return list(zip(*columns, strict=True))
