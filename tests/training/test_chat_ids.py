"""Token in, token out: conversations and rollouts keep the ids that were sampled."""

import io
import sys

import numpy as np
import pytest
from training.tiny_chat_model import write_tiny_chat_model

from jaxrl_llm import data
from jaxrl_llm.rollouts import Io, requests_for
from jaxrl_llm.sampling import generate
from jaxrl_llm.training import chat
from jaxrl_llm.training.policies import load_policy

SAMPLING = {"max_new_tokens": 8, "temperature": 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chat_model")
    write_tiny_chat_model(directory)
    return directory


@pytest.fixture
def sampled(monkeypatch):
    """Prompt and sampled ids of each answer, in their order."""
    answers, stream = [], chat.stream

    def recorded(network, params, prompt, **options):
        answers.append((list(prompt), []))
        for ids in stream(network, params, prompt, **options):
            answers[-1][1].extend(ids)
            yield ids

    monkeypatch.setattr(chat, "stream", recorded)
    return answers


def converse(monkeypatch, model, *lines, **options):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
    chat.converse(str(model), None, sampling={"seed": 0, **SAMPLING}, **{"chat": True, "system": "", **options})


def test_a_conversation_goes_on_from_the_sampled_ids(model, sampled, monkeypatch, capsys):
    converse(monkeypatch, model, "How many rolls?", "And after noon?", "Sure?", system="Be brief.")
    _, tokenizer = load_policy(model)
    assert len(sampled) == 3 and capsys.readouterr().out
    first = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many rolls?"}]
    assert sampled[0][0] == data.encode_prompt(tokenizer, first)
    for (prompt, ids), (next_prompt, _), question in zip(sampled, sampled[1:], ("And after noon?", "Sure?"), strict=False):
        before = [*prompt, *ids]
        assert next_prompt[: len(before)] == before
        end = "" if ids[-1] in tokenizer.stop_ids else "<|im_end|>"
        added = f"{end}\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        assert next_prompt[len(before) :] == tokenizer.encode(added)
    # A model that knows nothing samples tokens that encoding its text again would not give.
    assert any(tokenizer.encode(tokenizer.decode(ids, skip_special_tokens=False)) != ids for _, ids in sampled)


def test_a_line_that_cannot_be_answered_changes_nothing(model, sampled, monkeypatch, capsys):
    refuse = data.continue_dialogue

    def refusing(tokenizer, ids, messages):
        if messages[-1]["content"] == "bad":
            raise ValueError("refused for the test")
        return refuse(tokenizer, ids, messages)

    monkeypatch.setattr(chat, "continue_dialogue", refusing)
    converse(monkeypatch, model, "One.", "bad", "Two.")
    assert "refused for the test" in capsys.readouterr().out and len(sampled) == 2
    (prompt, ids), (next_prompt, _) = sampled
    assert next_prompt[: len(prompt) + len(ids)] == [*prompt, *ids]


def test_without_chat_each_line_begins_anew(model, sampled, monkeypatch, capsys):
    converse(monkeypatch, model, "A baker", "Mira saves", chat=False)
    _, tokenizer = load_policy(model)
    assert [prompt for prompt, _ in sampled] == [data.encode_prompt(tokenizer, text) for text in ("A baker", "Mira saves")]


def test_rollouts_hold_the_sampled_ids(model):
    network, tokenizer = load_policy(model)
    examples = [{"prompt": [{"role": "user", "content": text}]} for text in ("One?", "How many rolls are left?")]
    prompts = [data.encode_prompt(tokenizer, example["prompt"]) for example in examples]
    sampling = {**SAMPLING, "stop_ids": tokenizer.stop_ids}
    options = {"num_samples": 3, "seed": 5, "step": 2}
    arguments = network.without_params(), network.params
    samples = generate(*arguments, prompts, uids=range(6), **options, **sampling)
    limits = {"max_prompt_tokens": 64, "sampling": sampling, "seed": 5, "step": 2}
    io = Io(tokenizer=tokenizer, policies={"policy": lambda: arguments}, rewards=lambda *_: np.zeros((6, 1)), **limits)
    rollouts = io.sample(requests_for(examples, [0, 1], samples=3)).rollouts
    differing = 0
    for row in range(6):
        ids = samples.tokens[row, : samples.length[row]].tolist()
        begin, length = len(prompts[row // 3]), int(rollouts.length[row])
        assert rollouts.tokens[row, :length].tolist() == [*prompts[row // 3], *ids]
        assert rollouts.mask[row].tolist() == [float(begin <= place < length) for place in range(rollouts.mask.shape[1])]
        differing += tokenizer.encode(tokenizer.decode(ids, skip_special_tokens=False)) != ids
    assert differing > 3
