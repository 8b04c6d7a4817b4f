"""`generate` and `stream` against repeated forward passes, and their promises about noise, shapes and arguments."""

import types

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_llm.networks import from_apply
from jaxrl_llm.sampling import LENGTH, STOP, engine, finish_name, generate, stream
from jaxrl_llm.sampling.generate import end_of_stop_string

VOCAB = 61
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]


def log_softmax(logits):
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def completions(samples):
    return [tokens[:length].tolist() for tokens, length in zip(samples.tokens, samples.length, strict=True)]


def text_of(tokens):
    return "".join(chr(ord("A") + token) for token in tokens)


def test_logps_are_those_of_the_network_on_prompt_and_completion(network, params, next_logits):
    temperature = 0.7
    samples = generate(
        network, params, PROMPTS, max_new_tokens=9, num_samples=2, temperature=temperature, top_k=7, stop_ids=[3, 4, 5]
    )
    for row, tokens in enumerate(completions(samples)):
        text = list(PROMPTS[row // 2])
        for column, token in enumerate(tokens):
            logits = next_logits(text)
            assert abs(samples.logp[row, column] - log_softmax(logits)[token]) < 1e-4
            assert abs(samples.tempered_logp[row, column] - log_softmax(logits / temperature)[token]) < 1e-4
            best = np.argsort(-logits)[:7]
            assert token in best
            drawn = log_softmax(np.where(np.isin(np.arange(VOCAB), best), logits / temperature, -np.inf))
            assert abs(samples.sampling_logp[row, column] - drawn[token]) < 1e-4
            text.append(token)


def test_temperature_0_is_the_argmax_of_repeated_forward_passes(network, params, next_logits):
    samples = generate(network, params, PROMPTS, max_new_tokens=10, temperature=0)
    for row, prompt in enumerate(PROMPTS):
        text = list(prompt)
        for _ in range(10):
            text.append(int(np.argmax(next_logits(text))))
        assert samples.tokens[row].tolist() == text[len(prompt) :]
    np.testing.assert_array_equal(samples.sampling_logp, 0)
    np.testing.assert_array_equal(samples.tempered_logp, samples.logp)


def test_a_row_does_not_depend_on_the_rows_beside_it(network, params):
    def sample(rows, **options):
        prompts = [PROMPTS[row] for row in rows]
        return completions(generate(network, params, prompts, max_new_tokens=10, uids=rows, stop_ids=[2], **options))

    expected = sample([0, 1, 2, 3])
    assert sample([3, 1, 0, 2]) == [expected[row] for row in (3, 1, 0, 2)]
    assert sample([2]) == [expected[2]]
    assert sample([0, 1, 2, 3], buckets=[40]) == expected
    longer = generate(network, params, PROMPTS, max_new_tokens=30, uids=range(4), stop_ids=[2])
    assert [tokens[:10] for tokens in completions(longer)] == expected


def test_samples_of_a_prompt_stand_together_and_are_those_of_their_uids(network, params):
    group = generate(network, params, PROMPTS, max_new_tokens=9, num_samples=2)
    single = generate(network, params, [PROMPTS[2]], max_new_tokens=9, uids=[5])
    assert group.tokens.shape == (8, 9)
    np.testing.assert_array_equal(group.tokens[5], single.tokens[0])


def test_noise_differs_by_sample_step_and_seed_and_repeats_otherwise(network, params):
    def sample(**options):
        return generate(network, params, PROMPTS[:1], max_new_tokens=12, num_samples=4, **options).tokens

    first = sample(seed=1, step=1)
    assert len({tuple(row) for row in first.tolist()}) == 4
    np.testing.assert_array_equal(first, sample(seed=1, step=1))
    for other in (sample(seed=1, step=2), sample(seed=2, step=1), sample(seed=1, step=1, uids=[10, 11, 12, 13])):
        assert (first != other).any(axis=1).all()


def test_programs_are_compiled_per_bucket_not_per_length(network, params):
    generate(network, params, [[1] * 3, [2] * 5], max_new_tokens=8)
    compiled = engine.run._cache_size()
    for lengths, tokens in (((1, 16), 8), ((16, 2), 7), ((9, 9), 5)):
        prompts = [[1] * lengths[0], [2] * lengths[1]]
        samples = generate(network, params, prompts, max_new_tokens=tokens, stop_ids=range(tokens))
        assert samples.tokens.shape == (2, tokens)
        assert (samples.length <= tokens).all()
    assert engine.run._cache_size() == compiled
    generate(network, params, [[1] * 17, [2]], max_new_tokens=8)
    assert engine.run._cache_size() == compiled + 1


def test_one_token_and_a_stop_at_the_first(network, params):
    one = generate(network, params, PROMPTS, max_new_tokens=1)
    assert one.tokens.shape == (4, 1)
    assert [finish_name(code) for code in one.finish_reason] == ["length"] * 4
    stopped = generate(network, params, PROMPTS, max_new_tokens=10, stop_ids=[int(one.tokens[1, 0])])
    assert stopped.length[1] == 1
    assert finish_name(stopped.finish_reason[1]) == "stop"
    np.testing.assert_allclose(stopped.logp[1, 0], one.logp[1, 0], rtol=1e-5)
    assert not stopped.tokens[1, 1:].any()


def test_a_mask_of_each_prompt_holds_for_all_its_samples(network, params):
    masks = np.arange(VOCAB) % 4 == np.arange(4)[:, None]
    samples = generate(network, params, PROMPTS, max_new_tokens=5, num_samples=2, logit_mask=masks)
    np.testing.assert_array_equal(samples.tokens % 4, np.repeat(np.arange(4), 2)[:, None].repeat(5, 1))
    assert (samples.sampling_logp > samples.logp).all()


@pytest.mark.parametrize("first", [0, 3, 15, 17, 20])
def test_a_stop_string_ends_the_row_at_the_token_that_completes_it(network, params, first):
    free = generate(network, params, PROMPTS, max_new_tokens=24)
    stop = text_of(free.tokens[1, first : first + 2])
    samples = generate(network, params, PROMPTS, max_new_tokens=24, stop_strings=["never", stop], detokenize=text_of)
    for row in range(4):
        place = text_of(free.tokens[row]).find(stop)
        length = 24 if place < 0 else place + 2
        assert samples.length[row] == length
        assert samples.finish_reason[row] == (LENGTH if place < 0 else STOP)
        np.testing.assert_array_equal(samples.tokens[row, :length], free.tokens[row, :length])
        np.testing.assert_allclose(samples.logp[row, :length], free.logp[row, :length], atol=1e-5)
        assert not samples.tokens[row, length:].any()
        assert not samples.logp[row, length:].any()


def test_a_stop_string_before_a_stop_id_wins(network, params):
    free = generate(network, params, PROMPTS, max_new_tokens=24).tokens[0].tolist()
    stop = text_of(free[2:4])
    options = {"stop_strings": [stop], "detokenize": text_of, "stop_ids": [free[6]]}
    samples = generate(network, params, PROMPTS, max_new_tokens=24, **options)
    assert samples.length[0] == min(text_of(free).find(stop) + 2, free.index(free[6]) + 1)
    assert samples.finish_reason[0] == STOP


@given(
    pieces=st.lists(st.sampled_from(["", "", "a", "b", "ab", " b"]), min_size=1, max_size=40),
    stops=st.lists(st.sampled_from(["a b", "abab", "bb", "b a", "aaaaa"]), min_size=1, max_size=2),
    seen=st.integers(0, 40),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_only_the_end_of_the_text_is_decoded_for_stop_strings(pieces, stops, seen):
    """The same end as that of a search through the whole text, whatever tokens say nothing."""
    texts = ["".join(pieces[:count]) for count in range(len(pieces) + 1)]
    ends = [count for count, text in enumerate(texts) if any(stop in text for stop in stops)]
    seen = min([seen, len(pieces), *(end - 1 for end in ends)])
    decoded = []

    def detokenize(tokens):
        decoded.append(len(tokens))
        return "".join(pieces[token] for token in tokens)

    found = end_of_stop_string(list(range(len(pieces))), seen, stops, detokenize)
    assert found == (ends[0] if ends else None)


def test_long_texts_are_not_decoded_whole():
    decoded = []

    def detokenize(tokens):
        decoded.append(len(tokens))
        return "x" * len(tokens)

    assert end_of_stop_string([0] * 4096, 4080, ["yy"], detokenize) is None
    assert max(decoded) <= 16 + 4


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_a_stream_is_the_completion_in_pieces(network, params, chunk):
    whole = generate(network, params, [PROMPTS[2]], max_new_tokens=11, temperature=0.9, seed=5)
    pieces = list(stream(network, params, PROMPTS[2], max_new_tokens=11, temperature=0.9, seed=5, chunk=chunk))
    assert sum(pieces, []) == whole.tokens[0].tolist()
    assert [len(piece) for piece in pieces[:2]] == [1, min(chunk, 10)]
    stop = text_of(whole.tokens[0, 3:5])
    options = {"stop_strings": [stop], "detokenize": text_of, "temperature": 0.9, "seed": 5, "chunk": chunk}
    cut = sum(stream(network, params, PROMPTS[2], max_new_tokens=11, **options), [])
    assert cut == whole.tokens[0, : text_of(whole.tokens[0]).find(stop) + 2].tolist()


def test_a_network_of_somebody_else_samples_without_a_cache(network, params):
    options = {"max_new_tokens": 9, "num_samples": 2, "temperature": 0.8, "top_p": 0.9, "stop_ids": [3]}
    ours = generate(network, params, PROMPTS, **options)

    def apply(params, tokens):
        return network.apply(params, tokens)

    for theirs in (types.SimpleNamespace(apply=apply), from_apply(apply)):
        samples = generate(theirs, params, PROMPTS, **options)
        np.testing.assert_array_equal(samples.tokens, ours.tokens)
        np.testing.assert_allclose(samples.logp, ours.logp, atol=1e-4)


def test_parameters_are_an_argument(network, params):
    first = generate(network, params, PROMPTS, max_new_tokens=10, temperature=0)
    compiled = engine.run._cache_size()
    second = generate(network, jax.tree.map(lambda x: -x, params), PROMPTS, max_new_tokens=10, temperature=0)
    assert (first.tokens != second.tokens).any()
    assert engine.run._cache_size() == compiled


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": [[1], []]}, r"prompts\[1\] has shape \(0,\)"),
        ({"prompts": [[1, VOCAB]]}, rf"prompts\[0\] holds {VOCAB}; token ids go from 0 to {VOCAB - 1}"),
        ({"prompts": [[1.5]]}, r"prompts\[0\] holds float64"),
        ({"prompts": [[1] * 9], "buckets": [4, 8]}, r"buckets=\[4, 8\] has none for 9 tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"num_samples": 0}, "num_samples is 0; it must be from 1"),
        ({"seed": -3}, "seed is -3; it must be from 0"),
        ({"temperature": -0.5}, r"temperature is -0.5; it must be 0 \(greedy\)"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"top_k": 2.5}, "top_k is 2.5; .* as an integer"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1; it must be above 0 and at most 1"),
        ({"min_p": 2.0}, "min_p is 2.0; it must be from 0 to 1"),
        ({"stop_ids": [3, VOCAB]}, f"stop_ids holds {VOCAB}; give token ids from 0 to {VOCAB - 1}"),
        ({"stop_ids": [-1]}, "stop_ids holds -1"),
        ({"uids": [1, 2, 3]}, r"uids has shape \(3,\)"),
        ({"uids": [1, 1]}, r"uids=\[1, 1\] must be different"),
        ({"stop_strings": "end", "detokenize": str}, "stop_strings is 'end'; give a list of texts"),
        ({"stop_strings": ["end"]}, "needs detokenize"),
        ({"stop_strings": ["end", ["a"]], "detokenize": str}, "or such a list a prompt"),
        ({"stop_strings": [["a"], [], []], "detokenize": str}, "stop_strings has lists for 3 prompts; give one for each"),
        ({"num_samples": [1, 2, 3]}, "num_samples is .1, 2, 3.; give one integer, or one for each of the 2 prompts"),
        ({"num_samples": [1, 0]}, "num_samples is .*; it must be from 1"),
        ({"limits": [1, 2, 3]}, "limits has 3 entries; give one for all, or one for each of the 2 prompts"),
        ({"logit_mask": np.ones(5, bool)}, r"logit_mask has shape \(1, 5\)"),
        ({"logit_mask": np.zeros(VOCAB, bool)}, "logit_mask forbids every token of row 0"),
    ],
)
def test_wrong_arguments_are_told(network, params, changed, message):
    arguments = {"prompts": [[1, 2], [3]], "max_new_tokens": 4, **changed}
    with pytest.raises(ValueError, match=message):
        generate(network, params, arguments.pop("prompts"), **arguments)


def test_a_stream_tells_wrong_arguments_at_once(network, params):
    with pytest.raises(ValueError, match="chunk is 0"):
        stream(network, params, [1], max_new_tokens=4, chunk=0)
    with pytest.raises(ValueError, match="temperature is -1"):
        stream(network, params, [1], max_new_tokens=4, temperature=-1)


@pytest.mark.parametrize("stops", [{}, {"stop_strings": ["ST", "K"], "detokenize": text_of}])
def test_samples_are_told_as_they_end(network, params, stops):
    options = {"max_new_tokens": 150, "num_samples": 6, "stop_ids": [3, 4], "slots": 5} | stops
    told = {}

    def finished(numbers, found):
        for number in numbers:
            assert number not in told
            told[number] = (len(told), found.tokens[number, : found.length[number]].tolist(), int(found.reason[number]))

    samples = generate(network, params, PROMPTS, finished=finished, **options)
    assert sorted(told) == list(range(24))
    assert [told[number][1:] for number in range(24)] == list(zip(completions(samples), samples.finish_reason, strict=True))
    plain = generate(network, params, PROMPTS, **options)
    np.testing.assert_array_equal(samples.tokens, plain.tokens)
