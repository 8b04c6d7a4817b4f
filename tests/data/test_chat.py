"""Chat templates: agreement with transformers, the sandbox, and the errors."""

import dataclasses

import pytest
import tokenizers
import transformers

from jaxrl_llm import data

QWEN_STYLE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(turns=0) %}
{%- for message in messages %}
    {%- set ns.turns = ns.turns + 1 %}
    {%- if message.role == 'assistant' and '</think>' in message.content %}
        {%- set body = message.content.split('</think>')[-1].lstrip('\\n') %}
    {%- else %}
        {%- set body = message.content %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + body + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA_STYLE = """\
{{- bos_token }}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n" + system_message + "<|eot_id|>" }}
{% for message in messages %}
    {% if loop.index0 > 5 %}{% break %}{% endif %}
    {%- if message['role'] not in ['user', 'assistant'] %}
        {{- raise_exception("unknown role " + message['role']) }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- generation %}
    {{- message['content'] | trim + eos_token }}
    {%- endgeneration %}
{% endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

CONVERSATIONS = [
    [{"role": "user", "content": "What is <2+2> & 'why'?"}],
    [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "hé 🙂\n"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb "},
        {"role": "user", "content": "c"},
    ],
]
NAMES = {"bos_token": "<s>", "eos_token": "<|eot_id|>"}


def ours(template):
    return dataclasses.replace(data.load_tokenizer("bytes"), chat_template=template, special_tokens=tuple(NAMES.items()))


def theirs(template):
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "<|eot_id|>": 1, "[UNK]": 2}, unk_token="[UNK]"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=template, **NAMES)


@pytest.mark.parametrize("template", [QWEN_STYLE, LLAMA_STYLE], ids=["qwen", "llama"])
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_agrees_with_transformers(template, messages, prompt):
    tools = [{"type": "function", "function": {"name": "añadir", "parameters": {"x": "<int>"}}}]
    for variables in ({"date_string": "26 Jul 2024"}, {"tools": tools, "enable_thinking": False, "date_string": ""}):
        expected = theirs(template).apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **variables)
        assert data.render_chat(ours(template), messages, prompt, **variables) == expected


def test_the_date_is_of_today_unless_given():
    text = data.render_chat(ours(LLAMA_STYLE), CONVERSATIONS[0])
    assert text == theirs(LLAMA_STYLE).apply_chat_template(CONVERSATIONS[0], tokenize=False, add_generation_prompt=True)
    assert "Today: 1 May" in data.render_chat(ours(LLAMA_STYLE), CONVERSATIONS[0], date_string="1 May")


def test_encoding_adds_no_second_beginning():
    tokenizer = ours(QWEN_STYLE)
    messages = CONVERSATIONS[0]
    assert data.encode_chat(tokenizer, messages) == list(data.render_chat(tokenizer, messages).encode())
    assert data.encode_prompt(tokenizer, messages) == data.encode_chat(tokenizer, messages)
    assert data.encode_prompt(tokenizer, "ab") == [256, 97, 98]


def test_examples_of_supervised_training():
    tokenizer = data.load_tokenizer("bytes")
    assert data.encode_example(tokenizer, {"prompt": "a", "completion": "b"}) == ([256, 97], [98, 257])
    assert data.encode_example(tokenizer, {"prompt": "a", "completion": ""}) == ([256, 97], [257])


def test_refusals_name_the_cause():
    with pytest.raises(ValueError, match="no chat_template.*plain text"):
        data.render_chat(data.load_tokenizer("bytes"), CONVERSATIONS[0])
    with pytest.raises(ValueError, match="roles.*'tool'.*unknown role tool"):
        data.render_chat(ours(LLAMA_STYLE), [{"role": "tool", "content": "x"}])
    with pytest.raises(ValueError, match=r"messages\[0\] is 'user'"):
        data.render_chat(ours(LLAMA_STYLE), ["user"])
    with pytest.raises(ValueError, match="non-empty list"):
        data.render_chat(ours(LLAMA_STYLE), [])
    with pytest.raises(ValueError, match="refused"):
        data.render_chat(ours("{% if %}"), CONVERSATIONS[0])


def test_templates_run_in_a_sandbox():
    for template in ("{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ ''.__class__.mro() }}"):
        with pytest.raises(ValueError, match="refused"):
            data.render_chat(ours(template), CONVERSATIONS[0])
