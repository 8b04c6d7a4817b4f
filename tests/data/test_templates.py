"""Foreign templates have limits, and what stays within them is rendered as jinja does."""

import dataclasses
import threading
import time

import jinja2.ext
import jinja2.sandbox
import pytest
from data.hostile_templates import HARMLESS, HOSTILE

from jaxrl_llm import data
from jaxrl_llm.data import template_limits

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


def rendered(source, messages=MESSAGES):
    return data.render_chat(dataclasses.replace(data.byte_tokenizer(), chat_template=source), messages)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_refused_in_one_short_line(name, monkeypatch):
    monkeypatch.setattr(template_limits, "STEPS", 10_000)  # The same refusals, sooner.
    with pytest.raises(
        ValueError, match="^the chat template refused messages with the roles .'user', 'assistant'.: ."
    ) as caught:
        rendered(HOSTILE[name])
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["nested loops that write", "loops with a heavy body", "doubling a list", "tuples as keys", "sort"]
)
def test_hostile_templates_are_refused_soon(name):
    start = time.process_time()
    with pytest.raises(ValueError, match="the chat template refused"):
        rendered(HOSTILE[name])
    assert time.process_time() - start < 5


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_within_the_limits_is_rendered_as_jinja_does(name):
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    assert rendered(HARMLESS[name]) == environment.from_string(HARMLESS[name]).render(messages=MESSAGES)


def test_limits_hold_in_every_thread_and_long_dialogues_have_more():
    found = []
    thread = threading.Thread(target=lambda: found.append(rendered("{{ messages | length }}")))
    thread.start()
    thread.join()
    assert found == ["2"]
    dialogue = [{"role": "user", "content": "x" * 50_000}] * 40
    source = "{% set ns = namespace(x='') %}{% for m in messages %}{% set ns.x = ns.x + m.content %}{% endfor %}{{ ns.x }}"
    assert len(rendered(source, dialogue)) == 2_000_000
    pairs = "{% for a in messages %}{% for b in messages %}{% if a.role == b.role %}{% endif %}{% endfor %}{% endfor %}"
    assert rendered(pairs, [{"role": "user", "content": "x"}] * 300) == ""
