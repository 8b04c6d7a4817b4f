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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

SCOPES = ("row", "pair", "group")
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
TEMPLATES = {"row": _ROW, "pair": _PAIR, "group": _GROUP}
PATTERNS = {"row": r"Score:\s*(-?\d+(?:\.\d+)?)", "pair": r"Better:\s*([ABC])\b", "group": r"Scores:\s*([-\d.,\s]+)"}
_WAIT_SECONDS = 0.5  # before the first further attempt; then twice as long each time
_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may pass


class Judge(NamedTuple):
    """Whom to ask and how."""

    url: str  # of the interface, up to and with "/v1"
    model: str
    template: str
    pattern: str
    scope: str
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

    With the scope "row" each answer is scored by itself, "pair" compares each two of a group in both orders and gives the share
    of comparisons won, with half for none, and "group" has all of a group scored at once.

    Args:
      url: such as "http://127.0.0.1:8000/v1", of any server with /chat/completions.
      model: its name there.
      template: the question, with {prompt}, {answer} and other columns, and {completion}, or {first} and {second} for pairs, or
        {completions} for groups; other braces are doubled. By default a plain one of the scope.
      pattern: regular expression, whose first group in the last match is the number, A, B or C, or numbers with commas.
      scope: "row", "pair" or "group".
      seconds: longest time for an answer.
      attempts: how often a question is asked that fails for reasons that may pass.
      budget: most questions of the run; later ones are missing. 0 for no bound.
      max_tokens: of what the judge says.
      key: environment variable with the token of the server; without one none is sent.
      folder: where "judge.jsonl" has every question and what was said; a run gives its own.

    Raises ValueError: an unknown scope, a pattern without a group, or a number out of range.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}; give one of {SCOPES}")
    pattern = pattern or PATTERNS[scope]
    if re.compile(pattern).groups < 1:
        raise ValueError(f"pattern is {pattern!r}; it has no group in brackets, which the score is")
    bounds = {"seconds": (seconds, 1e-3), "attempts": (attempts, 1), "budget": (budget, 0), "max_tokens": (max_tokens, 1)}
    for name, (number, least) in bounds.items():
        if number < least:
            raise ValueError(f"{name} is {number}; give at least {least:g}")
    own = Judge(url, model, template or TEMPLATES[scope], pattern, scope, seconds, attempts, budget, max_tokens, key, folder)
    reward = functools.partial({"row": _of_rows, "pair": _of_pairs, "group": _of_groups}[scope], own)
    setattr(reward, "rowwise" if scope == "row" else "whole_groups", True)
    return reward


def _of_rows(judge: Judge, /, prompts, completions, **columns) -> list[float | None]:
    found = []
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        said = ask(judge, _filled(judge, prompt, _row_of(columns, number), completion=completion))
        found.append(None if said is None else _number(said))
    return found


def _of_pairs(judge: Judge, /, prompts, completions, **columns) -> list[float | None]:
    won: list[list[float]] = [[] for _ in completions]
    for first, second in itertools.permutations(range(len(completions)), 2):
        texts = {"first": completions[first], "second": completions[second]}
        said = ask(judge, _filled(judge, prompts[first], _row_of(columns, first), **texts))
        share = {"A": 1.0, "B": 0.0, "C": 0.5}.get(said or "")
        if share is not None:
            won[first].append(share)
            won[second].append(1.0 - share)
    return [sum(own) / len(own) if own else None for own in won]


def _of_groups(judge: Judge, /, prompts, completions, **columns) -> list[float | None]:
    listed = "\n\n".join(f"Answer {place}:\n{text}" for place, text in enumerate(completions, 1))
    said = ask(judge, _filled(judge, prompts[0], _row_of(columns, 0), completions=listed))
    scores = [_number(part) for part in (said or "").replace("\n", " ").split(",") if part.strip()]
    return scores if len(scores) == len(completions) else [None] * len(completions)


def _row_of(columns: dict[str, Sequence], number: int) -> dict[str, Any]:
    return {name: values[number] for name, values in columns.items()}


def _filled(judge: Judge, prompt: Any, columns: dict[str, Any], **texts: str) -> str:
    try:
        return judge.template.format(**{**columns, "prompt": _text(prompt), **texts})
    except (KeyError, IndexError, ValueError) as error:
        known = sorted({*columns, "prompt", *texts})
        raise ValueError(f"the template of the judge asks for {error}; there are {known}, other braces are doubled") from error


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


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
    matches = re.findall(judge.pattern, text)
    last = matches[-1] if matches else None
    return last[0] if isinstance(last, tuple) else last


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
