"""The slot engine: samples do not depend on slots, order or mates, and no work is done that nobody needs."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_llm.networks import AdapterConfig, DecoderConfig, ExpertsConfig, add_adapter, decoder, quantize
from jaxrl_llm.sampling import LENGTH, STOP, engine, generate, harvest
from jaxrl_llm.sampling.memory import most_slots

VOCAB = 61
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
RAGGED = {"num_samples": 5, "stop_ids": [3, 4, 7], "temperature": 1.3, "seed": 2, "step": 5}


def assert_equal_samples(one, other):
    for name in ("tokens", "length", "finish_reason"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in ("logp", "tempered_logp", "sampling_logp", "entropy"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def ragged(network, params):
    """Samples of a slot each, in columns enough for all."""
    samples = generate(network, params, PROMPTS, max_new_tokens=150, **RAGGED)
    assert samples.length.max() > harvest.FIRST_WIDTH and samples.length.min() < 10
    assert {STOP} <= set(samples.finish_reason)
    return samples


@pytest.mark.parametrize("slots", [1, 3, 8, 19])
def test_the_number_of_slots_does_not_matter(network, params, ragged, slots):
    assert_equal_samples(generate(network, params, PROMPTS, max_new_tokens=150, slots=slots, **RAGGED), ragged)


@given(order=st.permutations(range(4)), slots=st.integers(1, 20))
@settings(max_examples=6, deadline=None, derandomize=True)
def test_the_order_of_the_queue_does_not_matter(network, params, ragged, order, slots):
    uids = np.arange(20).reshape(4, 5)[order].ravel()
    samples = generate(
        network, params, [PROMPTS[number] for number in order], max_new_tokens=150, uids=uids, slots=slots, **RAGGED
    )
    rows = np.argsort(uids)
    assert_equal_samples(jax.tree.map(lambda leaf: leaf[rows], samples), ragged)


def test_runs_are_equal_bit_for_bit(network, params, ragged):
    again = generate(network, params, PROMPTS, max_new_tokens=150, **RAGGED)
    for name in ("tokens", "logp", "tempered_logp", "sampling_logp", "entropy", "length", "finish_reason"):
        np.testing.assert_array_equal(getattr(again, name), getattr(ragged, name), err_msg=name)


def test_prompts_may_have_unlike_numbers_of_samples(network, params, ragged):
    counts = [1, 4, 2, 3]
    uids = np.concatenate([5 * number + np.arange(count) for number, count in enumerate(counts)])
    samples = generate(network, params, PROMPTS, max_new_tokens=150, **RAGGED | {"num_samples": counts}, uids=uids, slots=4)
    assert_equal_samples(samples, jax.tree.map(lambda leaf: leaf[uids], ragged))


def test_equal_prompts_are_read_once(network, params, monkeypatch):
    seen, read = [], harvest.read
    monkeypatch.setattr(harvest, "read", lambda *arguments: seen.append(arguments[2].shape) or read(*arguments))
    generate(network, params, [[5, 6, 7]] * 6 + [[8, 9]], max_new_tokens=4)
    assert seen == [(2, 16)]


def steps_of(network, params, monkeypatch, **options):
    """(width, slots, columns) of each run of the engine, and the samples."""
    seen, run = [], engine.run

    def counted(*arguments, **rest):
        before = int(arguments[6].column)
        slots = run(*arguments, **rest)
        seen.append((*slots.log.token.shape, int(slots.column) - before))
        return slots

    monkeypatch.setattr(engine, "run", counted)
    samples = generate(network, params, PROMPTS, **RAGGED | options)
    return seen, samples


def test_decoding_ends_with_the_last_row(network, params, monkeypatch):
    seen, samples = steps_of(network, params, monkeypatch, max_new_tokens=2000, slots=20)
    assert sum(columns for *_, columns in seen) == samples.length.max()
    # Columns are as many as the longest sample needs, not as the limit allows, and slots leave with the samples.
    assert max(width for width, *_ in seen) < 4 * max(samples.length.max(), harvest.FIRST_WIDTH)
    assert seen[-1][1] < 20


def test_no_slot_is_idle_while_there_is_a_queue(network, params, monkeypatch):
    seen, samples = steps_of(network, params, monkeypatch, max_new_tokens=150, slots=4)
    steps = sum(columns for *_, columns in seen)
    assert 4 * steps < samples.length.sum() + 4 * samples.length.max()
    # Tails are shifted rather than widened: they are as wide as a few samples in a row.
    assert max(width for width, *_ in seen) <= 256


def test_nothing_compiles_for_another_queue_of_the_same_sizes(network, params):
    generate(network, params, PROMPTS, max_new_tokens=20, slots=4, **RAGGED)
    compiled = engine.run._cache_size()
    others = {"num_samples": 6}, {"stop_ids": [1]}, {"temperature": 0.0, "limits": [1, 2, 3, 4]}
    for prompts, changes in zip((PROMPTS[::-1], PROMPTS, [[1, 2], *PROMPTS[:3]]), others, strict=True):
        generate(network, params, prompts, max_new_tokens=17, slots=4, **RAGGED | changes)
    assert engine.run._cache_size() == compiled


def test_windows_and_capped_logits_are_those_of_one_pass():
    config = DecoderConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_layers=4, num_heads=4, num_kv_heads=2, sliding_window=6,
        layer_types=("sliding", "full") * 2, attention_softcap=3.0, logit_softcap=5.0,
    )  # fmt: skip
    windowed = decoder(config)
    params = windowed.init(jax.random.key(1))
    params = {**params, "head": 20 * params["head"]}
    samples = generate(windowed, params, PROMPTS, max_new_tokens=20, num_samples=2, slots=3)
    for row, (tokens, logp) in enumerate(zip(samples.tokens, samples.logp, strict=True)):
        prompt = PROMPTS[row // 2]
        logits = jax.nn.log_softmax(jax.jit(windowed.apply)(params, np.array([[*prompt, *tokens]])))[0]
        expected = [logits[len(prompt) + place - 1, token] for place, token in enumerate(tokens)]
        np.testing.assert_allclose(logp, expected, atol=2e-5)
    assert (samples.finish_reason == LENGTH).all()


@pytest.mark.parametrize("kind", ["rslora", "dora", "int8", "experts"])
def test_what_is_adapted_quantised_or_routed_is_sampled_as_it_is_scored(kind):
    """Layers stand alone in decoding, and have to be the same layers there."""
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
    }
    network = decoder(
        DecoderConfig(**sizes, experts=ExpertsConfig(count=4, per_token=2, width=8) if kind == "experts" else None)
    )
    params = network.init(jax.random.key(1))
    if kind == "int8":
        network, params = quantize(network, params, kind)
    elif kind != "experts":
        network, params = add_adapter(network, params, AdapterConfig("attention|mlp", 3, 8.0, kind), jax.random.key(2))
    # Far from fresh ones, so that each of them matters.
    params = jax.tree.map(lambda leaf: leaf + 0.3 * np.cos(np.arange(leaf.size)).reshape(leaf.shape).astype(leaf.dtype), params)
    samples = generate(network, params, PROMPTS, max_new_tokens=8, num_samples=2)
    for row, (tokens, logp) in enumerate(zip(samples.tokens, samples.logp, strict=True)):
        prompt = PROMPTS[row // 2]
        logits = jax.nn.log_softmax(jax.jit(network.apply)(params, np.array([[*prompt, *tokens]])))[0]
        expected = [logits[len(prompt) + place - 1, token] for place, token in enumerate(tokens)]
        np.testing.assert_allclose(logp, expected, atol=2e-5)


def test_slots_are_as_many_as_memory_has_room_for(network, monkeypatch):
    monkeypatch.setattr("jaxrl_llm.sampling.memory.device_memory", lambda: 2**20)
    # Keys and values of 2 layers, 2 heads of width 4 and 64 columns, float32; twice while tails grow; a quarter of the memory.
    assert most_slots(network, 64) == 2**20 // 4 // (2 * 2 * 2 * 2 * 4 * 64 * 4)
    assert most_slots(network, 10**9) == 1


@pytest.mark.parametrize(("dtype", "times", "largest"), [("bfloat16", 2, 0.05), ("int8", 2, 0.1)])
def test_a_narrow_cache_has_room_for_more_slots_and_makes_a_small_gap(dtype, times, largest, network, params, monkeypatch):
    narrow = decoder(dataclasses.replace(network.config, cache_dtype=dtype))
    monkeypatch.setattr("jaxrl_llm.sampling.memory.device_memory", lambda: 2**24)
    # With heads of 4, the scales of int8 weigh as much as its codes.
    assert most_slots(narrow, 64) == times * most_slots(network, 64)
    samples = generate(narrow, params, PROMPTS, max_new_tokens=40, num_samples=2, slots=3)
    one_pass, gaps = jax.jit(network.apply), []
    for row, (tokens, logp) in enumerate(zip(samples.tokens, samples.logp, strict=True)):
        prompt = PROMPTS[row // 2]
        logits = jax.nn.log_softmax(one_pass(params, np.array([[*prompt, *tokens]])))[0]
        gaps += [logits[len(prompt) + place - 1, token] - logp[place] for place, token in enumerate(tokens)]
    assert 1e-5 < np.abs(gaps).max() < largest
    # What is scored in one pass keeps no cache.
    np.testing.assert_array_equal(narrow.apply(params, np.array([[1, 2, 3]])), network.apply(params, np.array([[1, 2, 3]])))


@pytest.mark.parametrize("slots", [0, -3])
def test_no_slots_are_refused(network, params, slots):
    with pytest.raises(ValueError, match=f"slots is {slots}; it must be at least 1"):
        generate(network, params, PROMPTS, max_new_tokens=4, slots=slots)
