"""Updates of a part of the parameters: what is frozen has no gradient and no moments, and no split matters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import tiny_policy
from oracles.tiny_policy import jit

from jaxrl_llm import methods
from jaxrl_llm.data.packing import pack
from jaxrl_llm.distributed import make_mesh, shard_params, shard_rows, sharded
from jaxrl_llm.networks import (
    ADAPTER,
    AdapterConfig,
    DecoderConfig,
    ExpertsConfig,
    QuantizationConfig,
    add_adapter,
    decoder,
    join_params,
    quantize,
    remove_adapter,
    split_params,
)
from jaxrl_llm.objectives import negative_log_likelihood, objective
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.training import TrainState, make_gradient, make_update

pytestmark = pytest.mark.slow

SIZES = {"vocab_size": 32, "hidden_size": 64, "intermediate_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
DENSE = DecoderConfig(**SIZES, tie_embeddings=True)
SPARSE = DecoderConfig(**SIZES, experts=ExpertsConfig(count=4, per_token=2, width=64))
LIKELIHOOD = objective(negative_log_likelihood())


@pytest.fixture(scope="module")
def batch():
    method = methods.get("grpo")
    rollouts = tiny_policy.random_rollouts(tiny_policy.init())
    return pack(tiny_policy.estimated(method, rollouts), 12, rows=8)


@functools.cache
def adapted(config, kind, quantization=None):
    """A network and its parameters in two parts, the adapter's far from new."""
    random = np.random.default_rng(0)
    network = decoder(config)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.2 * random.normal(size=leaf.shape), leaf.dtype), shapes)
    if quantization:
        network, params = quantize(network, params, quantization)
    pattern = "attention|mlp|experts|head|embedding"
    network, params = add_adapter(network, params, AdapterConfig(pattern, 2, 4.0, kind), jax.random.key(0))
    trained, frozen = split_params(params, ADAPTER)
    return network, jax.tree.map(lambda leaf: leaf + 0.2 * random.normal(size=leaf.shape), trained), frozen


@functools.cache
def loss_and_gradient(network, micro_batches=1):
    method = methods.get("grpo").objective
    gradient = make_gradient(make_scorer(network, method.needs), method, micro_batches)

    def compute(trained, batch, frozen):
        scores, gradients = gradient(trained, batch, frozen)
        return method(scores, batch)[0], gradients

    return jit(compute)


def assert_close(found, expected):
    largest = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(expected[1]))
    assert largest > 1e-3
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-5, atol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-6 * largest), found[1], expected[1])


@pytest.mark.slow
@pytest.mark.parametrize(("config", "kind", "quantization"), [(DENSE, "dora", "nf4"), (SPARSE, "rslora", "int8")])
def test_splits_of_an_adapted_quantised_network_do_not_matter(config, kind, quantization, batch):
    """Micro-batches and a mesh of 2 x 4 at once."""
    network, trained, frozen = adapted(config, kind, quantization)
    expected = loss_and_gradient(network)(trained, batch, frozen)
    mesh = make_mesh(1, 2, 4)
    with sharded(mesh):
        params = shard_params(join_params(trained, frozen), network, mesh)
        inputs = split_params(params, ADAPTER)
        assert_close(loss_and_gradient(network, 2)(inputs[0], shard_rows(batch, mesh), inputs[1]), expected)


def test_the_gradient_is_that_part_of_the_whole_one(batch):
    network, trained, frozen = adapted(DENSE, "lora")
    _, whole = loss_and_gradient(network)(join_params(trained, frozen), batch, None)
    loss, found = loss_and_gradient(network)(trained, batch, frozen)
    assert_close((loss, found), (loss, split_params(whole, ADAPTER)[0]))


@pytest.mark.parametrize("trains", ["mix", r"^(?!embedding)", lambda path: path in ("head", "value")])
def test_any_part_of_any_dict_may_train(trains, batch):
    """Not only adapters, and not only our networks."""
    params, optimizer = tiny_policy.init(), optax.adam(1e-2)
    trained, frozen = split_params(params, trains)
    update = jit(make_update(tiny_policy.apply, LIKELIHOOD, optimizer, micro_batches=2))
    state, metrics = update(TrainState.create(trained, optimizer), batch, frozen)
    assert int(state.skipped) == 0 and set(state.params) | set(frozen) == set(params) and not set(state.params) & set(frozen)
    assert jax.tree.structure(state.opt_state[0].mu) == jax.tree.structure(trained)
    _, whole = make_gradient(make_scorer(tiny_policy.apply), LIKELIHOOD)(params, batch)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm({name: whole[name] for name in trained}), rtol=1e-4)


def test_training_an_adapter_leaves_the_base_and_the_reference_alone(batch):
    network, trained, frozen = adapted(DENSE, "dora", "nf4")
    before = jax.tree.map(np.array, frozen)
    reference, its_params = remove_adapter(network, join_params(trained, frozen))
    score = jit(make_scorer(reference))
    expected = score(its_params, batch).logp
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    update = jax.jit(make_update(network, LIKELIHOOD, optimizer, micro_batches=2), donate_argnums=0)
    state, losses = TrainState.create(jax.tree.map(jnp.array, trained), optimizer), []
    for _ in range(8):
        state, metrics = update(state, batch, frozen)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0] and int(state.skipped) == 0
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
    again, its_params = remove_adapter(network, join_params(state.params, frozen))
    pointers = [[leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)] for tree in (its_params, frozen)]
    assert again == reference and pointers[0] == pointers[1]
    np.testing.assert_array_equal(score(its_params, batch).logp, expected)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_what_is_frozen_has_neither_gradient_nor_moments_nor_copy(micro_batches, quantization, batch):
    """Memory beside the arguments is well below the base, and so below one gradient of it."""
    config = DecoderConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=1024, num_layers=8, num_heads=4, num_kv_heads=4, remat="full"
    )
    plain = decoder(config)
    codes = quantization and QuantizationConfig(quantization)
    network = decoder(dataclasses.replace(config, adapter=AdapterConfig("attention|mlp", 2, 4.0), quantization=codes))
    trained, frozen = split_params(jax.eval_shape(network.init, jax.random.key(0)), ADAPTER)
    optimizer = optax.adam(1e-3)
    state = jax.eval_shape(lambda params: TrainState.create(params, optimizer), trained)
    assert jax.tree.structure(state.opt_state[0].nu) == jax.tree.structure(trained)
    update = jax.jit(make_update(network, LIKELIHOOD, optimizer, micro_batches=micro_batches), donate_argnums=0)
    memory = update.lower(state, batch, frozen).compile().memory_analysis()

    def size(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    base = size(jax.eval_shape(plain.init, jax.random.key(0)))
    assert memory.temp_size_in_bytes < 0.3 * base
    assert memory.output_size_in_bytes < 1.01 * size(state) + 4096 and size(state) < 0.05 * base
    assert quantization is None or size(frozen) < 0.4 * base


def test_codes_cannot_train():
    network, trained, frozen = adapted(DENSE, "dora", "nf4")
    with pytest.raises(ValueError, match=r"params.*\['codes'\] is uint8 and cannot train; freeze it"):
        TrainState.create(join_params(trained, frozen), optax.sgd(1.0))


def test_parts_are_disjoint_and_not_empty():
    params = {"a": {"b": jnp.ones(2), "c": jnp.zeros(1)}, "d": jnp.ones(())}
    trained, frozen = split_params(params, "b")
    assert trained == {"a": {"b": params["a"]["b"]}} and set(frozen["a"]) == {"c"} and "d" in frozen
    joined = join_params(trained, frozen)
    assert joined["a"]["b"] is params["a"]["b"] and jax.tree.structure(joined) == jax.tree.structure(params)
    with pytest.raises(ValueError, match="trains='e' is found in no path of the parameters; they are a.b, a.c, d"):
        split_params(params, "e")
    with pytest.raises(ValueError, match="'b' is both in the trained and in the frozen parameters"):
        join_params(trained, params)
    with pytest.raises(ValueError, match="'a' is both"):
        join_params({"a": jnp.ones(1)}, frozen)
