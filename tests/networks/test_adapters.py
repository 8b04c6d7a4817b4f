import dataclasses
import functools

import flax.traverse_util
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies
from networks.stepwise import stepwise_logits
from oracles import adapters as oracle
from oracles.tiny_policy import jit

from jaxrl_llm.distributed import make_mesh, shard_params, sharded
from jaxrl_llm.networks import (
    ADAPTER,
    AdapterConfig,
    DecoderConfig,
    ExpertsConfig,
    add_adapter,
    decoder,
    join_params,
    logical_axes,
    merge_adapter,
    remove_adapter,
    save_huggingface,
    split_params,
    unmerge_adapter,
)
from jaxrl_llm.networks.matrices import matrices, product
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.types import Batch

pytestmark = pytest.mark.slow

SIZES = {"vocab_size": 37, "hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
DENSE = DecoderConfig(**SIZES)
TIED = dataclasses.replace(DENSE, tie_embeddings=True, attention_bias=True, scale_embeddings=True)
EXPERTS = ExpertsConfig(count=4, per_token=2, width=8, shared_width=8, dense_layers=1)
SPARSE = dataclasses.replace(DENSE, num_layers=3, experts=EXPERTS)
ALL = "attention|mlp|experts|embedding|head"
TOKENS = np.random.default_rng(0).integers(0, 37, (2, 10))
KINDS = ("lora", "rslora", "dora")


def drawn(shapes, seed=0):
    """Random parameters, far from a fresh network's, so that every one of them matters."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * random.normal(size=leaf.shape), leaf.dtype), shapes)


@functools.cache
def base(config):
    """A network and random parameters."""
    network = decoder(config)
    return network, drawn(jax.eval_shape(network.init, jax.random.key(0)))


@functools.cache
def added(config, kind, pattern=ALL):
    """The network with a new adapter."""
    return add_adapter(*base(config), AdapterConfig(pattern, 3, 5.0, kind), jax.random.key(3))


@functools.cache
def adapted(config, kind="lora", pattern=ALL):
    """The network with an adapter that changes something."""
    network, params = added(config, kind, pattern)
    trained, frozen = split_params(params, ADAPTER)
    return network, join_params(jax.tree.map(jnp.add, trained, drawn(trained, seed=1)), frozen)


@functools.partial(jit, static_argnums=0)
def logits_of(network, params, tokens=TOKENS, positions=None, segments=None):
    return network.apply(params, tokens, positions, segments)


@hypothesis.settings(max_examples=12, deadline=None)
@hypothesis.given(strategies.integers(0, 10**6), strategies.sampled_from(KINDS), strategies.sampled_from([(6,), (2, 3)]))
def test_the_product_and_its_gradient_are_those_of_the_papers(seed, kind, ins):
    random = np.random.default_rng(seed)
    adapter = AdapterConfig("", 2, 3.0, kind)
    x, w, a, b = (random.normal(size=shape) for shape in [(5, 6), (6, 4), (6, 2), (2, 4)])
    cotangent, magnitude = random.normal(size=(5, 4)), random.uniform(0.5, 2, size=4)
    scale = 3.0 / (np.sqrt(2) if kind == "rslora" else 2)
    wide = {"lora_a": a.reshape(*ins, 2), "lora_b": b.reshape(2, 2, 2)}
    if kind == "dora":
        wide["magnitude"] = magnitude.reshape(2, 2)
        expected = oracle.dora(x, w, a, b, magnitude, scale, cotangent)
    else:
        expected = oracle.lora(x, w, a, b, scale, cotangent)
    config = dataclasses.replace(DENSE, adapter=adapter)
    leaves = jax.tree.map(jnp.float32, wide)

    def run(leaves):
        kernel = {"kernel": jnp.float32(w).reshape(*ins, 2, 2)}
        return product(config, leaves | kernel, jnp.float32(x), inputs=len(ins))

    y, pull = jax.vjp(run, leaves)
    found = pull(jnp.float32(cotangent))[0]
    np.testing.assert_allclose(y, expected[0], rtol=2e-5, atol=2e-5)
    for name, value in zip(("lora_a", "lora_b", "magnitude"), expected[1:], strict=False):
        np.testing.assert_allclose(found[name].reshape(value.shape), value, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("config", [DENSE, TIED, SPARSE], ids=["dense", "tied", "sparse"])
def test_the_matrices_are_all_kernels_and_both_tables(config):
    params = jax.eval_shape(decoder(config).init, jax.random.key(0))
    kernels = {path[:-1] for path in flax.traverse_util.flatten_dict(params) if path[-1] == "kernel"}
    listed = matrices(config)
    assert {matrix.path for matrix in listed if matrix.in_layers} == kernels
    assert [matrix.name for matrix in listed if not matrix.in_layers] == ["embedding", "head"]
    for matrix in listed:
        if matrix.in_layers:
            shape = functools.reduce(dict.__getitem__, matrix.path, params)["kernel"].shape
            assert np.prod(shape[matrix.leading : matrix.leading + matrix.inputs]) == matrix.fan_in


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_begins_as_in_peft_and_changes_nothing(kind):
    network, params = base(TIED)
    wide, joined = added(TIED, kind)
    np.testing.assert_allclose(logits_of(wide, joined), logits_of(network, params), atol=1e-5)
    up, kernel = joined["layers"]["mlp"]["up"], params["layers"]["mlp"]["up"]["kernel"]
    assert 0.9 / 4 < np.abs(up["lora_a"]).max() <= 1 / 4  # 16 inputs
    assert not up["lora_b"].any() and not np.array_equal(up["lora_a"][0], up["lora_a"][1])
    assert not joined["embedding_adapter"]["lora_a"].any() and joined["embedding_adapter"]["lora_b"].any()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(split_params(joined, ADAPTER)[0]))
    assert ("magnitude" in up) == (kind == "dora")
    if kind == "dora":
        np.testing.assert_allclose(up["magnitude"], np.linalg.norm(kernel, axis=1), rtol=1e-5)
        length = np.linalg.norm(params["embedding"], axis=0)
        np.testing.assert_allclose(joined["embedding_adapter"]["magnitude"], length, rtol=1e-5)
    alike = jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), joined, jax.eval_shape(wide.init, jax.random.key(1))
    )
    assert jax.tree.all(alike)


def test_the_base_is_shared_and_the_reference_costs_no_copy():
    network, params = base(TIED)
    wide, joined = adapted(TIED, "rslora")
    reference, its_params = remove_adapter(wide, joined)
    assert reference == network and wide != network

    def pointers(tree):
        return jax.tree.map(lambda leaf: leaf.unsafe_buffer_pointer(), tree)

    assert pointers(its_params) == pointers(params) == pointers(split_params(joined, ADAPTER)[1])
    np.testing.assert_array_equal(logits_of(reference, its_params), logits_of(network, params))
    assert np.abs(logits_of(wide, joined) - logits_of(network, params)).max() > 0.1


@pytest.mark.parametrize(
    ("config", "kind", "pattern"),
    [
        *((TIED, kind, ALL) for kind in KINDS),
        pytest.param(SPARSE, "rslora", ALL, marks=pytest.mark.slow),
        (DENSE, "dora", "head|attention"),
        (TIED, "lora", "head"),
    ],
)
def test_merging_changes_no_logits_and_shares_the_rest(config, kind, pattern):
    network, params = adapted(config, kind, pattern)
    plain, merged = merge_adapter(network, params)
    assert plain.config.adapter is None
    assert plain.config.tie_embeddings == (config.tie_embeddings and not {"embedding", "head"} & set(pattern.split("|")))
    expected = logits_of(network, params)
    np.testing.assert_allclose(logits_of(plain, merged), expected, atol=5e-5)
    shapes = jax.eval_shape(plain.init, jax.random.key(0))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), merged, shapes))
    assert merged["final_norm"]["scale"] is params["final_norm"]["scale"]
    if kind != "dora":
        again = unmerge_adapter(merged, network, split_params(params, ADAPTER)[0])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again, params)


def test_what_merging_forgets_cannot_be_unmerged():
    network, params = adapted(DENSE, "dora", "mlp")
    with pytest.raises(ValueError, match="adapter.kind='dora' cannot be unmerged"):
        unmerge_adapter(merge_adapter(network, params)[1], network, split_params(params, ADAPTER)[0])


@pytest.mark.parametrize(("config", "kind"), [(TIED, "dora"), (SPARSE, "rslora")])
def test_sampler_and_learner_agree(config, kind):
    """G2: a prompt at once, then token by token; unlike lengths, padded on the right."""
    network, params = adapted(config, kind)
    expected = jax.nn.log_softmax(logits_of(network, params))
    lengths = np.asarray([6, 4])
    found = jax.nn.log_softmax(stepwise_logits(network, params, TOKENS, lengths, 4))
    for row, length in enumerate(lengths):
        assert np.abs(found[row] - expected[row, length - 1 : length + 3]).max() < 1e-5


@pytest.mark.parametrize("kind", ["rslora", "dora"])
def test_chunked_scoring_sees_an_adapted_head(kind):
    network, params = adapted(TIED, kind, r"head|embedding|attention\.query")
    trained, frozen = split_params(params, ADAPTER)
    batch = Batch(tokens=TOKENS.astype(np.int32), mask=np.ones(TOKENS.shape, np.float32))
    weights = np.random.default_rng(5).normal(size=TOKENS.shape)

    def chunked(trained):
        return jnp.sum(weights * make_scorer(network)(join_params(trained, frozen), batch).logp)

    def whole(trained):
        logp = jax.nn.log_softmax(network.apply(join_params(trained, frozen), TOKENS))[:, :-1]
        return jnp.sum(weights[:, 1:] * jnp.take_along_axis(logp, TOKENS[:, 1:, None], 2)[..., 0])

    found, expected = (jit(jax.value_and_grad(loss))(trained) for loss in (chunked, whole))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert np.abs(expected[1]["head_adapter"]["lora_a"]).max() > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found[1], expected[1])


def test_bfloat16_keeps_adapters_in_float32():
    wide, joined = adapted(dataclasses.replace(DENSE, dtype="bfloat16", param_dtype="bfloat16"), "dora")
    assert {leaf.dtype for leaf in jax.tree.leaves(split_params(joined, ADAPTER)[0])} == {jnp.dtype("float32")}
    exact = decoder(dataclasses.replace(wide.config, dtype="float32"))
    expected = logits_of(exact, joined)
    assert 0 < np.abs(logits_of(wide, joined) - expected).max() < 0.05 * np.abs(expected).max()
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(merge_adapter(wide, joined)[1]))


def test_adapters_are_split_over_a_mesh():
    network, params = adapted(SPARSE, "rslora")
    names = flax.traverse_util.flatten_dict(logical_axes(network), sep=".")
    assert names["layers.attention.output.lora_a"] == ("layers", "heads", "head_dim", "rank")
    assert names["sparse_layers.experts.up.lora_b"] == ("layers", "expert", "rank", "mlp")
    mesh = make_mesh(1, 2, 4)
    split = shard_params(params, network, mesh)
    assert split["layers"]["mlp"]["up"]["lora_b"].addressable_shards[0].data.shape == (1, 3, 6)
    with sharded(mesh):
        found = logits_of(network, split)
        _, again = add_adapter(*remove_adapter(network, split), AdapterConfig("mlp", 3, 2.0, "dora"), jax.random.key(0))
    np.testing.assert_allclose(found, logits_of(network, params), atol=1e-4)
    length = np.linalg.norm(params["layers"]["mlp"]["up"]["kernel"], axis=1)
    np.testing.assert_allclose(again["layers"]["mlp"]["up"]["magnitude"], length, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "vera"}, "adapter.kind='vera' is unknown; choose one of lora, rslora, dora"),
        ({"rank": 0}, "adapter.rank=0 must be at least 1"),
        ({"alpha": float("nan")}, "adapter.alpha=nan must be a positive number"),
        ({"pattern": "mlp("}, r"adapter.pattern='mlp\(' is no regular expression: missing"),
    ],
)
def test_wrong_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**{"pattern": "mlp", "rank": 2, "alpha": 2.0} | change)


def test_what_does_not_fit_is_named(tmp_path):
    adapter, adapter_of_mlp = (AdapterConfig(pattern, 2, 2.0) for pattern in ("q_proj", "mlp"))
    with pytest.raises(
        ValueError, match="pattern='q_proj' is found in none of the matrices; they are attention.query, attention.key"
    ):
        add_adapter(*base(DENSE), adapter, jax.random.key(0))
    with pytest.raises(ValueError, match="adapter.kind='dora' does not work on experts.gate; use 'rslora' there"):
        add_adapter(*base(SPARSE), AdapterConfig("experts", 2, 2.0, "dora"), jax.random.key(0))
    twice = decoder(dataclasses.replace(DENSE, family="llama", adapter=adapter_of_mlp)), {}
    with pytest.raises(ValueError, match="lies over this network already; merge or remove it first"):
        add_adapter(*twice, adapter, jax.random.key(0))
    with pytest.raises(ValueError, match="adapter=.* has no place in a checkpoint; save what merge_adapter gives"):
        save_huggingface(*twice, tmp_path)
