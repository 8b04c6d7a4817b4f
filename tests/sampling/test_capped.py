"""Greedy tokens of networks with capped logits, whose products compilers like to compute anew for each use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.networks import DecoderConfig, decoder, from_apply
from jaxrl_llm.sampling import decode, generate, make_sampling, row_keys

pytestmark = pytest.mark.optimised

VOCABULARY, ROWS, WIDTH, COLUMNS = 300, 8, 6, 5


def capped(cap, dtype, seed=0):
    """A network without parameters, and random parameters whose logits are clear-cut."""
    network = decoder(
        DecoderConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=4, num_kv_heads=2,
            logit_softcap=cap, dtype=dtype, param_dtype=dtype,
        )
    )  # fmt: skip
    params = network.init(jax.random.key(seed))
    return network, {**params, "head": (20 * params["head"]).astype(dtype)}


def prompts(rows=ROWS):
    return np.random.default_rng(0).integers(0, VOCABULARY, (rows, WIDTH)).astype(np.int32)


def arguments(params, rows=ROWS):
    sampling = make_sampling(rows, VOCABULARY, max_new_tokens=COLUMNS, temperature=0)
    return params, prompts(rows), np.full(rows, WIDTH, np.int32), row_keys(0, 0, np.arange(rows)), sampling


def assert_greedy(network, params, tokens, logp, rounding):
    """Each token is the argmax of `apply` on the text before it, rounding apart, and has its log-probability."""
    tokens = np.asarray(tokens)
    text = np.concatenate([prompts(len(tokens)), tokens], axis=1)
    logits = np.asarray(jax.jit(network.apply)(params, text), np.float64)[:, WIDTH - 1 : -1]
    taken = np.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    assert (taken >= logits.max(-1) - rounding).all()
    assert (tokens == logits.argmax(-1)).mean() >= 0.9
    shifted = logits - logits.max(-1, keepdims=True)
    expected = taken - logits.max(-1) - np.log(np.exp(shifted).sum(-1))
    np.testing.assert_allclose(logp, expected, atol=2 * rounding)


@pytest.mark.parametrize(
    ("cap", "dtype", "rounding"), [(30.0, "float32", 1e-4), (5.0, "float32", 1e-4), (30.0, "bfloat16", 0.1)]
)
def test_greedy_tokens_are_the_argmax(cap, dtype, rounding):
    network, params = capped(cap, dtype)
    samples = generate(network, params, prompts(), max_new_tokens=COLUMNS, temperature=0.0)
    assert_greedy(network, params, samples.tokens, samples.logp, rounding)


@pytest.mark.parametrize("options", [{"xla_backend_optimization_level": 0}, {"xla_disable_hlo_passes": "algsimp"}], ids=str)
def test_other_compilers_change_nothing(options):
    network, params = capped(30.0, "float32")
    program = decode.lower(network, *arguments(params), max_new_tokens=COLUMNS).compile(compiler_options=options)
    samples = program(*arguments(params))
    assert_greedy(network, params, samples.tokens, samples.logp, 1e-4)


def test_a_mesh_changes_nothing():
    network, params = capped(30.0, "float32")
    given, prompt, lengths, keys, sampling = arguments(params, rows=16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, everywhere = jax.NamedSharding(mesh, jax.P("data")), jax.NamedSharding(mesh, jax.P())
    placed = [jax.device_put(x, rows) for x in (prompt, lengths, keys)]
    samples = decode(
        network, *jax.device_put((given,), everywhere), *placed, jax.device_put(sampling, everywhere), max_new_tokens=COLUMNS
    )
    assert_greedy(network, params, samples.tokens, samples.logp, 1e-4)


def test_a_bare_function_of_tokens_is_as_greedy():
    network, params = capped(30.0, "float32")
    samples = generate(from_apply(network.apply), params, prompts(), max_new_tokens=2, temperature=0.0)
    text = np.concatenate([prompts(), samples.tokens], axis=1)
    logits = jax.jit(network.apply)(params, jnp.asarray(text))[:, WIDTH - 1 : -1]
    np.testing.assert_array_equal(samples.tokens, np.asarray(logits).argmax(-1))
