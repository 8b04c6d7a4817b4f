"""Chat templates: agreement with transformers in text and ids, the sandbox, and the errors."""

import dataclasses
import json

import jinja2
import pytest
import transformers
from data.chat_templates import CHATML, DIALOGUES, FAMILIES, LLAMA, PLAIN_CHATML, TOOLS, turns, write_family

from jaxrl_llm import data
from jaxrl_llm.data.chat import with_options

QUESTION = turns("What is 2+2?")
TOOL_DIALOGUES = {"tool", "tools", "two tools"}
# Dialogues that the templates cannot write.
REFUSED = {family: TOOL_DIALOGUES | {"parts"} for family in ("marked", "mistral", "phi")}
REFUSED |= {"plain": {"parts"}, "harmony": {"parts"}, "gemma": TOOL_DIALOGUES}


def ours(template, **special):
    return dataclasses.replace(data.load_tokenizer("bytes"), chat_template=template, special_tokens=tuple(special.items()))


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """family -> our tokenizer and that of transformers, from the same files."""
    directories = {family: write_family(tmp_path_factory.mktemp(family), family) for family in FAMILIES}
    load = transformers.AutoTokenizer.from_pretrained
    return {family: (data.load_tokenizer(place), load(place)) for family, place in directories.items()}


def theirs_or_none(tokenizer, messages, **options):
    """Text and ids of transformers; None if its template or its code refuses the messages."""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        return text, tokenizer.apply_chat_template(messages, **options)["input_ids"]
    except (jinja2.TemplateError, TypeError):
        return None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_agrees_with_transformers(families, family, dialogue):
    tokenizer, theirs = families[family]
    messages, agreed = DIALOGUES[dialogue], 0
    for variables in ({}, {"tools": TOOLS}, {"enable_thinking": False}, {"tools": [], "enable_thinking": True}):
        for prompt in (True, False):
            options = {"add_generation_prompt": prompt, "date_string": "26 Jul 2024", **variables}
            expected = theirs_or_none(theirs, messages, **options)
            if expected is None:
                with pytest.raises(ValueError, match="the chat template refused messages with the roles"):
                    data.render_chat(tokenizer, messages, **options)
                continue
            assert (
                data.render_chat(tokenizer, messages, **options),
                data.encode_chat(tokenizer, messages, **options),
            ) == expected
            agreed += 1
    assert agreed == (0 if dialogue in REFUSED.get(family, ()) else 8)


def test_options_of_a_template_are_told_everywhere(families):
    tokenizer, theirs = families["chatml"] if "chatml" in families else next(iter(families.values()))
    silent = with_options(tokenizer, {"enable_thinking": False})
    expected = theirs.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert data.render_chat(silent, QUESTION) == expected != data.render_chat(tokenizer, QUESTION)
    assert data.encode_prompt(silent, QUESTION) == data.encode_chat(tokenizer, QUESTION, enable_thinking=False)
    # What is said for a conversation goes before.
    assert data.render_chat(silent, QUESTION, enable_thinking=True) == data.render_chat(tokenizer, QUESTION)
    ids, mask = data.encode_dialogue(silent, turns("a", "b"))
    assert (ids, mask) == data.encode_dialogue(tokenizer, turns("a", "b"), enable_thinking=False)
    for options, fault in (({"thinkng": 1}, "'thinkng' would change nothing"), ({"tools": []}, "a conversation says itself")):
        with pytest.raises(ValueError, match=fault):
            with_options(tokenizer, options)


def test_the_date_is_of_today_unless_given():
    tokenizer = ours(LLAMA, bos_token="<s>")
    theirs = transformers.utils.chat_template_utils.render_jinja_template
    text = data.render_chat(tokenizer, QUESTION)
    assert text == theirs([QUESTION], chat_template=LLAMA, add_generation_prompt=True, bos_token="<s>")[0][0]
    assert "Today: 1 May" in data.render_chat(tokenizer, QUESTION, date_string="1 May")


def save_templates(tmp_path, templates, **options):
    directory = write_family(tmp_path / "start", "plain")
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    theirs.chat_template = templates
    theirs.save_pretrained(tmp_path / "saved", **options)
    return tmp_path / "saved", transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("files", [True, False], ids=["files", "configuration"])
def test_named_templates(tmp_path, files):
    templates = {"default": PLAIN_CHATML, "tool_use": CHATML, "rag": "{{ documents[0].text }}"}
    directory, theirs = save_templates(tmp_path, templates, save_jinja_files=files)
    assert (directory / "additional_chat_templates" / "tool_use.jinja").is_file() == files
    tokenizer = data.load_tokenizer(directory)
    assert dict(tokenizer.named_templates) == {"tool_use": CHATML, "rag": templates["rag"]}
    for tools in (None, [], TOOLS):
        expected = theirs.apply_chat_template(DIALOGUES["answered"], tools=tools, tokenize=False)
        assert data.render_chat(tokenizer, DIALOGUES["answered"], False, tools=tools) == expected
        assert ("<think>" in expected) == (tools is not None)
    chosen = dataclasses.replace(tokenizer, chat_template=dict(tokenizer.named_templates)["rag"])
    assert data.render_chat(chosen, QUESTION, documents=[{"text": "x"}]) == "x"


@pytest.mark.parametrize("files", [True, False], ids=["files", "configuration"])
def test_named_templates_without_a_plain_one(tmp_path, files):
    directory, theirs = save_templates(tmp_path, {"tool_use": CHATML}, save_jinja_files=files)
    tokenizer = data.load_tokenizer(directory)
    expected = theirs.apply_chat_template(QUESTION, tools=TOOLS, tokenize=False)
    assert data.render_chat(tokenizer, QUESTION, False, tools=TOOLS) == expected
    with pytest.raises(ValueError, match=r"no chat_template, only templates by the names \['tool_use'\].*choose one with"):
        data.render_chat(tokenizer, QUESTION)


def test_files_replace_the_templates_of_the_configuration(tmp_path):
    directory = write_family(tmp_path, "plain")
    (directory / "chat_template.jinja").write_text("from a file", encoding="utf-8")
    tokenizer = data.load_tokenizer(directory)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    assert data.render_chat(tokenizer, QUESTION) == theirs.apply_chat_template(QUESTION, tokenize=False) == "from a file"


def test_templates_know_the_named_special_tokens(tmp_path):
    directory = write_family(tmp_path, "plain")
    names = {"sep_token": "<sep>", "image_token": {"__type": "AddedToken", "content": "<image>"}}
    template = "{{ sep_token }}{{ image_token }}{{ boi_token }}{{ eos_token }}{{ bos_token }}"
    config = {**json.loads((directory / "tokenizer_config.json").read_text()), **names, "chat_template": template}
    config |= {"extra_special_tokens": {"boi_token": "<boi>"}, "add_bos_token": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    text = data.render_chat(data.load_tokenizer(directory), QUESTION)
    assert text == theirs.apply_chat_template(QUESTION, tokenize=False) == "<sep><image><boi><|im_end|>"


def test_encoding_adds_no_second_beginning():
    tokenizer = ours(CHATML)
    assert data.encode_chat(tokenizer, QUESTION) == list(data.render_chat(tokenizer, QUESTION).encode())
    assert data.encode_prompt(tokenizer, QUESTION) == data.encode_chat(tokenizer, QUESTION)
    assert data.encode_prompt(tokenizer, "ab") == [256, 97, 98]


def test_special_tokens_that_a_template_writes_become_themselves():
    template = "{{ bos_token }}{% for message in messages %}{{ message.content + eos_token }}{% endfor %}"
    tokenizer = dataclasses.replace(data.load_tokenizer("bytes"), chat_template=template)
    assert data.encode_chat(tokenizer, turns("é", "b")) == [256, 0xC3, 0xA9, 257, 98, 257]
    letters = dataclasses.replace(data.character_tokenizer("ab"), chat_template=template.replace("{{ bos_token }}", ""))
    assert data.encode_chat(letters, turns("a", "b")) == [0, 2, 1, 2]


def test_refusals_name_the_cause(families):
    with pytest.raises(ValueError, match="no chat_template, none at all.*plain text"):
        data.render_chat(data.load_tokenizer("bytes"), QUESTION)
    with pytest.raises(ValueError, match="roles.*'user', 'user'.*roles must alternate"):
        data.render_chat(families["gemma"][0], QUESTION * 2)
    with pytest.raises(ValueError, match=r"messages\[0\] is 'user'"):
        data.render_chat(ours(CHATML), ["user"])
    with pytest.raises(ValueError, match="non-empty list"):
        data.render_chat(ours(CHATML), [])
    with pytest.raises(ValueError, match="refused"):
        data.render_chat(ours("{% if %}"), QUESTION)
    with pytest.raises(ValueError, match="refused messages with the roles.*not NoneType|refused.*concatenate"):
        data.render_chat(ours("{{ 'a' + messages[0].content }}"), DIALOGUES["parts"])
    with pytest.raises(ValueError, match=r"tools\[0\] is 'add'; give its schema as a dict"):
        data.render_chat(ours(CHATML), QUESTION, tools=["add"])
    with pytest.raises(ValueError, match="tools is 'add'; give a list"):
        data.render_chat(ours(CHATML), QUESTION, tools="add")


def test_templates_run_in_a_sandbox():
    for template in ("{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ ''.__class__.mro() }}"):
        with pytest.raises(ValueError, match="refused"):
            data.render_chat(ours(template), QUESTION)
