"""The assistant's tokens of a dialogue: against hand-marked texts, token by token, and against transformers."""

import dataclasses
import functools
import itertools
import json

import pytest
import tokenizers
import transformers
from data.chat_templates import CALL, DIALOGUES, FAMILIES, MARKED_CHATML, MISTRAL, PLAIN_CHATML, TOOLS, turns, write_family
from data.tiny_tokenizers import write_fallback, write_sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_llm import data

DIALOGUE = turns("a b", "It is 42. 🙂", "cat?", "é\n", system="Be brief.")
# The same dialogue as each family writes it; every second piece is what the assistant says.
BY_HAND = {
    "plain": [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\n",
        "It is 42. 🙂<|im_end|>",
        "\n<|im_start|>user\ncat?<|im_end|>\n<|im_start|>assistant\n",
        "é\n<|im_end|>",
        "\n",
    ],
    "llama": [
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday: 1 May\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\na b<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "It is 42. 🙂<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\ncat?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "é<|eot_id|>",
    ],
    "mistral": ["<s>[INST] Be brief.\n\na b [/INST]", " It is 42. 🙂</s>", "[INST] cat? [/INST]", " é\n</s>"],
    "gemma": [
        "<bos><start_of_turn>user\nBe brief.\n\na b<end_of_turn>\n<start_of_turn>model\n",
        "It is 42. 🙂<end_of_turn>",
        "\n<start_of_turn>user\ncat?<end_of_turn>\n<start_of_turn>model\n",
        "é<end_of_turn>",
        "\n",
    ],
    "phi": [
        "<|system|>\nBe brief.<|end|>\n<|user|>\na b<|end|>\n<|assistant|>\n",
        "It is 42. 🙂<|end|>",
        "\n<|user|>\ncat?<|end|>\n<|assistant|>\n",
        "é\n<|end|>",
        "\n<|endoftext|>",
    ],
}
BY_HAND["marked"] = BY_HAND["plain"]
TEXT = st.text(st.sampled_from("ab \n🙂é日\u0301") | st.characters(exclude_categories=["Cs"]), max_size=8)


def byte_of_letter():
    """The bytes behind the printable letters in which byte-level tokenizers keep them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def bytes_of_tokens(inner, ids):
    """The bytes that each token writes, from its own spelling in the vocabulary."""
    special, letters = inner.get_added_tokens_decoder(), byte_of_letter()
    return [
        special[i].content.encode() if i in special else bytes(letters[letter] for letter in inner.id_to_token(i)) for i in ids
    ]


def truth(pieces, written):
    """1 for each token that writes at least one byte of a piece of the assistant, which is every second of `pieces`."""
    said = [number % 2 for number, piece in enumerate(pieces) for _ in piece.encode()]
    assert b"".join(written) == "".join(pieces).encode()
    ends = list(itertools.accumulate(map(len, written)))
    return [int(any(said[end - len(token) : end])) for end, token in zip(ends, written, strict=True)]


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    directories = {family: write_family(tmp_path_factory.mktemp(family), family) for family in FAMILIES}
    return {
        family: (data.load_tokenizer(place), tokenizers.Tokenizer.from_file(str(place / "tokenizer.json")), place)
        for family, place in directories.items()
    }


@pytest.mark.parametrize("family", BY_HAND)
def test_hand_marked_dialogue(families, family):
    tokenizer, inner, _ = families[family]
    ids, mask = data.encode_dialogue(tokenizer, DIALOGUE, date_string="1 May")
    pieces = BY_HAND[family]
    assert ids == inner.encode("".join(pieces), add_special_tokens=False).ids
    assert mask == truth(pieces, bytes_of_tokens(inner, ids)) and 7 < sum(mask) < len(mask) - 7
    last_ids, last_mask = data.encode_dialogue(tokenizer, DIALOGUE, turns="last", date_string="1 May")
    only_last = ["".join(pieces[:3]), *pieces[3:]]
    assert last_ids == ids and last_mask == truth(only_last, bytes_of_tokens(inner, ids))
    # What follows the last turn is left out with it.
    more = [*DIALOGUE, {"role": "user", "content": "more"}]
    assert data.encode_dialogue(tokenizer, more, turns="last", date_string="1 May") == (last_ids, last_mask)
    longer = data.encode_dialogue(tokenizer, more, date_string="1 May")
    assert len(longer[0]) > len(ids) and sum(longer[1]) == sum(mask)


@settings(deadline=None, max_examples=150)
@given(contents=st.lists(TEXT, min_size=2, max_size=7), system=st.none() | TEXT, last=st.booleans())
def test_any_dialogue(families, contents, system, last):
    """The truth, with and without blocks in the template; transformers agrees where there are blocks."""
    messages = turns(*contents, system=system)
    pieces, said = [""], [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    messages = messages[: said[-1] + 1] if last else messages
    for index, message in enumerate(messages):
        pieces[-1] += f"<|im_start|>{message['role']}\n"
        if index in (said[-1:] if last else said):
            pieces += [message["content"] + "<|im_end|>", "\n"]
        else:
            pieces[-1] += message["content"] + "<|im_end|>\n"
    choice = {"turns": "last" if last else "all"}
    (plain, inner, _), (marked, _, place) = families["plain"], families["marked"]
    ids, mask = data.encode_dialogue(plain, messages, **choice)
    assert mask == truth(pieces, bytes_of_tokens(inner, ids))
    assert data.encode_dialogue(marked, messages, **choice) == (ids, mask)
    if not last:
        theirs = transformers_tokenizer(place)
        expected = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert (expected["input_ids"], expected["assistant_masks"]) == (ids, mask)


@functools.cache
def transformers_tokenizer(place):
    return transformers.AutoTokenizer.from_pretrained(place)


def test_tool_calls_are_said_and_tool_results_are_not(families):
    tokenizer, inner, _ = families["chatml"]
    messages = [
        {"role": "user", "content": "1 + é?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "Add."},
        {"role": "tool", "content": "🙂"},
        {"role": "assistant", "content": "It is 🙂.", "reasoning_content": "So."},
    ]
    ids, mask = data.encode_dialogue(tokenizer, messages, tools=TOOLS)
    head = data.render_chat(tokenizer, messages[:1], True, tools=TOOLS)
    call = '<tool_call>\n{"name": "añadir", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'
    call = f"<think>\nAdd.\n</think>\n\n{call}<|im_end|>"
    result = "\n<|im_start|>user\n<tool_response>\n🙂\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    pieces = [head, call, result, "<think>\nSo.\n</think>\n\nIt is 🙂.<|im_end|>", "\n"]
    assert mask == truth(pieces, bytes_of_tokens(inner, ids))


def test_turns_that_are_written_in_another_way_later(families):
    """The first answer has thoughts as long as it is the last one, as in Qwen3."""
    tokenizer, inner, _ = families["chatml"]
    for messages in (DIALOGUES["thought"], turns("a", "b", "c", "d")):
        with pytest.raises(ValueError, match=r"messages\[1\]: .*once it goes on.*turns='last' \(split_turns.*{% generation %}"):
            data.encode_dialogue(tokenizer, messages)
    ids, mask = data.encode_dialogue(tokenizer, DIALOGUES["thought"], turns="last")
    head = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
    pieces = [head + "<|im_start|>assistant\n", "<think>\nhm\n</think>\n\nd<|im_end|>", "\n"]
    assert mask == truth(pieces, bytes_of_tokens(inner, ids))
    # Without thinking, the empty thoughts belong to the prompt.
    ids, mask = data.encode_dialogue(tokenizer, turns("a", "b"), enable_thinking=False)
    pieces = ["<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "b<|im_end|>", "\n"]
    assert mask == truth(pieces, bytes_of_tokens(inner, ids))
    with pytest.raises(ValueError, match=r"messages\[1\]: .*prompts for this turn with a text.*give variables"):
        data.encode_dialogue(tokenizer, turns("a", "<think>\nno\n</think>\n\nb"), turns="last", enable_thinking=False)


def test_a_token_over_the_border_is_the_assistants(tmp_path):
    """The end of a header and the beginning of an answer in one token; transformers decides the same."""
    alphabet = {letter: i for i, letter in enumerate("\nabceghinorstu:")}
    vocabulary = alphabet | {"\n\n": len(alphabet), "<end>": len(alphabet) + 1}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("\n", "\n")]))
    inner.add_special_tokens(["<end>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    content = "{{ message.content + eos_token }}"
    for body in (content, "{% if message.role == 'assistant' %}{% generation %}" + content + "{% endgeneration %}{% endif %}"):
        template = "{% for message in messages %}{{ message.role + ':\n' }}" + body + "{% endfor %}"
        template += "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "chat_template": template}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        ids, mask = data.encode_dialogue(data.load_tokenizer(tmp_path), turns("a", "\nb"))
        border = ids.index(vocabulary["\n\n"])
        assert mask == [0] * border + [1, 1, 1] and ids[border:] == [vocabulary[t] for t in ("\n\n", "b", "<end>")]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(turns("a", "\nb"), return_dict=True, return_assistant_tokens_mask=True)
    assert expected["assistant_masks"] == mask


def test_places_of_tokens_keep_their_spaces(tmp_path):
    """Post-processors such as Llama 3's cut spaces off the places of tokens, which ours must not."""
    parts = [
        tokenizers.processors.ByteLevel(trim_offsets=True),
        tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
    ]
    place = write_family(tmp_path, "mistral", processor=tokenizers.processors.Sequence(parts))
    tokenizer, inner = data.load_tokenizer(place), tokenizers.Tokenizer.from_file(str(place / "tokenizer.json"))
    messages = turns("a", "b  ", "c", "  ", "e", "", "g", "the cat")
    ids, mask = data.encode_dialogue(tokenizer, messages)
    pieces = ["<s>[INST] a [/INST]", " b  </s>", "[INST] c [/INST]", "   </s>", "[INST] e [/INST]", " </s>"]
    pieces += ["[INST] g [/INST]", " the cat</s>"]
    assert mask == truth(pieces, bytes_of_tokens(inner, ids))
    assert tokenizer.encode("a b", add_special_tokens=True) == inner.encode("a b").ids
    # A header may end with a space that is a token of its own.
    template = "{% for message in messages %}{{ message.role + ': ' + message.content + eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    ids, mask = data.encode_dialogue(dataclasses.replace(tokenizer, chat_template=template), turns("a", "\nb"))
    written = bytes_of_tokens(inner, ids)
    assert b" " in written and mask == truth(["user: a</s>assistant: ", "\nb</s>"], written)


def test_a_block_that_ends_within_a_character(families):
    """Without the end of the turn in the block, its last character may be several tokens; transformers 5.23 takes the first."""
    tokenizer, inner, place = families["marked"]
    template = MARKED_CHATML.replace("message.content + '<|im_end|>' }}{%- endgen", "message.content }}{%- endgen")
    template = template.replace("{{- '\\n' }}", "{{- '<|im_end|>\\n' }}")
    messages = turns("a", "b🙃", "c", "d")
    ids, mask = data.encode_dialogue(dataclasses.replace(tokenizer, chat_template=template), messages)
    begin = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    pieces = [begin, "b🙃", "<|im_end|>\n" + begin.replace("a<", "c<"), "d", "<|im_end|>\n"]
    written = bytes_of_tokens(inner, ids)
    assert mask == truth(pieces, written) and len("🙃".encode()) > 1
    options = {"chat_template": template, "return_dict": True, "return_assistant_tokens_mask": True}
    theirs = transformers_tokenizer(place).apply_chat_template(messages, **options)
    missed = [token for token, own, other in zip(written, mask, theirs["assistant_masks"], strict=True) if own != other]
    assert theirs["input_ids"] == ids and len(b"".join(missed)) < len("🙃".encode())


def test_the_last_turn_may_be_several_blocks(families):
    tokenizer, inner, _ = families["marked"]
    body = "{% generation %}{{ message.content[0] }}{% endgeneration %}-{% generation %}{{ message.content[1:] }}"
    body = "{% if message.role == 'user' %}{{ message.content }}{% else %}" + body + "{% endgeneration %}{% endif %}"
    template = "{% for message in messages %}" + body + "<|im_end|>{% endfor %}"
    messages = turns("a", "bcd", "e", "fgh")
    changed = dataclasses.replace(tokenizer, chat_template=template)
    ids, mask = data.encode_dialogue(changed, messages)
    end = "<|im_end|>"
    assert mask == truth([f"a{end}", "b", "-", "cd", f"{end}e{end}", "f", "-", "gh", end], bytes_of_tokens(inner, ids))
    ids, mask = data.encode_dialogue(changed, messages, turns="last")
    assert mask == truth([f"a{end}b-cd{end}e{end}", "f", "-", "gh", end], bytes_of_tokens(inner, ids))


# ---- other kinds of tokenizers


def spelled(piece):
    """Bytes of a piece of a vocabulary with byte fallback and ▁ for spaces."""
    return bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else piece.replace("▁", " ").encode()


@pytest.mark.parametrize("write", [write_fallback, write_sentencepiece])
def test_tokenizers_that_begin_a_text_with_a_space(tmp_path, write):
    """Each run of text between special tokens gets a space before it, which belongs to what it precedes."""
    tokenizer = dataclasses.replace(data.load_tokenizer(write(tmp_path)), chat_template=MISTRAL)
    ids, mask = data.encode_dialogue(tokenizer, turns("ab c", "d ef", "é", "日 🙃  "))
    if write is write_sentencepiece:
        import sentencepiece

        name_of = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model")).id_to_piece
    else:
        name_of = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).id_to_token
    pieces = ["<s> [INST] ab c [/INST]", " d ef</s>", " [INST] é [/INST]", " 日 🙃  </s>"]
    assert mask == truth(pieces, [spelled(name_of(i)) for i in ids])
    specials = {"<s>": tokenizer.bos_id, "</s>": tokenizer.eos_id}
    runs = [(special, text) for special, text in (("<s>", "[INST] ab c [/INST] d ef"), ("</s>", "[INST] é [/INST] 日 🙃  "))]
    expected = [i for special, text in runs for i in (specials[special], *tokenizer.encode(text))] + [tokenizer.eos_id]
    assert ids == expected


def test_bytes_and_characters():
    template = "{% for message in messages %}{{ message.role[0] + message.content }}"
    template += "{% if message.role != 'user' %}{{ eos_token }}{% endif %}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'a' }}{% endif %}"
    tokenizer = dataclasses.replace(data.load_tokenizer("bytes"), chat_template=template)
    ids, mask = data.encode_dialogue(tokenizer, turns("é", "🙂", "", "x"))
    assert ids == [*b"u\xc3\xa9a", *"🙂".encode(), 257, *b"ua", ord("x"), 257]
    assert mask == [0] * 4 + [1] * 5 + [0] * 2 + [1] * 2
    tokenizer = dataclasses.replace(data.character_tokenizer("uabc"), chat_template=template)
    assert data.encode_dialogue(tokenizer, turns("b", "c")) == ([0, 2, 1, 3, 4], [0, 0, 0, 1, 1])


def test_without_a_stop_token_all_that_the_turn_adds_is_said():
    tokenizer = dataclasses.replace(data.load_tokenizer("bytes"), chat_template=PLAIN_CHATML)
    ids, mask = data.encode_dialogue(tokenizer, turns("a", "b", "c"))
    said = bytes(i for i, one in zip(ids, mask, strict=True) if one)
    assert said == b"b<|im_end|>\n"


# ---- refusals


def test_refusals(families):
    plain = families["plain"][0]
    cases = [
        ([], "messages is .*non-empty list"),
        ("a", "messages is 'a'; give a non-empty list"),
        ([{"from": "user"}], r"messages\[0\] is .*'from'.*'role' and 'content'"),
        ([*turns("a"), {"role": "assistant"}], r"messages\[1\] has no 'content', only \['role'\]"),
        ([{"role": "user", "content": 3}], r"messages\[0\] has content 3; give a text, or a list of parts"),
        (turns("a"), r"roles \['user'\]; there must be an 'assistant'"),
        (turns("a", "b")[1:], r"messages\[0\] is the assistant's.*begin with another role"),
    ]
    for messages, message in cases:
        with pytest.raises(ValueError, match=message):
            data.encode_dialogue(plain, messages)
    with pytest.raises(ValueError, match=r"turns is 'first'; it must be one of \('all', 'last'\)"):
        data.encode_dialogue(plain, turns("a", "b"), turns="first")
    with pytest.raises(ValueError, match="no encode_spans.*load_tokenizer"):
        data.encode_dialogue(dataclasses.replace(plain, encode_spans=None), turns("a", "b"))


def test_templates_that_mark_in_vain(families):
    marked = families["marked"][0]
    nothing = dataclasses.replace(marked, chat_template="{% generation %}{% endgeneration %}a")
    with pytest.raises(ValueError, match="writes nothing of this dialogue as the assistant's"):
        data.encode_dialogue(nothing, turns("a", "b"))
    captured = "{% set text %}{% generation %} b {% endgeneration %}{% endset %}{{ text | length }}"
    with pytest.raises(ValueError, match="works on the text of a {% generation %} block"):
        data.encode_dialogue(dataclasses.replace(marked, chat_template=captured), turns("a", "b"))
    comment = PLAIN_CHATML + "{# {% generation %} is not used #}"
    with_comment = dataclasses.replace(marked, chat_template=comment)
    assert data.encode_dialogue(with_comment, DIALOGUE) == data.encode_dialogue(marked, DIALOGUE)
