"""Jinja templates in a sandbox, and the text that a template marks as the assistant's own."""

import datetime
import functools
import itertools
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.ext

from jaxrl_llm.data import template_limits
from jaxrl_llm.data.template_limits import MOST_SOURCE, LimitedEnvironment

Span = tuple[int, int]

# Noncharacters of Unicode, which no text in use holds; `render_marked` proves that they changed nothing.
_MOST_INDENT = 16  # characters for each value in JSON
# Stands for an answer, to see what a template writes round it.
ANSWER = "\ufdd0answer\ufdd1"
_BEGIN, _END = "\ufdd0generation\ufdd1", "\ufdd1generation\ufdd0"


def render(source: str, context: Mapping[str, Any]) -> str:
    """Text of the template `source` under the variables of `context`.

    A template is foreign code: it may raise anything, and jinja2.TemplateError where it goes beyond the limits of
    `template_limits`.
    """
    return _rendered(source, False, context)


def _rendered(source: str, marked: bool, context: Mapping[str, Any]) -> str:
    if len(source) > MOST_SOURCE:
        raise jinja2.TemplateError(f"it has {len(source)} characters; the most are {MOST_SOURCE}")
    return template_limits.render(_compiled(source, marked), context)


def render_marked(source: str, context: Mapping[str, Any]) -> tuple[str, list[Span] | None]:
    """Text as `render` gives it, and the characters [start, end) of it that come from `{% generation %}` blocks.

    The second is None where the template has no such block.

    Raises:
      jinja2.TemplateError: the template works on the text of such a block, so that its place cannot be told.
    """
    text = render(source, context)
    if not _has_generation(source):
        return text, None
    pieces = re.split(f"({_BEGIN}|{_END})", _rendered(source, True, context))
    spans, place = [], 0
    for piece, mark in zip(pieces[::2], [*pieces[1::2], None], strict=True):
        place += len(piece)
        if mark == _BEGIN:
            spans.append((place, place))
        elif mark == _END and spans:
            spans[-1] = (spans[-1][0], place)
    if "".join(pieces[::2]) != text or pieces[1::2] != [_BEGIN, _END] * len(spans):
        raise jinja2.TemplateError("it works on the text of a {% generation %} block; write the block where the text goes out")
    return text, spans


def end_of_turn(source: str, special: Mapping[str, str]) -> str:
    """What the template writes behind an answer of the assistant, white space before it aside; "" where that cannot be told."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}]
    try:
        text = render(
            source, {"tools": None, "documents": None, **special, "messages": messages, "add_generation_prompt": False}
        )
    except Exception:  # a template may refuse these messages, or be broken: whoever uses it is told then
        return ""
    return text.rpartition(ANSWER)[2].lstrip() if ANSWER in text else ""


@functools.lru_cache(maxsize=16)
def _has_generation(source: str) -> bool:
    tokens = [(kind, value) for _, kind, value in jinja2.Environment().lex(source) if kind != "whitespace"]
    return any(kind == "block_begin" and after == ("name", "generation") for (kind, _), after in itertools.pairwise(tokens))


@functools.lru_cache(maxsize=32)
def _compiled(source: str, marked: bool) -> jinja2.Template:
    generation = _MarkedGeneration if marked else _Generation
    environment = LimitedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[generation, jinja2.ext.loopcontrols],
        filters={"tojson": (_to_json, _size_of_json)},
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, with which some templates mark what the assistant says: rendered as its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(self.surrounded(body), lineno=line)

    def surrounded(self, body):
        return body


class _MarkedGeneration(_Generation):
    """The same with marks before and after the body."""

    def surrounded(self, body):
        begin, end = (jinja2.nodes.Output([jinja2.nodes.TemplateData(mark)]) for mark in (_BEGIN, _END))
        return [begin, *body, end]


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # jinja's own filter escapes HTML, which models were never shown.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _size_of_json(given: dict[str, Any]) -> float:
    indent, separators = given.get("indent") or 0, given.get("separators") or ()
    width = max(indent if isinstance(indent, int) else len(indent), *map(len, separators), 0)
    return math.inf if width > _MOST_INDENT else 1


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 100 or re.search(r"\d", pattern):  # Some systems take widths in a pattern.
        raise jinja2.TemplateError(f"strftime_now is given {pattern[:100]!r}; give a short pattern without numbers")
    return datetime.datetime.now().strftime(pattern)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
