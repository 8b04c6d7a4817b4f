import dataclasses
import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.stepwise import stepwise_logits

from jaxrl_llm.networks import DecoderConfig, ExpertsConfig, Network, decoder, from_apply, logical_axes

CONFIG = DecoderConfig(
    vocab_size=41,
    hidden_size=16,
    intermediate_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    qk_norm="head",
    value_head=True,
)
NETWORK = decoder(CONFIG)
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 12))


def random_params(network):
    """Parameters far from a fresh network's, so that every one of them matters."""
    generator = np.random.default_rng(1)

    def draw(path, shape):
        noise = generator.normal(size=shape.shape)
        return jnp.asarray(1 + 0.2 * noise if path[-1].key == "scale" else 0.4 * noise, shape.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(network.init, jax.random.key(0)))


@pytest.fixture(scope="module")
def params():
    return random_params(NETWORK)


@pytest.fixture(scope="module")
def fresh():
    return NETWORK.init(jax.random.key(0))


@functools.partial(jax.jit, static_argnames="network")
def run(params, tokens, positions=None, segments=None, network=NETWORK):
    return network.apply(params, tokens, positions, segments)


hidden_of = jax.jit(NETWORK.hidden)


def compiled_gradient(config, params):
    """The compiled gradient of a log-likelihood, which takes parameters like `params`."""

    def loss(params):
        return -jax.nn.log_softmax(decoder(config).apply(params, TOKENS))[..., 0].mean()

    return jax.jit(jax.grad(loss)).lower(params).compile()


def test_parameters_are_a_plain_nested_dict_with_stacked_layers_and_named_axes(fresh):
    fresh = flax.traverse_util.flatten_dict(fresh, sep=".")
    names = flax.traverse_util.flatten_dict(logical_axes(NETWORK), sep=".")
    assert all(isinstance(leaf, jax.Array) for leaf in fresh.values())
    assert {path: leaf.ndim for path, leaf in fresh.items()} == {path: len(axes) for path, axes in names.items()}
    assert fresh["layers.attention.key.kernel"].shape == (3, 16, 2, 4)
    assert names["layers.attention.key.kernel"] == ("layers", "embed", "kv_heads", "head_dim")
    used = {"vocab", "embed", "heads", "kv_heads", "head_dim", "mlp", "layers", "values"}
    assert {name for axes in names.values() for name in axes} == used


def test_a_fresh_network_is_nearly_uniform_with_unlike_layers(fresh):
    logp = jax.nn.log_softmax(run(fresh, TOKENS))
    np.testing.assert_allclose(logp, -np.log(CONFIG.vocab_size), atol=0.5)
    kernel = fresh["layers"]["mlp"]["up"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])
    np.testing.assert_allclose(kernel.std(), CONFIG.hidden_size**-0.5, rtol=0.1)
    np.testing.assert_array_equal(NETWORK.value(fresh, hidden_of(fresh, TOKENS)), 0)


def test_logits_are_hidden_states_times_the_unembedding(params):
    hidden = hidden_of(params, TOKENS)
    logits = run(params, TOKENS)
    np.testing.assert_allclose(NETWORK.unembed(params, hidden), logits, atol=1e-5)
    np.testing.assert_allclose(hidden @ NETWORK.unembedding(params).T, logits, atol=1e-5)
    np.testing.assert_allclose(NETWORK.unembed(params, hidden[0, 3]), logits[0, 3], atol=1e-5)
    np.testing.assert_allclose(NETWORK.value(params, hidden), hidden @ params["value_head"][0], atol=1e-5)


def test_tied_embeddings_are_the_head():
    network = decoder(dataclasses.replace(CONFIG, tie_embeddings=True))
    tied = random_params(network)
    assert "head" not in tied
    np.testing.assert_array_equal(network.unembedding(tied), tied["embedding"])


def test_packed_rows_never_see_each_other_nor_padding(params):
    positions = np.asarray([[*range(5), *range(4), 0, 0, 0]])
    segments = np.asarray([[1] * 5 + [2] * 4 + [0] * 3])
    packed = run(params, TOKENS[:1], positions, segments)
    np.testing.assert_allclose(packed[:, :5], run(params, TOKENS[:1, :5]), atol=1e-5)
    np.testing.assert_allclose(packed[:, 5:9], run(params, TOKENS[:1, 5:9]), atol=1e-5)
    assert jnp.isfinite(packed).all()


def test_only_padding_is_finite_in_value_and_gradient(params):
    def total(params):
        return NETWORK.apply(params, TOKENS, None, jnp.zeros_like(TOKENS)).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(params)
    assert jnp.isfinite(value) and all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_decoding_gives_the_log_probabilities_of_one_pass(params):
    """Prompts of unlike lengths are padded on the right, read at once and continued token by token."""
    lengths, steps = np.asarray([7, 4]), 5
    found = jax.nn.log_softmax(stepwise_logits(NETWORK, params, TOKENS, lengths, steps))
    expected = jax.nn.log_softmax(run(params, TOKENS))
    for row, length in enumerate(lengths):
        # Roundings of float32 in three layers, which depend on the processor; what is promised is 1e-4.
        assert np.abs(found[row] - expected[row, length - 1 : length - 1 + steps]).max() < 3e-5


@pytest.mark.parametrize("attention", ["reference", "xla"])
def test_implementations_of_attention_agree(params, attention):
    network = decoder(dataclasses.replace(CONFIG, attention=attention))
    np.testing.assert_allclose(run(params, TOKENS, network=network), run(params, TOKENS), atol=1e-5)


@pytest.mark.parametrize("change", [{"rope_theta": 100.0}, {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}])
def test_rotary_settings_matter(params, change):
    network = decoder(dataclasses.replace(CONFIG, **change))
    assert np.abs(run(params, TOKENS, network=network) - run(params, TOKENS)).max() > 1e-2


def test_remat_keeps_less_and_changes_no_gradient(params):
    compiled = [compiled_gradient(dataclasses.replace(CONFIG, remat=name), params) for name in ("none", "dots", "full")]
    none, dots, full = (program.memory_analysis().temp_size_in_bytes for program in compiled)
    assert full < dots < none
    expected, *others = (program(params) for program in compiled)
    for found in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


LOCAL_AND_GLOBAL = {"sliding_window": 5, "sliding_rope_theta": 100.0, "post_norms": True}
EXPERTS = ExpertsConfig(count=4, per_token=2, width=8, shared_width=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "change"),
    [
        (("full",), {}),
        pytest.param(("sliding", "sliding", "sliding", "full"), LOCAL_AND_GLOBAL, marks=pytest.mark.slow),
        pytest.param(("full",), {"experts": EXPERTS}, marks=pytest.mark.slow),
        (("sliding", "full"), LOCAL_AND_GLOBAL | {"experts": dataclasses.replace(EXPERTS, dense_layers=2)}),
    ],
    ids=["alike", "local and global", "sparse", "all kinds"],
)
def test_compiled_program_does_not_grow_with_depth(pattern, change):
    def program(layers):
        types = (pattern * layers)[:layers]
        config = dataclasses.replace(CONFIG, num_layers=layers, layer_types=types, **change)
        text = compiled_gradient(config, jax.eval_shape(decoder(config).init, jax.random.key(0))).as_text()
        return text.count(" while("), text.count("\n")

    (shallow_loops, shallow), (deep_loops, deep) = program(4), program(32)
    stacks = 2 if change.get("experts", EXPERTS).dense_layers else 1
    assert shallow_loops == deep_loops >= 2 * stacks
    assert deep < 1.1 * shallow


def test_bfloat16_computes_logits_in_float32_close_to_float32(params):
    network = decoder(dataclasses.replace(CONFIG, dtype="bfloat16", param_dtype="bfloat16"))
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    logits = run(narrow, TOKENS, network=network)
    assert logits.dtype == jnp.float32
    assert network.init_tails(1, 4)[0].keys.dtype == jnp.bfloat16
    expected = run(jax.tree.map(lambda x: x.astype(jnp.float32), narrow), TOKENS)
    assert 0 < np.abs(logits - expected).max() < 0.05 * expected.std() + 0.1


def test_a_network_is_compared_without_its_parameters(params):
    pair = NETWORK.with_params(params)
    assert pair == NETWORK and hash(pair) == hash(NETWORK)
    assert pair.params is params and pair.without_params().params is None
    static = jax.jit(lambda network, params: network.apply(params, TOKENS), static_argnums=0)
    np.testing.assert_allclose(static(pair.without_params(), params), run(params, TOKENS), atol=1e-6)
    static(decoder(dataclasses.replace(CONFIG)), params)
    assert static._cache_size() == 1


@pytest.mark.parametrize(("dtype", "largest"), [("float32", 1e-5), ("bfloat16", 0.05), ("int8", 0.05)])
def test_what_is_read_behind_contexts_is_what_is_read_with_them(dtype, largest, params):
    network = decoder(dataclasses.replace(CONFIG, cache_dtype=dtype, sliding_window=6, layer_types=("sliding", "full", "full")))
    before, counts = np.array([7, 2]), np.array([3, 5])
    read = jax.jit(network.read)
    whole, _ = read(params, TOKENS, before + counts)
    head, _ = read(params, np.where(np.arange(12) < before[:, None], TOKENS, 0), before)
    new = np.stack(
        [np.pad(row[at : at + count], (0, 5 - count)) for row, at, count in zip(TOKENS, before, counts, strict=True)]
    )
    found, _ = jax.jit(network.extend)(params, network.each_layer(params), new, counts, head, before)
    for own, expected in zip(found, whole, strict=True):
        for row, end in enumerate(before + counts):
            pairs = [(own.values[row, :, :end], expected.values[row, :, :end], own.value_scale, expected.value_scale)]
            pairs += [(own.keys[row, :, :, :end].mT, expected.keys[row, :, :, :end].mT, own.key_scale, expected.key_scale)]
            for mine, theirs, *scales in pairs:
                mine, theirs = (
                    np.asarray(x, np.float32) * (1.0 if scale is None else np.asarray(scale)[row, :, :end, None])
                    for x, scale in zip((mine, theirs), scales, strict=True)
                )
                np.testing.assert_allclose(mine, theirs, atol=largest * np.abs(theirs).max())


def test_any_function_is_a_network():
    network = from_apply(lambda params, tokens, positions=None, segments=None: params["table"][tokens])
    assert isinstance(network, Network) and network.hidden is None
    assert network.apply({"table": jnp.eye(3)}, jnp.asarray([[2, 0]])).shape == (1, 2, 3)
    with pytest.raises(ValueError, match="network.config=None has no logical axes"):
        logical_axes(network)


def test_a_mesh_splits_parameters_and_activations_and_changes_nothing(params, fresh):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    widths = [(name, "fsdp") for name in ("embed", "activation_embed")]
    rules = [("batch", "data"), *widths, *((name, "tensor") for name in ("heads", "kv_heads", "mlp"))]
    shardings = jax.tree.map(
        lambda axes: jax.sharding.NamedSharding(mesh, nn.logical_to_mesh_axes(axes, rules)),
        logical_axes(NETWORK),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        drawn = jax.jit(NETWORK.init, out_shardings=shardings)(jax.random.key(0))
        hidden = jax.jit(NETWORK.hidden)(jax.device_put(params, shardings), TOKENS)
        tails = jax.jit(functools.partial(NETWORK.init_tails, 2, 16))()
    assert drawn["layers"]["mlp"]["up"]["kernel"].addressable_shards[0].data.shape == (3, 8, 12)
    assert hidden.addressable_shards[0].data.shape == (1, 12, 8)
    assert tails[0].keys.addressable_shards[0].data.shape == (1, 1, 4, 16)
    np.testing.assert_allclose(hidden, hidden_of(params, TOKENS), atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), drawn, fresh)
