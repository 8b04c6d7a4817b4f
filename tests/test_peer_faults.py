"""Faults that were seen in other programs of this kind, and that ours must be unable to have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training.tiny_runs import finish, opened, quick_compilation, tiny_config  # noqa: F401

from jaxrl_llm import methods, rewards
from jaxrl_llm.data import Cursor, Tokenizer, character_tokenizer, pack
from jaxrl_llm.estimators import overlong_penalty
from jaxrl_llm.networks import DecoderConfig, decoder
from jaxrl_llm.objectives import negative_log_likelihood, objective
from jaxrl_llm.rollouts import requests_for
from jaxrl_llm.sampling import decode, generate
from jaxrl_llm.training import TrainState, make_update, metrics, reinforcement
from jaxrl_llm.training.supervised import demonstrations
from jaxrl_llm.types import Rollouts

VOCABULARY = 17
CONFIG = DecoderConfig(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1)
NETWORK = decoder(CONFIG)


@functools.cache
def params():
    return NETWORK.init(jax.random.key(0))


def sampled(**options):
    options = {"max_new_tokens": 12, "num_samples": 4} | options
    return generate(NETWORK, params(), [[1, 2, 3], [4, 5]], **options)


def test_noise_differs_at_every_step():
    texts = [sampled(step=step).tokens.tobytes() for step in range(6)]
    assert len(set(texts)) == 6


def test_noise_differs_among_the_samples_of_a_group():
    samples = sampled()
    assert len({row.tobytes() for row in samples.tokens[:4]}) == 4
    assert len({row.tobytes() for row in samples.tokens[4:]}) == 4


def test_noise_differs_among_equal_prompts_and_positions():
    """Two groups of one prompt are drawn anew, and a row does not repeat its noise from token to token."""
    flat = jax.tree.map(jnp.zeros_like, params())  # the same distribution everywhere, so that equal noise would show
    samples = generate(NETWORK, flat, [[1], [1]], max_new_tokens=32, num_samples=2)
    assert len({row.tobytes() for row in samples.tokens}) == 4
    assert min(len(set(row.tolist())) for row in samples.tokens) > 8


def test_noise_of_a_run_differs_at_every_step(tmp_path):
    """Without a learning rate and with one example, steps differ by their noise alone."""
    config = tiny_config("dr_grpo")
    config.task.options.size = 1
    config.rl.optimizer.learning_rate = 0.0
    finish(config, tmp_path)
    tables = [metrics.read_jsonl(tmp_path / "completions" / f"step_00000{step}.jsonl") for step in (1, 2)]
    assert len({row["prompt"] for table in tables for row in table}) == 1
    texts = [tuple(row["completion"] for row in table) for table in tables]
    assert texts[0] != texts[1] and all(len(set(table)) > 12 for table in texts)


def test_stop_ids_are_not_frozen_into_a_program():
    free = sampled(num_samples=1, seed=3)
    compiled = decode._cache_size()
    for stop in (int(free.tokens[0, 2]), int(free.tokens[0, 5]), int(free.tokens[1, 3])):
        samples = sampled(num_samples=1, seed=3, stop_ids=[stop])
        for row, whole in enumerate(free.tokens.tolist()):
            expected = whole.index(stop) + 1 if stop in whole else len(whole)
            assert samples.length[row] == expected
            assert samples.tokens[row, :expected].tolist() == whole[:expected]
    assert decode._cache_size() == compiled


def test_the_base_of_the_rotary_embedding_is_that_of_the_configuration():
    tokens = jnp.array([[1, 5, 3, 8, 2, 9, 4, 7]])
    large = jax.tree.map(lambda leaf: 3 * leaf, params())
    found = [decoder(DecoderConfig(**{**vars(CONFIG), "rope_theta": theta})).apply(large, tokens) for theta in (1e2, 1e4, 1e6)]
    for one, other in ((0, 1), (1, 2)):
        np.testing.assert_allclose(found[one][0, 0], found[other][0, 0], atol=1e-4)  # one token turns nothing
        assert np.abs(found[one][0, -1] - found[other][0, -1]).max() > 1e-3


def test_the_end_token_is_learned_where_it_is_the_padding_too():
    """Supervised: the loss and its gradient at the end token, when pad == eos as in many checkpoints."""
    plain = character_tokenizer("0123456789+=;#")
    fields = {name: getattr(plain, name) for name in ("encode_text", "decode_ids", "vocab_size", "eos_id", "stop_ids")}
    tokenizer = Tokenizer(**fields, pad_id=plain.eos_id)
    examples = [{"prompt": "1+2=", "completion": "3"}, {"prompt": "1=", "completion": "1"}]
    rows = demonstrations(tokenizer, examples, 8)
    end = rows.length - 1
    assert all(rows.tokens[row, end[row]] == tokenizer.eos_id and rows.mask[row, end[row]] == 1 for row in range(2))
    estimator = methods.get("sft").estimator
    estimated, _ = estimator.update(rows, estimator.init(), jax.random.key(0))
    batch = pack(jax.device_get(estimated), 16)
    is_end = (batch.tokens == tokenizer.eos_id) & (batch.segment > 0)
    assert is_end.sum() == 2 and (batch.weight[is_end] > 0).all()
    optimizer = optax.sgd(1.0)
    update = jax.jit(make_update(NETWORK, objective(negative_log_likelihood()), optimizer))
    only_end = batch.replace(weight=np.where(is_end, batch.weight, 0).astype(np.float32))
    _, measured = update(TrainState.create(params(), optimizer), only_end)
    assert measured["loss"] > 0 and measured["gradient_norm"] > 1e-3


def test_the_end_token_of_a_sample_is_an_action(tmp_path):
    """RL: completions that stop keep the stop token, with a mask, a weight and a log-probability."""
    with opened(tiny_config("dr_grpo"), tmp_path) as run:
        examples, numbers, _ = run.draw(Cursor(), 4)
        collection = run.io(run.network.params, 0).sample(requests_for(examples, numbers, samples=4))
    rollouts = collection.rollouts
    stopped = [row for row, record in enumerate(collection.records) if record["finish_reason"] == "stop"]
    assert stopped
    for row in stopped:
        last = rollouts.length[row] - 1
        assert rollouts.tokens[row, last] == run.tokenizer.eos_id
        assert rollouts.mask[row, last] == 1 and rollouts.behavior_logp[row, last] < 0


def test_rewards_are_not_cast_to_integers(tmp_path):
    """0.5 stays 0.5 from the reward to the record, the rollouts and the advantages."""
    config = tiny_config("dr_grpo")
    config.rewards.names = ("training.tiny_rewards:half",)
    with opened(config, tmp_path) as run:
        examples, numbers, _ = run.draw(Cursor(), 4)
        collection = run.io(run.network.params, 0).sample(requests_for(examples, numbers, samples=4))
        rollouts, _ = run.method.estimator.update(collection.rollouts, run.method.estimator.init(), jax.random.key(0))
    values = np.array([0.5 * (record["length"] % 2) for record in collection.records], np.float32)
    assert {0.0, 0.5} == set(values.tolist())
    np.testing.assert_array_equal(collection.rollouts.rewards[:, 0], values)
    assert [record["rewards"] for record in collection.records] == [[value] for value in values.tolist()]
    expected = values - values.reshape(4, 4).mean(axis=1).repeat(4)
    first = np.asarray(rollouts.mask).argmax(axis=1)
    np.testing.assert_allclose(np.asarray(rollouts.advantage)[np.arange(16), first], expected, atol=1e-6)


def test_old_and_new_log_probabilities_are_of_one_temperature(tmp_path):
    config = tiny_config("grpo", kl_coefficient=0.1)
    config.rl.update(temperature=0.7, steps=1)
    (record,) = finish(config, tmp_path).metrics
    assert record["logp_gap"] <= 1e-4
    assert record["ratio/mean"] == pytest.approx(1, abs=1e-5) and record["ratio/max"] == pytest.approx(1, abs=1e-4)
    assert record["reference_kl"] == pytest.approx(0, abs=1e-8)
    assert record["behavior_kl"] == pytest.approx(0, abs=1e-8)


def test_truncated_sampling_keeps_the_ratio(tmp_path):
    """Top-k and top-p change what is sampled, not the policy that is trained."""
    config = tiny_config("dr_grpo")
    config.rl.update(top_k=5, top_p=0.8, steps=1)
    (record,) = finish(config, tmp_path).metrics
    assert record["logp_gap"] <= 1e-4 and record["ratio/mean"] == pytest.approx(1, abs=1e-5)


def test_length_penalties_count_tokens():
    """A text of 4 tokens may have 40 characters: the columns and both penalties see tokens."""
    texts = ["a few long words of forty characters....", "x"]
    lengths = {"completion_length": [4, 9]}
    assert rewards.length_soft_penalty(10, 5)(["", ""], texts, **lengths) == [0.0, pytest.approx(-0.8)]
    cosine = rewards.length_cosine(lambda prompts, completions, **columns: [1.0, 1.0], 10)
    short, long = cosine(["", ""], texts, **lengths)
    assert short > long
    mask = np.zeros((2, 12), np.float32)
    mask[0, 1:5] = mask[1, 1:10] = 1
    rollouts = Rollouts(
        tokens=np.zeros((2, 12), np.int32), length=np.array([5, 10]), mask=mask, rewards=np.zeros((2, 1), np.float32)
    )
    penalised = overlong_penalty(max_length=10, buffer=5)
    found, _ = penalised.update(rollouts, penalised.init(), jax.random.key(0))
    total = np.nansum(found.rewards, axis=1)
    if found.token_rewards is not None:
        total = total + np.asarray(found.token_rewards * found.mask).sum(axis=1)
    np.testing.assert_allclose(total, [0.0, -0.8], atol=1e-6)


def test_completion_length_is_in_tokens(tmp_path):
    with opened(tiny_config("dr_grpo"), tmp_path) as run:
        examples, numbers, _ = run.draw(Cursor(), 4)
        collection = run.io(run.network.params, 0).sample(requests_for(examples, numbers, samples=4))
    counted = collection.rollouts.mask.sum(axis=1)
    np.testing.assert_allclose(collection.rollouts.rewards[:, 0], 1 / (1 + counted), rtol=1e-6)
    texts = np.array([len(record["completion"]) for record in collection.records])
    assert np.any(texts != counted)  # the stop token is a token, but no text


@pytest.mark.slow
def test_no_data_are_skipped_on_resume_with_several_updates_a_step(tmp_path):
    """Prompts of a run that went on after each step are those of a run that never stopped, each once an epoch."""
    seen = {}
    for name, stops in (("whole", [4]), ("resumed", [1, 4])):
        config = tiny_config("dr_grpo")
        config.task.options.size = 8
        config.rl.update(minibatches=2, row_tokens=128)  # so wide that all batches have one shape
        for steps in stops:
            config.rl.steps = steps
            finish(config, tmp_path / name)
        tables = sorted((tmp_path / name / "completions").iterdir())
        seen[name] = [[row["prompt_id"] for row in metrics.read_jsonl(table)][::4] for table in tables]
    assert seen["resumed"] == seen["whole"] and len(seen["whole"]) == 4
    for first in (0, 2):
        assert sorted(sum(seen["whole"][first : first + 2], [])) == list(range(8))


def test_evaluation_is_not_sampled_with_the_settings_of_training(tmp_path, monkeypatch):
    """The same held-out texts, whatever temperature and truncation the training samples with."""
    found = []
    for settings in ({}, {"temperature": 3.0, "top_k": 2}):
        config = tiny_config("dr_grpo")
        config.rl.update(settings)
        with opened(config, tmp_path / str(len(found))) as run:
            examples = [run.test_source[index] for index in range(4)]
            collection = run.evaluation_io(run.network.params, 0).sample(requests_for(examples, range(4)))
        found.append(collection.rollouts.tokens)
    np.testing.assert_array_equal(found[0], found[1])


def test_evaluation_does_not_repeat_the_noise_of_training(tmp_path):
    config = tiny_config("dr_grpo")
    config.evaluation.temperature = 1.0
    with opened(config, tmp_path) as run:
        examples, numbers, _ = run.draw(Cursor(), 4)
        asked = requests_for(examples, numbers, samples=4)
        both = run.io(run.network.params, 0), run.evaluation_io(run.network.params, 0)
        training, held_out = (io.sample(asked).rollouts.tokens for io in both)
    assert np.any(training != held_out)


def test_updates_of_a_step_do_not_move_the_data(tmp_path):
    """The cursor moves by prompts, not by updates."""
    config = tiny_config("dr_grpo")
    config.rl.update(minibatches=3, epochs=2)
    with opened(config, tmp_path) as run:
        state = reinforcement.initial_state(run, run.network.params)
        state, cursor, _, _ = reinforcement.make_reinforcement_step(run, None)(state, Cursor(), 0)
    assert cursor == Cursor(0, 4) and int(state.step) == 6
