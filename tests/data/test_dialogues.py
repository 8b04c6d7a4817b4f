"""Dialogues as examples to learn from, and dialogues that go on from sampled ids."""

import dataclasses
import json

import pytest
from data.chat_templates import CALL, CHATML, FAMILIES, PLAIN_CHATML, TOOL_TURNS, TOOLS, turns, write_family
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_llm import data


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    directories = {family: write_family(tmp_path_factory.mktemp(family), family) for family in FAMILIES}
    return {family: data.load_tokenizer(place) for family, place in directories.items()}


# ---- examples


def test_prompt_and_completion_are_encoded_apart():
    tokenizer = data.load_tokenizer("bytes")
    assert data.encode_example(tokenizer, {"prompt": "a", "completion": "b"}) == ([256, 97, 98, 257], [0, 0, 1, 1])
    assert data.encode_example(tokenizer, {"prompt": "a", "completion": ""}) == ([256, 97, 257], [0, 0, 1])


def test_a_dialogue_is_an_example(families):
    reasoned = [{**TOOL_TURNS[1], "reasoning_content": "x"}, TOOL_TURNS[2], {**TOOL_TURNS[3], "reasoning_content": "y"}]
    messages = [TOOL_TURNS[0], *reasoned]
    for options in ({}, {"tools": TOOLS}, {"turns": "last", "tools": TOOLS}):
        found = data.encode_example(families["chatml"], {"messages": messages, **options})
        assert found == data.encode_dialogue(families["chatml"], messages, **options)
    assert data.encode_example(families["chatml"], {"messages": messages, "tools": None})[1].count(1) > 8


def test_an_example_says_what_is_to_be_learned(families):
    with pytest.raises(ValueError, match=r"no 'completion' to learn from, only \['prompt'\].*or to 'messages'"):
        data.encode_example(families["plain"], {"prompt": "a"})
    with pytest.raises(ValueError, match="both 'messages' and 'completion'"):
        data.encode_example(families["plain"], {"messages": turns("a", "b"), "prompt": "a", "completion": "b"})


def write_rows(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_dialogues_from_a_file(tmp_path):
    first, second = turns("a", "b", "c", "d", system="s"), turns("e", "f", "g")
    path = write_rows(tmp_path / "rows.jsonl", {"chat": first, "tools": None}, {"chat": second, "tools": TOOLS})
    source = data.jsonl_source(path, {"messages": "chat", "tools": "tools"})
    assert source[0] == {"prompt": first[:4], "messages": first, "tools": None}
    assert source[1] == {"prompt": second[:1], "messages": second, "tools": TOOLS}
    split = data.jsonl_source(path, {"messages": "chat"}, split_turns=True)
    assert list(split) == [
        {"prompt": first[:2], "messages": first[:3], "turns": "last"},
        {"prompt": first[:4], "messages": first, "turns": "last"},
        {"prompt": second[:1], "messages": second[:2], "turns": "last"},
    ]
    own = write_rows(tmp_path / "own.jsonl", {"prompt": "mine", "messages": first})
    assert data.jsonl_source(own)[0]["prompt"] == "mine"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, r"rows\.jsonl, line 2: messages is \[\]; give a non-empty list"),
        ({"messages": "hi"}, "line 2: messages is 'hi'"),
        ({"messages": [{"role": "user"}]}, r"line 2: messages\[0\] has no 'content'"),
        ({"messages": [{"from": "gpt", "value": 3}]}, r"line 2: messages\[0\] is .*a text as 'value'"),
        ({"messages": [{"from": "me", "value": "x"}]}, r"line 2: messages\[0\] is .*give 'from', one of"),
        ({"messages": turns("a")}, r"line 2: messages has the roles \['user'\]; there must be an 'assistant'"),
        ({"messages": turns("a", 3)}, r"line 2: messages\[1\] has content 3; give a text, or a list of parts"),
        ({"messages": turns("a", "b"), "tools": "f"}, "line 2: messages: tools is 'f'; give a list of function schemas"),
    ],
)
def test_malformed_dialogues_name_their_line(tmp_path, row, message):
    path = write_rows(tmp_path / "rows.jsonl", {"messages": turns("a", "b")}, row)
    with pytest.raises(ValueError, match=message):
        data.jsonl_source(path)


def test_learning_from_every_turn_under_a_template_that_drops_thoughts(families, tmp_path):
    tokenizer = families["chatml"]
    messages = turns("a", "<think>\nso\n</think>\n\nb", "c", "<think>\nyes\n</think>\n\nd")
    source = data.jsonl_source(write_rows(tmp_path / "rows.jsonl", {"messages": messages}))
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: messages\[1\]: .*once it goes on.*split_turns"):
        data.filter_long(source, tokenizer, 100)
    said = []
    for example in data.split_turns(source):
        ids, mask = data.encode_example(tokenizer, example)
        learned = [i for i, one in zip(ids, mask, strict=True) if one]
        said.append(tokenizer.decode(learned, skip_special_tokens=False))
        # Sampling begins with the very tokens before them.
        assert ids[: mask.index(1)] == data.encode_prompt(tokenizer, example["prompt"])
    assert said == [f"<think>\n{thought}<|im_end|>" for thought in ("so\n</think>\n\nb", "yes\n</think>\n\nd")]


def test_dialogues_are_measured_whole(families):
    tokenizer, messages = families["plain"], turns("a", "b", "c")
    length = len(data.encode_dialogue(tokenizer, messages)[0])
    source = [{"messages": turns("a", "b")}, {"messages": messages, "prompt": "a"}]
    assert data.filter_long(source, tokenizer, length) == (source, 0)
    with pytest.raises(ValueError, match=f"the dialogue of example 1 has {length} tokens, more than {length - 1}"):
        data.filter_long(source, tokenizer, length - 1)
    kept, dropped = data.filter_long(source, tokenizer, length - 1, drop=True)
    assert list(kept) == source[:1] and dropped == 1


def test_texts_become_messages_beside_dialogues():
    dialogue = {"messages": turns("a", "b"), "prompt": turns("a")}
    assert list(data.as_chat([dialogue, {"prompt": "c"}])) == [dialogue, {"prompt": turns("c")}]
    for example in (dialogue, {"prompt": turns("a")}):
        with pytest.raises(ValueError, match="system='Be brief.'.*would not change an example of chat messages"):
            data.as_chat([example], system="Be brief.")[0]


# ---- going on


def answered(tokenizer, messages, text, **variables):
    """Prompt of `messages` and the ids of an answer that the model might sample: its text, letter by letter."""
    prompt = data.encode_chat(tokenizer, messages, **variables)
    return [*prompt, *(i for letter in text for i in tokenizer.encode(letter))]


@pytest.mark.parametrize("family", ["plain", "llama", "mistral", "gemma", "phi"])
def test_sampled_ids_are_kept(families, family):
    """An answer in tokens that its text would never be given, between what the template writes round it."""
    tokenizer, variables = families[family], {"date_string": "1 May"}
    messages, text = turns("a"), "user assistant 42"
    end = data.encode_dialogue(tokenizer, turns("a", "b"), **variables)
    end_id = [i for i, one in zip(*end, strict=True) if one][-1]
    assert end_id in tokenizer.stop_ids
    sampled = [*answered(tokenizer, messages, text, **variables), end_id]
    whole = [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": "more?"}]
    ids = data.continue_dialogue(tokenizer, sampled, whole, **variables)
    again = data.encode_chat(tokenizer, whole, **variables)
    assert ids[: len(sampled)] == sampled and again[: len(sampled)] != sampled
    added = ids[len(sampled) :]
    assert again[-len(added) :] == added and again[-len(added) - 1] == end_id
    # An answer that ran to its limit is ended first.
    assert data.continue_dialogue(tokenizer, sampled[:-1], whole, **variables) == ids
    # A third turn goes on from the second.
    sampled = [*ids, *tokenizer.encode("4"), *tokenizer.encode("2"), end_id]
    longer = [*whole, {"role": "assistant", "content": "42"}, {"role": "user", "content": "and?"}]
    assert data.continue_dialogue(tokenizer, sampled, longer, **variables)[: len(sampled)] == sampled


@settings(deadline=None, max_examples=50)
@given(contents=st.lists(st.text("ab \n🙂é", max_size=5), min_size=3, max_size=3), system=st.none() | st.text("ab", max_size=3))
def test_ids_of_the_text_go_on_as_the_text_does(families, contents, system):
    """Where nothing is sampled otherwise than it would be encoded, this is the encoding of the whole conversation."""
    for family in ("plain", "phi", "mistral"):
        tokenizer, messages = families[family], turns(*contents, system=system)
        ids, mask = data.encode_dialogue(tokenizer, messages[:-1])
        end = len(mask) - mask[::-1].index(1)
        assert data.continue_dialogue(tokenizer, ids[:end], messages) == data.encode_chat(tokenizer, messages)


def test_tool_results_go_on_too(families):
    tokenizer = families["chatml"]
    call = '<tool_call>\n{"name": "añadir", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'
    said = {"role": "assistant", "content": call, "tool_calls": [CALL]}
    sampled = [*answered(tokenizer, TOOL_TURNS[:1], call, tools=TOOLS), tokenizer.eos_id]
    ids = data.continue_dialogue(tokenizer, sampled, [TOOL_TURNS[0], said, TOOL_TURNS[2], TOOL_TURNS[2]], tools=TOOLS)
    response = '<tool_response>\n{"sum": "🙂"}\n</tool_response>'
    added = f"\n<|im_start|>user\n{response}\n{response}<|im_end|>\n<|im_start|>assistant\n"
    assert ids == [*sampled, *tokenizer.encode(added)]


def test_thoughts_stay_where_the_template_would_drop_them(families):
    tokenizer, text = families["chatml"], "<think>\nhm\n</think>\n\nb"
    assert tokenizer.chat_template == CHATML
    sampled = [*data.encode_chat(tokenizer, turns("a")), *tokenizer.encode(text), tokenizer.eos_id]
    ids = data.continue_dialogue(tokenizer, sampled, turns("a", text, "c"))
    assert "hm" in tokenizer.decode(ids) and "hm" not in tokenizer.decode(data.encode_chat(tokenizer, turns("a", text, "c")))


def test_conversations_that_cannot_go_on(families):
    tokenizer = families["plain"]
    for messages in (turns("a"), turns("a", "b")):
        with pytest.raises(ValueError, match="goes on with messages after those of the assistant"):
            data.continue_dialogue(tokenizer, [1], messages)
    with pytest.raises(ValueError, match="ids is empty"):
        data.continue_dialogue(tokenizer, [], turns("a", "b", "c"))
    first, second = "{{ messages[0].content }}", "{{ messages[1].content }}"
    for template, count in ((first, 0), (2 * PLAIN_CHATML, 2), (second, 1)):
        changed = dataclasses.replace(tokenizer, chat_template=template)
        with pytest.raises(ValueError, match=f"wrote an answer {count} times, or nothing after it"):
            data.continue_dialogue(changed, [1], turns("a", "b", "c"))


# ---- what ends a turn, and what a template leaves out


def gemma_like(**changes):
    """A tokenizer whose template ends turns with a token that is not its end token."""
    tokens = {"<eos>": 256, "<turn>": 257, "</turn>": 258}
    template = (
        "{% for m in messages %}{{ '<turn>' + m.role + '\n' + (m.content or '') + '</turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
    )
    plain = data.load_tokenizer("bytes")

    def encode_spans(text):
        ids, spans, place = [], [], 0
        while place < len(text):
            name = next((name for name in tokens if text.startswith(name, place)), None)
            found, width = ([tokens[name]], len(name)) if name else (plain.encode(text[place]), 1)
            ids, spans, place = [*ids, *found], [*spans, *[(place, place + width)] * len(found)], place + width
        return ids, spans

    def decode(ids, skip_special_tokens):
        names = {number: name for name, number in tokens.items()}
        return "".join(("" if skip_special_tokens else names[i]) if i in names else chr(i) for i in ids)

    fields = {
        "encode_text": lambda text, _: plain.encode(text), "decode_ids": decode, "encode_spans": encode_spans,
        "vocab_size": 259, "eos_id": 256, "stop_ids": (256,), "chat_template": template,
    }  # fmt: skip
    return data.stop_at_turns(data.Tokenizer(**fields | changes))


def learned(tokenizer, ids, mask):
    return tokenizer.decode([i for i, one in zip(ids, mask, strict=True) if one], skip_special_tokens=False)


def test_an_answer_ends_as_its_template_ends_a_turn():
    tokenizer, question = gemma_like(), turns("q")
    assert tokenizer.stop_ids == (256, 258) and tokenizer.eos_id == 256
    for row in ({"messages": turns("q", "yo")}, {"prompt": question, "completion": "yo"}):
        assert learned(tokenizer, *data.encode_example(tokenizer, row)) == "yo</turn>"
    assert learned(tokenizer, *data.encode_example(tokenizer, {"prompt": "q", "completion": "yo"})) == "yo<eos>"
    pairs = data.preference_rollouts(tokenizer, [{"prompt": question, "chosen": "yo", "rejected": "no"}], 64)
    assert [learned(tokenizer, pairs.tokens[row], pairs.mask[row]) for row in (0, 1)] == ["yo</turn>", "no</turn>"]
    # A text that names a stop token is learned whole.
    assert learned(tokenizer, *data.encode_dialogue(tokenizer, turns("q", "the <eos> ends"))) == "the <eos> ends</turn>"
    # Without an end of turns in the template, what ends texts ends answers.
    bare = gemma_like(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    assert bare.stop_ids == (256,)
    assert learned(bare, *data.encode_example(bare, {"prompt": question, "completion": "yo"})) == "yo<eos>"


def test_a_chat_that_ends_with_the_assistant_is_gone_on_from():
    tokenizer = gemma_like()
    begun = [*turns("q"), {"role": "assistant", "content": "It is"}]
    assert tokenizer.decode(data.encode_prompt(tokenizer, begun), skip_special_tokens=False) == (
        "<turn>user\nq</turn>\n<turn>assistant\nIt is"
    )
    ids, mask = data.encode_example(tokenizer, {"prompt": begun, "completion": " 4"})
    assert learned(tokenizer, ids, mask) == " 4</turn>" and ids[: mask.index(1)] == data.encode_prompt(tokenizer, begun)
    with pytest.raises(ValueError, match="end with the assistant's ''; give the text"):
        data.encode_prompt(tokenizer, [*turns("q"), {"role": "assistant", "content": ""}])


def test_what_a_template_leaves_out_is_refused():
    tokenizer = gemma_like()
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    thought = {"role": "assistant", "content": "5", "reasoning_content": "2 and 3"}
    for said, name in ((called, "tool_calls"), (thought, "reasoning_content")):
        with pytest.raises(ValueError, match=rf"messages\[1\]: the chat template leaves out its '{name}'"):
            data.encode_dialogue(tokenizer, [*turns("q"), said])
    # Thoughts of earlier turns may be dropped; calls may not.
    later = [{"role": "user", "content": "and?"}]
    assert data.encode_prompt(tokenizer, [*turns("q"), thought, *later])
    with pytest.raises(ValueError, match="leaves out its 'tool_calls'"):
        data.encode_prompt(tokenizer, [*turns("q"), called, *later])
    with pytest.raises(ValueError, match="leaves out the tools"):
        data.encode_prompt(tokenizer, turns("q"), tools=TOOLS)


def test_nothing_stands_behind_a_prompt():
    tokenizer = dataclasses.replace(
        data.load_tokenizer("bytes"), encode_text=lambda text, added: [256] * added + list(text.encode()) + [257] * added
    )
    assert data.encode_prompt(tokenizer, "hi") == [256, 104, 105] and data.encode_prompt(tokenizer, "") == [256]
    with pytest.raises(ValueError, match="a prompt is empty"):
        data.encode_prompt(data.character_tokenizer("ab"), "")
