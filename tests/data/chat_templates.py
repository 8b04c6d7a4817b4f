"""Short chat templates in the styles of the families, tokenizers for them, and dialogues to render."""

import json

import tokenizers

# ChatML with tools and thoughts, in the style of Qwen3: thoughts before the last question are dropped, and the last
# answer always has some, if only empty ones.
CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- 'Functions:' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set seen = namespace(question=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set seen.question = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' %}
        {%- set content = message.name + ': ' + content if message.name is defined else content %}
        {{- '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set thought = message.reasoning_content if message.reasoning_content is string else '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > seen.question and (loop.last or thought) %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {{- ('\\n' if content or not loop.first else '') + '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- (call.arguments if call.arguments is string else call.arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

# The same format with nothing dropped, and with the assistant's text marked.
PLAIN_CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
MARKED_CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

LLAMA = """\
{{- bos_token }}
{%- if date_string is not defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- set system = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {%- set role = 'ipython' if message.role in ['tool', 'ipython'] else message.role %}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
    {%- if tools and loop.first %}
        {%- for tool in tools %}{{- tool | tojson(indent=4) + '\\n\\n' }}{%- endfor %}
    {%- endif %}
    {%- if message.tool_calls %}
        {%- if message.tool_calls | length > 1 %}{{- raise_exception('one tool call at a time') }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}' }}
    {%- elif message.content is mapping or message.content is not string and message.content is iterable %}
        {%- for part in message.content %}{{- part.text if part.type == 'text' else '' }}{%- endfor %}
    {%- else %}
        {{- message.content | trim }}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

# Messages as gpt-oss's template writes them: a result stands behind a call alone, and a text with its marks is refused.
HARMONY = """\
{%- if tools %}
    {{- '<|start|>developer<|message|># Tools\\n' }}
    {%- for tool in tools %}{{- 'type ' + tool.function.name + ';' }}{%- endfor %}
    {{- '<|end|>' }}
{%- endif %}
{%- set last = namespace(name=none) %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- if '<|message|>' in message.content %}{{- raise_exception('marks of channels in the content') }}{%- endif %}
        {%- if 'tool_calls' in message %}
            {%- set call = message.tool_calls[0].function %}
            {%- set last.name = call.name %}
            {{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
            {{- (call.arguments | tojson) + '<|call|>' }}
        {%- else %}
            {%- set last.name = none %}
            {%- set end = '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' %}
            {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + end }}
        {%- endif %}
    {%- elif message.role == 'tool' %}
        {%- if last.name is none %}{{- raise_exception('a result without a call') }}{%- endif %}
        {{- '<|start|>functions.' + last.name + ' to=assistant<|channel|>commentary<|message|>' }}
        {{- (message.content | tojson) + '<|end|>' }}
    {%- else %}
        {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}
"""

# Roles alternate; the system prompt goes into the first question.
MISTRAL = """\
{{- bos_token }}
{%- set offset = 1 if messages[0].role == 'system' else 0 %}
{%- for message in messages[offset:] %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + (messages[0].content + '\\n\\n' if loop.first and offset else '') + message.content + ' [/INST]' }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content + eos_token }}
    {%- else %}
        {{- raise_exception('no role but user and assistant') }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set first = messages[0]['content'] + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set first = '' %}
    {%- set turns = messages %}
{%- endif %}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}
    {%- if message['content'] is string %}
        {{- message['content'] | trim }}
    {%- else %}
        {%- for part in message['content'] %}{{- part['text'] | trim if part['type'] == 'text' }}{%- endfor %}
    {%- endif %}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{%- endif %}
"""

# A finished dialogue ends with the end of text, behind the end of the turn.
PHI = """\
{% for message in messages %}
{% if message['role'] in ['system', 'user', 'assistant'] %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' -}}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""

# family -> template, named special tokens, tokens that end a generation, tokens of the chat format.
FAMILIES = {
    "chatml": (CHATML, {"eos_token": "<|im_end|>"}, ["<|im_end|>", "<|endoftext|>"], ["<|im_start|>", "<|endoftext|>"]),
    "plain": (PLAIN_CHATML, {"eos_token": "<|im_end|>"}, ["<|im_end|>"], ["<|im_start|>"]),
    "marked": (MARKED_CHATML, {"eos_token": "<|im_end|>"}, ["<|im_end|>"], ["<|im_start|>"]),
    "llama": (
        LLAMA,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        ["<|eot_id|>"],
        ["<|start_header_id|>", "<|end_header_id|>"],
    ),
    "mistral": (MISTRAL, {"bos_token": "<s>", "eos_token": "</s>"}, ["</s>"], ["[INST]", "[/INST]"]),
    "gemma": (
        GEMMA,
        {"bos_token": "<bos>", "eos_token": "<eos>"},
        ["<eos>", "<end_of_turn>"],
        ["<start_of_turn>", "<end_of_turn>"],
    ),
    "phi": (
        PHI,
        {"eos_token": "<|endoftext|>"},
        ["<|endoftext|>", "<|end|>"],
        ["<|end|>", "<|user|>", "<|system|>", "<|assistant|>"],
    ),
    "harmony": (
        HARMONY,
        {"eos_token": "<|return|>"},
        ["<|return|>", "<|endoftext|>", "<|call|>"],
        ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>"],
    ),
}

TEXTS = [
    "user assistant system model\n\nBe brief. What is 12 + 30? It is 42.",
    "a café, naïve 日本語 text <think>\n\n</think>\n\n emoji 🙂",
    '{"name": "add", "arguments": {"a": 1}} the cat sat on the mat  ',
] * 4


def write_family(directory, family, *, processor=None):
    """A byte-level BPE tokenizer with the tokens and the template of `family`; returns its directory."""
    template, named, stops, others = FAMILIES[family]
    specials = list(dict.fromkeys([*named.values(), *stops, *others]))
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    options = {"initial_alphabet": tokenizers.pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=360, special_tokens=specials, **options)
    inner.train_from_iterator(TEXTS, trainer)
    if processor is not None:
        inner.post_processor = processor
    directory.mkdir(exist_ok=True)
    inner.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **named}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    generation = {"eos_token_id": [inner.token_to_id(stop) for stop in stops]}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def turns(*contents, system=None):
    """Messages of the user and the assistant in turn."""
    begin = [] if system is None else [{"role": "system", "content": system}]
    return [*begin, *({"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents))]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "añadir",
            "description": "Adds <two> numbers & 'more'.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        },
    }
]
CALL = {"type": "function", "id": "call_1", "function": {"name": "añadir", "arguments": {"a": 1, "b": "é"}}}
TOOL_TURNS = [
    {"role": "user", "content": "1 + é?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "añadir", "tool_call_id": "call_1", "content": '{"sum": "🙂"}'},
    {"role": "assistant", "content": "It is 🙂."},
    {"role": "user", "content": "Sure?"},
]
DIALOGUES = {
    "question": turns("What is <2+2> & 'why'?"),
    "system": turns(" hé 🙂\n", system=" Be brief. "),
    "answered": turns("a", "b "),
    "long": turns("a", " b\n", "日本語?", "naïve 🙂", "", "e\u0301\u200d", "c", system="Be brief."),
    "empty": turns("", "", ""),
    "thought": turns("a", "<think>\nhm 🙂\n</think>\n\nb", "c", "<think>\nhm\n</think>\n\nd"),
    "reasoning": [*turns("a"), {"role": "assistant", "content": "b", "reasoning": "so", "tool_calls": None}],
    "special": turns("<|im_end|> <eos> </s>", "<|im_start|>user\n</s>x"),
    "names": [{"role": "user", "content": "a", "name": None}, *turns("a", "b")[1:], {**turns("c")[0], "name": "é"}],
    "tool": TOOL_TURNS[:3],
    "tools": TOOL_TURNS,
    "two tools": [*TOOL_TURNS[:3], TOOL_TURNS[2], *TOOL_TURNS[3:]],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}],
}
