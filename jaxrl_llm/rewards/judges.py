"""Judges: language models that score answers, asked as clients of OpenAI's interface ask.

What a judge has said is kept in the run's folder and not asked again, so that a step that is taken anew is scored alike.
"""

import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jaxrl_llm.compose import require
from jaxrl_llm.rewards.answers import text_of
from jaxrl_llm.rewards.worker import LARGEST_REWARD

_ROW = (
    "Question:\n{prompt}\n\nReference answer:\n{answer}\n\nAnswer:\n{completion}\n\n"
    "Is the answer right? End with 'Score: ' and a number from 0 (wrong) to 1 (right)."
)
_PAIR = (
    "Question:\n{prompt}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}\n\n"
    "Which answer is better? End with 'Better: A', 'Better: B' or 'Better: C' if neither is."
)
_GROUP = (
    "Question:\n{prompt}\n\n{completions}\n\nScore each answer from 0 to 1. End with 'Scores: ' and the numbers in the order "
    "of the answers, with commas between them."
)
_STEPS = (
    "Question:\n{prompt}\n\nReference answer:\n{answer}\n\n{steps}\n\nIs each step right? End with 'Steps: ' and 1 (right) or "
    "-1 (wrong) for each step, in their order, with commas between them."
)
TEMPLATES = {"row": _ROW, "pair": _PAIR, "anchor": _PAIR, "group": _GROUP, "steps": _STEPS, "spans": _STEPS}
_LETTER, _NUMBERS = r"Better:\s*([ABC])\b", r"Steps:\s*([-\d.,\s]+)"
PATTERNS = {"row": r"Score:\s*(-?\d+(?:\.\d+)?)", "pair": _LETTER, "anchor": _LETTER, "group": r"Scores:\s*([-\d.,\s]+)"}
PATTERNS |= {"steps": _NUMBERS, "spans": _NUMBERS}
WHOLE_GROUPS = ("pair", "group")  # scopes that look at all answers of a prompt
Verdict = float | list[list[float]] | None
_WAIT_SECONDS = 0.5  # before the first further attempt; then twice as long each time
_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may pass


class Form(NamedTuple):
    """What a judge is asked, and how its answer is read."""

    template: str
    pattern: str
    scope: str


class Judge(NamedTuple):
    """Whom to ask and how."""

    form: Form
    url: str  # of the interface, up to and with "/v1"
    model: str
    seconds: float  # for an answer
    attempts: int
    budget: int  # most questions of a run; 0 for no bound
    max_tokens: int
    key: str  # environment variable of the token
    folder: str  # of what was said; "" for none


def judge(
    url: str, model: str, *, template: str = "", pattern: str = "", scope: str = "row", seconds: float = 60.0,
    attempts: int = 4, budget: int = 0, max_tokens: int = 512, key: str = "OPENAI_API_KEY", folder: str = "",
) -> Callable[..., list[float | None]]:  # fmt: skip
    """Reward: what a language model says of an answer. An answer of which it says nothing is missing.

    See `form_of` for the scopes.

    Args:
      url: such as "http://127.0.0.1:8000/v1", of any server with /chat/completions.
      model: its name there.
      template, pattern, scope: see `form_of`.
      seconds: longest time for an answer.
      attempts: how often a question is asked that fails for reasons that may pass.
      budget: most questions of the run; later ones are missing. 0 for no bound.
      max_tokens: of what the judge says.
      key: environment variable with the token of the server; without one none is sent.
      folder: where "judge.jsonl" has every question and what was said; a run gives its own.

    Raises ValueError: as `form_of` says, or a number out of range.
    """
    form = form_of(template, pattern, scope)
    bounds = {"seconds": (seconds, 1e-3), "attempts": (attempts, 1), "budget": (budget, 0), "max_tokens": (max_tokens, 1)}
    for name, (number, least) in bounds.items():
        require(number >= least, name, number, f"at least {least:g}")
    reward = functools.partial(_asked, Judge(form, url, model, seconds, attempts, budget, max_tokens, key, folder))
    setattr(reward, "whole_groups" if scope in WHOLE_GROUPS else "rowwise", True)
    reward.row_seconds = attempts * seconds + _WAIT_SECONDS * 2**attempts
    return reward


def form_of(template: str = "", pattern: str = "", scope: str = "row") -> Form:
    """The form of a judge's questions.

    Args:
      template: the question, with {prompt}, {answer} and other columns, and what the scope adds; other braces are doubled. By
        default a plain one of the scope.
      pattern: regular expression, whose first group in the last match is the verdict.
      scope: "row" scores each answer, {completion}, by itself: a number. "pair" compares each two of a group, {first} and
        {second}, in both orders by A, B or C, and gives the share of comparisons won, with half for none; "anchor" compares
        each answer with that of the column "answer" alike. "group" has all of a group, {completions}, scored at once: numbers
        with commas between. "steps" has each step of an answer, {steps}, scored by a number that is above 0 where it is
        right, and gives the share of steps before the first wrong one
        (https://arxiv.org/abs/2505.11595); "spans", for facts, gives the numbers as those of the characters of the steps,
        equal ones that follow each other as one span. Steps are paragraphs, or the lines of an answer of one paragraph.

    Raises ValueError: an unknown scope, or a pattern without a group.
    """
    require(scope in TEMPLATES, "scope", scope, f"one of {sorted(TEMPLATES)}")
    pattern = pattern or PATTERNS[scope]
    if re.compile(pattern).groups < 1:
        raise ValueError(f"pattern is {pattern!r}; it has no group in brackets, which the score is")
    return Form(template or TEMPLATES[scope], pattern, scope)


def _asked(judge: Judge, /, prompts, completions, **columns) -> list[Verdict]:
    said = [ask(judge, question) for question in questions(judge.form, prompts, completions, columns)]
    return verdicts(judge.form, said, completions)


def questions(form: Form, prompts: Sequence, completions: Sequence[str], columns: Mapping[str, Sequence]) -> list[str]:
    """What is asked of these rows, which are one group where the scope looks at whole ones."""

    def filled(row: int, **texts: str) -> str:
        own = {name: values[row] for name, values in columns.items()} | {"prompt": text_of(prompts[row])} | texts
        try:
            return form.template.format(**own)
        except (KeyError, IndexError, ValueError) as error:
            known = f"there are {sorted(own)}, other braces are doubled"
            raise ValueError(f"the template of the judge asks for {error}; {known}") from error

    rows = range(len(completions))
    if form.scope == "group":
        return [filled(0, completions=_listed("Answer", completions))] if completions else []
    if form.scope == "pair":
        pairs = itertools.permutations(rows, 2)
        return [filled(first, first=completions[first], second=completions[second]) for first, second in pairs]
    if form.scope == "anchor":
        if "answer" not in columns:
            raise ValueError(f"the scope 'anchor' compares with the column 'answer'; there are {sorted(columns)}")
        orders = [(text, str(answer)) for text, answer in zip(completions, columns["answer"], strict=True)]
        return [filled(row, first=a, second=b) for row in rows for a, b in (orders[row], orders[row][::-1])]
    if form.scope in ("steps", "spans"):
        return [filled(row, steps=_listed("Step", [own[2] for own in steps_of(completions[row])])) for row in rows]
    return [filled(row, completion=completions[row]) for row in rows]


def verdicts(form: Form, said: Sequence[str | float | None], completions: Sequence[str]) -> list[Verdict]:
    """Of each row what was said of it, in answer to all `questions`: what the pattern found, or the share of A; None for
    nothing."""
    if form.scope == "row":
        return [_number(found) for found in said]
    if form.scope == "group":
        scores = _numbers(said[0] if said else None)
        return scores if len(scores) == len(completions) else [None] * len(completions)
    if form.scope in ("steps", "spans"):
        return [_of_steps(form.scope, steps_of(text), _numbers(own)) for text, own in zip(completions, said, strict=True)]
    rows = range(len(completions))
    pairs = itertools.permutations(rows, 2) if form.scope == "pair" else [(r, -1)[::by] for r in rows for by in (1, -1)]
    won: dict[int, list[float]] = {row: [] for row in (*rows, -1)}
    for (first, second), found in zip(pairs, said, strict=True):
        share = {"A": 1.0, "B": 0.0, "C": 0.5}.get(found) if isinstance(found, str) else found
        if share is not None:
            won[first].append(share)
            won[second].append(1.0 - share)
    return [sum(won[row]) / len(won[row]) if won[row] else None for row in rows]


def _listed(name: str, texts: Sequence[str]) -> str:
    return "\n\n".join(f"{name} {place}:\n{text}" for place, text in enumerate(texts, 1))


def steps_of(text: str) -> list[tuple[int, int, str]]:
    """First character, the one behind the last, and text of each paragraph; of each line where there is one paragraph."""
    for pattern in (r"\S(?:(?!\n\s*\n).)*", r"\S.*"):
        flags = re.DOTALL if "\n" in pattern else re.NOFLAG
        found = [(own.start(), own.end(), own.group()) for own in re.finditer(pattern, text, flags)]
        if len(found) > 1:
            return found
    return found


def _of_steps(scope: str, steps: Sequence[tuple[int, int, str]], numbers: Sequence[float | None]) -> Verdict:
    """What numbers of steps say: the share before the first that is not above 0, or spans; None where there are not as many."""
    if len(numbers) != len(steps) or None in numbers or not steps:
        return None
    if scope == "steps":
        return next((place for place, own in enumerate(numbers) if own <= 0), len(numbers)) / len(numbers)
    merged = itertools.groupby(zip(steps, numbers, strict=True), key=lambda pair: pair[1])
    runs = [(value, [step for step, _ in run]) for value, run in merged]
    return [[float(run[0][0]), float(run[-1][1]), value] for value, run in runs]


def _number(text: str | float | None) -> float | None:
    try:
        value = float(text)
    except (ValueError, TypeError):
        return None
    return value if abs(value) <= LARGEST_REWARD else None


def _numbers(text: str | None) -> list[float | None]:
    return [_number(part) for part in (text or "").replace("\n", " ").split(",") if part.strip()]


def found_in(form: Form, text: str) -> str | None:
    """The verdict in a judge's answer; None where there is none."""
    matches = re.findall(form.pattern, text)
    last = matches[-1] if matches else None
    return last[0] if isinstance(last, tuple) else last


def ask(judge: Judge, question: str) -> str | None:
    """What the pattern finds in the judge's answer; None where it finds nothing, or the budget is spent.

    Raises OSError: the judge does not answer.
    """
    name = hashlib.sha256(json.dumps([judge.model, judge.max_tokens, question]).encode()).hexdigest()
    known = _remembered(judge.folder)
    text = known.get(name)
    if text is None:
        if judge.budget and len(known) >= judge.budget:
            return None
        text = _answer(judge, question)
        _note(judge, {"name": name, "question": question, "said": text})
    return found_in(judge.form, text)


# Of each folder, how much of its file this process has read, and what that says.
_READ: dict[str, tuple[int, dict[str, str]]] = {}


def _remembered(folder: str) -> dict[str, str]:
    """What was said, by the names of the questions; of the file, what is new since it was last read, whole lines alone."""
    path = pathlib.Path(folder) / "judge.jsonl"
    if not folder or not path.exists():
        return {}
    begin, known = _READ.get(folder, (0, {}))
    with path.open("rb") as file:
        file.seek(begin)
        fresh = file.read()
    whole = fresh[: fresh.rfind(b"\n") + 1]  # another worker may be at the last line
    for line in whole.splitlines():
        told = json.loads(line)
        known[told["name"]] = told["said"]
    _READ[folder] = begin + len(whole), known
    return known


def _note(judge: Judge, told: dict[str, str]) -> None:
    if judge.folder:
        descriptor = os.open(pathlib.Path(judge.folder) / "judge.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (json.dumps(told) + "\n").encode())  # one write: lines of several workers do not mix
        finally:
            os.close(descriptor)


def _answer(judge: Judge, question: str) -> str:
    """What the judge says, asked again where its server is busy or not there."""
    body = {"model": judge.model, "messages": [{"role": "user", "content": question}], "temperature": 0}
    data, headers = json.dumps(body | {"max_tokens": judge.max_tokens}).encode(), {"content-type": "application/json"}
    if token := os.environ.get(judge.key):
        headers["authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{judge.url.rstrip('/')}/chat/completions", data, headers)
    for attempt in range(1, judge.attempts + 1):
        try:
            with urllib.request.urlopen(request, timeout=judge.seconds) as answer:
                return json.loads(answer.read())["choices"][0]["message"]["content"] or ""
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            passing = not isinstance(error, urllib.error.HTTPError) or error.code in _AGAIN
            if not passing or attempt == judge.attempts:
                told = error.read().decode(errors="replace")[:200] if isinstance(error, urllib.error.HTTPError) else ""
                raise OSError(f"the judge at {judge.url} does not answer: {error!r} {told}") from error
        time.sleep(_WAIT_SECONDS * 2 ** (attempt - 1))
    return ""
