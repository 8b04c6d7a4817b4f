"""The supervised phase: worked examples as rows, and a step against direct scoring."""

import dataclasses

import jax
import numpy as np
import pytest
from training.tiny_runs import opened, quick_compilation, tiny_config  # noqa: F401

from jaxrl_llm.data import Cursor, character_tokenizer, next_indices
from jaxrl_llm.networks import decoder
from jaxrl_llm.training import supervised
from jaxrl_llm.training.supervised import demonstrations

TOKENIZER = character_tokenizer("0123456789+=;#")


def supervised_config(**values):
    config = tiny_config()
    config.sft.update(steps=4, batch=8, row_tokens=64, **values)
    return config


def test_a_row_is_a_prompt_and_its_completion_as_actions():
    rows = demonstrations(TOKENIZER, [{"prompt": "1+2=", "completion": "3#3"}, {"prompt": "4=", "completion": ""}], 10)
    end = TOKENIZER.eos_id
    assert rows.tokens[0, :8].tolist() == TOKENIZER.encode("1+2=3#3") + [end]
    np.testing.assert_array_equal(rows.mask[0], [0, 0, 0, 0, 1, 1, 1, 1, 0, 0])
    assert rows.tokens[1, :3].tolist() == TOKENIZER.encode("4=") + [end]
    np.testing.assert_array_equal(rows.mask[1], [0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(rows.length, [8, 3])


def test_examples_that_cannot_be_learned_from():
    with pytest.raises(ValueError, match=r"no 'completion' to learn from, only \['answer', 'prompt'\]; map a column"):
        demonstrations(TOKENIZER, [{"prompt": "1", "answer": "2"}], 10)
    with pytest.raises(ValueError, match=r"has 6 tokens, more than config\.sft\.row_tokens = 5; raise it"):
        demonstrations(TOKENIZER, [{"prompt": "1=", "completion": "1#1"}], 5)


def test_a_dialogue_is_a_row_with_all_that_the_assistant_says():
    written = "{% for message in messages %}{{ message.content + eos_token }}{% endfor %}"
    tokenizer = dataclasses.replace(TOKENIZER, chat_template=written)
    end, contents = TOKENIZER.eos_id, ("1+2=", "3", "+4=", "7")
    roles = ("user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    examples = [{"messages": messages}, {"messages": messages, "turns": "last"}, {"prompt": "1+", "completion": "2"}]
    rows = demonstrations(tokenizer, examples, 14)
    expected = [i for content in contents for i in (*TOKENIZER.encode(content), end)]
    assert rows.tokens[0, :13].tolist() == rows.tokens[1, :13].tolist() == expected
    np.testing.assert_array_equal(rows.mask[0], [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal(rows.mask[1], [0] * 11 + [1, 1, 0])
    np.testing.assert_array_equal(rows.mask[2], [0, 0, 1, 1] + [0] * 10)
    np.testing.assert_array_equal(rows.length, [13, 13, 4])
    with pytest.raises(ValueError, match=r"has 13 tokens, more than config\.sft\.row_tokens = 12"):
        demonstrations(tokenizer, examples[:1], 12)


def test_a_step_is_the_mean_negative_log_likelihood_of_its_examples(tmp_path):
    with opened(supervised_config(micro_batches=2), tmp_path) as run:
        state = supervised.initial_state(run)
        start = jax.tree.map(np.array, state.params)
        cursor = Cursor(0, 45)  # so that the batch crosses into the next epoch
        step = supervised.make_supervised_step(run)
        after, next_cursor, measured, records = step(state, cursor, 0)
    indices, expected_cursor = next_indices(50, cursor, 8, run.config.seed)
    assert next_cursor == expected_cursor == Cursor(1, 3) and records == []
    apply, losses, tokens = jax.jit(decoder(run.network.config).apply), [], 0
    for index in indices:
        example = run.source[int(index)]
        ids = run.tokenizer.encode(example["prompt"] + example["completion"]) + [run.tokenizer.eos_id]
        padded = np.array([ids + [0] * (40 - len(ids))])  # one shape; what comes after has no influence
        logp = jax.nn.log_softmax(apply(start, padded)[0])
        first = len(example["prompt"])
        losses += [-float(logp[place - 1, ids[place]]) for place in range(first, len(ids))]
        tokens += len(ids)
    assert measured["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert measured["tokens"] == tokens and measured["skipped"] == 0
    moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(after.params), strict=True)]
    assert min(moved) > 0 and int(after.step) == 1


def test_micro_batches_change_nothing(tmp_path):
    found = []
    for parts in (1, 4):
        with opened(supervised_config(micro_batches=parts), tmp_path / str(parts)) as run:
            state, _, measured, _ = supervised.make_supervised_step(run)(supervised.initial_state(run), Cursor(), 0)
            found.append((jax.device_get(state.params), measured))
    assert found[0][1]["loss"] == pytest.approx(found[1][1]["loss"], rel=1e-5)
    assert found[0][1]["gradient_norm"] == pytest.approx(found[1][1]["gradient_norm"], rel=1e-4)


def test_only_the_first_examples_are_shown(tmp_path):
    with opened(supervised_config(examples=5), tmp_path) as run:
        _, cursor, measured, _ = supervised.make_supervised_step(run)(supervised.initial_state(run), Cursor(), 0)
        assert cursor == Cursor(1, 3)
        indices = next_indices(5, Cursor(), 8, run.config.seed)[0]
        lengths = [len(run.source[int(i)]["prompt"] + run.source[int(i)]["completion"]) + 1 for i in indices]
        assert measured["tokens"] == sum(lengths)
    message = r"config\.sft\.examples is 51; the source has only 50"
    with opened(supervised_config(examples=51), tmp_path / "more") as run, pytest.raises(ValueError, match=message):
        supervised.make_supervised_step(run)
