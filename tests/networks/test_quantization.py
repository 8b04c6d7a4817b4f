import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies
from networks.stepwise import stepwise_logits
from oracles import adapters as oracle
from oracles.tiny_policy import jit

from jaxrl_llm.networks import (
    ADAPTER,
    AdapterConfig,
    DecoderConfig,
    ExpertsConfig,
    QuantizationConfig,
    add_adapter,
    decoder,
    dequantize,
    join_params,
    logical_axes,
    merge_adapter,
    quantization_gap,
    quantize,
    split_params,
)
from jaxrl_llm.networks.codes import NF4, decode, encode

pytestmark = pytest.mark.slow

KINDS = ("int8", "int4", "nf4")
SIZES = {"vocab_size": 37, "hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 4, "head_dim": 16}
DENSE = DecoderConfig(**SIZES, num_kv_heads=2)
SPARSE = DecoderConfig(**SIZES, experts=ExpertsConfig(count=3, per_token=2, width=64))
TOKENS = np.random.default_rng(0).integers(0, 37, (2, 12))


@functools.cache
def base(config):
    """A network and normally distributed parameters."""
    network, random = decoder(config), np.random.default_rng(0)

    def draw(path, leaf):
        return jnp.asarray(random.normal(size=leaf.shape) * (1 if path[-1].key == "scale" else 0.125), leaf.dtype)

    return network, jax.tree_util.tree_map_with_path(draw, jax.eval_shape(network.init, jax.random.key(0)))


@functools.cache
def coded(config, kind):
    return quantize(*base(config), kind)


@functools.partial(jit, static_argnums=0)
def logits_of(network, params, tokens=TOKENS, positions=None, segments=None):
    return network.apply(params, tokens, positions, segments)


def test_levels_are_the_quantiles_of_the_paper():
    np.testing.assert_allclose(NF4, oracle.normal_float_levels(), atol=1e-6)
    assert len(NF4) == 16 and NF4[7] == 0


@hypothesis.settings(max_examples=9, deadline=None)
@hypothesis.given(
    strategies.sampled_from(KINDS), strategies.integers(0, 10**6), strategies.sampled_from([-3, 0, 4]), strategies.booleans()
)
def test_codes_stand_for_the_nearest_levels(kind, seed, exponent, empty):
    w = 10.0**exponent * np.random.default_rng(seed).normal(size=(128, 3))
    w[:64, 1] *= 0 if empty else 1
    w = np.float32(w).astype(np.float64)
    codes, scales = encode(kind, jnp.float32(w))
    assert codes.dtype == (jnp.int8 if kind == "int8" else jnp.uint8) and scales.dtype == jnp.float32
    bits = 8 * (codes.nbytes + scales.nbytes) / w.size
    assert bits == (8.25 if kind == "int8" else 4.5)
    found = decode(kind, codes, scales)
    np.testing.assert_allclose(found, oracle.quantized(kind, w), rtol=1e-5, atol=1e-6 * np.abs(w).max())


def test_normal_weights_lie_nearer_to_nf4_than_to_int4_and_nearest_to_int8():
    w = np.random.default_rng(1).normal(size=(512, 16))
    gaps = {kind: np.sqrt(np.mean((decode(kind, *encode(kind, jnp.float32(w))) - w) ** 2)) for kind in KINDS}
    assert gaps["int8"] < 0.01 < gaps["nf4"] < 0.95 * gaps["int4"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_a_quantised_network_is_its_decoded_one(config, kind):
    network, params = coded(config, kind)
    plain, decoded = dequantize(network, params)
    assert plain == decoder(config)
    np.testing.assert_allclose(logits_of(network, params), logits_of(plain, decoded), atol=2e-5)
    kernel = base(config)[1]["sparse_layers" if config.experts else "layers"]["attention"]["output"]["kernel"]
    found = decoded["sparse_layers" if config.experts else "layers"]["attention"]["output"]["kernel"]
    expected = oracle.quantized(kind, np.float64(kernel[1]).reshape(64, 64)).reshape(4, 16, 64)
    np.testing.assert_allclose(found[1], expected, atol=1e-6)
    assert params["embedding"] is base(config)[1]["embedding"] is decoded["embedding"]
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), params, shapes))


def test_only_what_the_pattern_finds_is_quantised():
    network, params = quantize(*base(SPARSE), "int8", r"experts\.")
    layers = params["sparse_layers"]
    assert set(layers["experts"]["up"]) == {"codes", "scales"} and set(layers["attention"]["query"]) == {"kernel"}
    assert layers["experts"]["up"]["scales"].shape == (2, 3, 1, 64)
    assert logical_axes(network)["sparse_layers"]["experts"]["up"]["codes"] == ("layers", "expert", "embed", "mlp")


@pytest.mark.parametrize("kind", KINDS)
def test_the_gap_is_reported(kind):
    exact = jax.nn.log_softmax(np.float64(logits_of(*base(DENSE))))[:, :-1]
    rough = jax.nn.log_softmax(np.float64(logits_of(*coded(DENSE, kind))))[:, :-1]
    gap = quantization_gap(*base(DENSE), *coded(DENSE, kind), TOKENS)
    taken = np.abs(np.take_along_axis(exact - rough, TOKENS[:, 1:, None], 2))
    np.testing.assert_allclose(gap, (taken.mean(), taken.max(), (np.exp(exact) * (exact - rough)).sum(-1).mean()), rtol=1e-2)
    assert gap.kl > 0 and gap.mean < (0.03 if kind == "int8" else 0.5)


def test_the_gap_of_a_network_to_itself_is_zero_and_padding_does_not_count():
    assert quantization_gap(*base(DENSE), *base(DENSE), TOKENS) == (0, 0, 0)
    packed = np.concatenate([TOKENS[:1, :7], TOKENS[1:, :5], np.zeros((1, 3), int)], axis=1)
    segments = np.asarray([[1] * 7 + [2] * 5 + [0] * 3])
    whole, one, two = (
        quantization_gap(*base(DENSE), *coded(DENSE, "int8"), *texts)
        for texts in ((packed, segments), (TOKENS[:1, :7],), (TOKENS[1:, :5],))
    )
    np.testing.assert_allclose(whole.mean, (6 * one.mean + 4 * two.mean) / 10, rtol=1e-3)
    np.testing.assert_allclose(whole.largest, max(one.largest, two.largest), rtol=1e-3)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_sampler_and_learner_of_an_adapted_quantised_network_agree(kind):
    network, params = adapted(SPARSE, kind, "attention|experts", "rslora")
    expected = jax.nn.log_softmax(logits_of(network, params))
    found = stepwise_logits(network, params, TOKENS, [8, 8], 5)
    assert np.abs(jax.nn.log_softmax(found) - expected[:, 7:12]).max() < 2e-5


def adapted(config, kind, pattern, adapter="dora"):
    """An adapter that changes something over a quantised base."""
    network, params = add_adapter(*coded(config, kind), AdapterConfig(pattern, 2, 2.0, adapter), jax.random.key(0))
    trained, frozen = split_params(params, ADAPTER)
    random = np.random.default_rng(3)
    return network, join_params(jax.tree.map(lambda x: x + 0.2 * random.normal(size=x.shape), trained), frozen)


@pytest.mark.slow
def test_gradients_of_adapters_are_those_over_the_decoded_base():
    network, params = adapted(DENSE, "nf4", "attention|mlp")
    plain, decoded = dequantize(network, params)
    np.testing.assert_allclose(logits_of(*merge_adapter(network, params)), logits_of(network, params), atol=2e-5)

    def gradient(network, params):
        trained, frozen = split_params(params, ADAPTER)
        loss = lambda trained: jnp.sum(jnp.sin(network.apply(join_params(trained, frozen), TOKENS)))  # noqa: E731
        return jit(jax.grad(loss))(trained)

    found, expected = gradient(network, params), gradient(plain, decoded)
    assert np.abs(expected["layers"]["mlp"]["up"]["lora_a"]).max() > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, expected)


def test_the_decoded_layers_never_exist_together():
    """Neither forward nor for the backward pass: with 16 layers, all decoded kernels would be four times what is used."""
    config = dataclasses.replace(
        DENSE, num_layers=16, hidden_size=256, intermediate_size=512, quantization=QuantizationConfig("nf4")
    )
    network = decoder(dataclasses.replace(config, adapter=AdapterConfig("attention|mlp", 2, 2.0)))
    trained, frozen = split_params(jax.eval_shape(network.init, jax.random.key(0)), ADAPTER)

    def loss(trained, frozen):
        return network.apply(join_params(trained, frozen), np.zeros((1, 8), np.int32)).sum()

    used = jax.jit(jax.grad(loss)).lower(trained, frozen).compile().memory_analysis().temp_size_in_bytes
    plain = jax.eval_shape(decoder(dataclasses.replace(config, quantization=None)).init, jax.random.key(0))
    assert used < 0.25 * sum(4 * leaf.size for leaf in jax.tree.leaves(plain["layers"]))


def test_a_new_quantised_network_is_as_random_as_a_plain_one():
    network = decoder(dataclasses.replace(DENSE, quantization=QuantizationConfig("int8", "mlp")))
    _, params = dequantize(network, network.init(jax.random.key(0)))
    np.testing.assert_allclose(params["layers"]["mlp"]["up"]["kernel"].std(), 64**-0.5, rtol=0.05)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="quantization.kind='fp4' is unknown; choose one of int8, int4, nf4"):
        quantize(*base(DENSE), "fp4")
    with pytest.raises(
        ValueError, match="quantization.pattern='head' is found in none of the matrices; they are attention.query"
    ):
        quantize(*base(DENSE), "int8", "head")
    with pytest.raises(ValueError, match="has quantization=.*'nf4'.* already; dequantize it first"):
        quantize(*coded(DENSE, "nf4"), "int8")
    narrow = dataclasses.replace(DENSE, intermediate_size=96)
    with pytest.raises(ValueError, match="kind='int4' needs inputs in blocks of 64; mlp.down has 96: use 'int8', or a pattern"):
        decoder(dataclasses.replace(narrow, quantization=QuantizationConfig("int4")))
    decoder(dataclasses.replace(narrow, quantization=QuantizationConfig("int8")))
    decoder(dataclasses.replace(narrow, quantization=QuantizationConfig("int4", "attention|up")))
    with pytest.raises(ValueError, match="trains='codes' is found in layers.attention.*.codes, which is uint8 and can only be"):
        split_params(coded(DENSE, "nf4")[1], "codes")
