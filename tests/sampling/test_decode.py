"""The jitted core: what it computes, and what it does not compute."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.sampling import LENGTH, STOP, decode, make_sampling, row_keys

pytestmark = pytest.mark.optimised

VOCAB = 61
PROMPTS = np.array([[5, 6, 7, 8], [9, 10, 0, 0], [11, 0, 0, 0]], np.int32)
LENGTHS = np.array([4, 2, 1], np.int32)


def run(network, params, columns=12, num_samples=2, seed=0, step=0, **options):
    rows = len(PROMPTS) * num_samples
    options = {"max_new_tokens": columns, **options}
    sampling = make_sampling(rows, VOCAB, **options)
    keys = row_keys(seed, step, np.arange(rows))
    return decode(network, params, PROMPTS, LENGTHS, keys, sampling, max_new_tokens=columns)


def all_shapes(jaxpr):
    """Shapes of everything that a program computes, in inner programs as well."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from all_shapes(inner)


def test_each_prompt_is_read_once_for_all_its_samples(network, params):
    seen = []

    def read(params, tokens, lengths):
        seen.append(tokens.shape)
        return network.read(params, tokens, lengths)

    def step(params, layers, token, *rest):
        seen.append(token.shape)
        return network.step(params, layers, token, *rest)

    counting = dataclasses.replace(network, read=read, step=step)
    run(counting, params, num_samples=5)
    assert set(seen) == {(3, 4), (15,)}


def test_logits_of_prompt_tokens_are_never_computed(network, params):
    def program(params):
        return run(network, params, columns=7, num_samples=5)

    shapes = set(all_shapes(jax.make_jaxpr(program)(params).jaxpr))
    assert (15, VOCAB) in shapes  # a decoding step
    assert not {(3, VOCAB), (3, 4, VOCAB), (15, 4, VOCAB), (12, VOCAB), (60, VOCAB)} & shapes


def test_stop_ids_are_not_frozen_into_the_program(network, params):
    free = run(network, params)
    compiled = decode._cache_size()
    for column in (3, 5):
        stop = int(free.tokens[0, column])
        samples = run(network, params, stop_ids=[stop])
        first = np.argmax(np.asarray(free.tokens) == stop, axis=1)
        stops = (np.asarray(free.tokens) == stop).any(1)
        np.testing.assert_array_equal(samples.length, np.where(stops, first + 1, 12))
        np.testing.assert_array_equal(samples.finish_reason, np.where(stops, STOP, LENGTH))
    assert decode._cache_size() == compiled


def test_no_setting_recompiles(network, params):
    run(network, params)
    compiled = decode._cache_size()
    for options in (
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "min_p": 0.1},
        {"stop_ids": [1, 2, 3], "max_new_tokens": 4},
        {"seed": 4, "step": 9},
        {"temperature": np.linspace(0, 1, 6)},
    ):
        run(network, params, **options)
    assert decode._cache_size() == compiled


def test_the_stop_token_stays_with_its_probability_and_nothing_after_it(network, params):
    free = run(network, params)
    stop = int(free.tokens[1, 4])
    samples = jax.device_get(run(network, params, stop_ids=[stop]))
    length = samples.length[1]
    assert length <= 5
    assert samples.tokens[1, length - 1] == stop
    np.testing.assert_allclose(samples.logp[1, :length], free.logp[1, :length], atol=1e-6)
    for name in ("tokens", "logp", "tempered_logp", "sampling_logp", "entropy"):
        past = np.arange(12) >= samples.length[:, None]
        assert past.any()
        assert not getattr(samples, name)[past].any(), name


def test_token_0_is_a_token_like_others(network, params):
    mask = np.isin(np.arange(VOCAB), [0, 1])
    samples = run(network, params, logit_mask=mask, stop_ids=[1], columns=40, num_samples=4)
    assert (np.asarray(samples.finish_reason) == STOP).any()
    for tokens, length, logp in zip(samples.tokens, samples.length, samples.logp, strict=True):
        assert set(np.asarray(tokens[: length - 1]).tolist()) <= {0}
        assert (logp[:length] < 0).all()
    assert (np.asarray(samples.length) > 1).any()


def test_rows_have_limits_and_temperatures_of_their_own(network, params):
    limits = np.array([1, 2, 3, 12, 99, 5])
    samples = run(network, params, max_new_tokens=limits, temperature=[0, 0, 1, 1, 0, 1])
    np.testing.assert_array_equal(samples.length, np.minimum(limits, 12))
    np.testing.assert_array_equal(samples.finish_reason, LENGTH)
    np.testing.assert_array_equal(samples.tokens[0, :1], samples.tokens[1, :1])
    assert not np.asarray(samples.sampling_logp)[[0, 1, 4]].any()
    cold = run(network, params, temperature=0)
    np.testing.assert_array_equal(samples.tokens[4], cold.tokens[4])


def test_forced_tokens_are_taken_and_the_rest_is_sampled_after_them(network, params):
    forced = np.full((6, 12), -1)
    forced[:, :3] = [[1, 2, 3], [3, 2, 1], [4, 4, 4], [5, 6, 7], [0, 0, 0], [9, 8, 7]]
    samples = run(network, params, forced=forced, temperature=0.5)
    np.testing.assert_array_equal(samples.tokens[:, :3], forced[:, :3])
    assert not np.asarray(samples.sampling_logp[:, :3]).any()
    assert (np.asarray(samples.sampling_logp[:, 3:]) < 0).any()
    # Going on from a longer prompt is the same as being forced along it.
    prompts = np.concatenate([PROMPTS[:1], forced[:1, :3]], axis=1).astype(np.int32)
    sampling = make_sampling(1, VOCAB, max_new_tokens=12, temperature=0.5)
    resumed = decode(network, params, prompts, np.array([7]), row_keys(0, 0, [0]), sampling, max_new_tokens=12)
    np.testing.assert_array_equal(resumed.tokens[0, :9], samples.tokens[0, 3:])


def test_devices_that_share_the_batch_do_not_matter(network, params):
    prompts = np.random.default_rng(0).integers(1, VOCAB, (8, 4)).astype(np.int32)
    lengths = np.array([1, 2, 3, 4, 4, 3, 2, 1], np.int32)
    arguments = prompts, lengths, row_keys(0, 0, np.arange(16)), make_sampling(16, VOCAB, max_new_tokens=6, stop_ids=[2])
    alone = decode(network, params, *arguments, max_new_tokens=6)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated = jax.NamedSharding(mesh, jax.P())
    rows = jax.NamedSharding(mesh, jax.P("data"))
    sharded = [jax.device_put(x, rows) for x in arguments[:3]] + [jax.device_put(arguments[3], replicated)]
    shared = decode(network, jax.device_put(params, replicated), *sharded, max_new_tokens=6)
    np.testing.assert_array_equal(alone.tokens, shared.tokens)
    np.testing.assert_allclose(alone.logp, shared.logp, atol=1e-5)


def test_equal_networks_share_a_program(network, params):
    run(network.with_params(params).without_params(), params)
    compiled = decode._cache_size()
    run(dataclasses.replace(network), jax.tree.map(jnp.copy, params))
    assert decode._cache_size() == compiled


def test_wrong_shapes_are_told(network, params):
    sampling = make_sampling(6, VOCAB, max_new_tokens=4)
    with pytest.raises(ValueError, match="multiple of the 3 prompts"):
        decode(network, params, PROMPTS, LENGTHS, row_keys(0, 0, np.arange(5)), sampling, max_new_tokens=4)
    with pytest.raises(ValueError, match="sampling is made for"):
        decode(network, params, PROMPTS, LENGTHS, row_keys(0, 0, np.arange(9)), sampling, max_new_tokens=4)
    with pytest.raises(ValueError, match="sampling.forced has shape"):
        run(network, params, forced=np.full((6, 3), -1))
