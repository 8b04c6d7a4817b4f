"""Meshes of eight virtual devices: shards lie where they should, and no result depends on the mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from test_forest_scores import forked

from jaxrl_llm import methods
from jaxrl_llm.data import pack, pack_forest
from jaxrl_llm.distributed import AXES, batch_sharding, make_mesh, parameter_shardings, shard_params, shard_rows, sharded
from jaxrl_llm.networks import DecoderConfig, DeltaConfig, ExpertsConfig, LatentConfig, decoder, from_apply
from jaxrl_llm.sampling import generate
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.training import TrainState, make_update
from jaxrl_llm.training.update import make_gradient
from jaxrl_llm.types import Batch

pytestmark = pytest.mark.slow

CONFIG = DecoderConfig(
    vocab_size=48, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, qk_norm="head"
)
NETWORK = decoder(CONFIG)
# The first layer is dense; the second has experts, and one that all tokens share.
SPARSE = decoder(dataclasses.replace(
    CONFIG, experts=ExpertsConfig(count=8, per_token=2, width=12, shared_width=8, dense_layers=1, normalize=True)
))  # fmt: skip
# Layers with a state, whose attention has gates; latents; layers that use the keys and values of others, sinks, and embeddings
# of layers.
STATES = decoder(dataclasses.replace(
    CONFIG, delta=DeltaConfig(key_heads=2, value_heads=4, key_dim=4, value_dim=6), layer_types=("delta", "full"),
    attention_gate=True,
))  # fmt: skip
LATENTS = decoder(dataclasses.replace(
    CONFIG, qk_norm="none", latent=LatentConfig(rank=8, query_rank=6, plain_dim=4, rotary_dim=2, value_dim=6)
))  # fmt: skip
LENT = decoder(dataclasses.replace(
    CONFIG, num_layers=4, layer_types=("sliding", "full") * 2, sliding_window=4, reusing_layers=2, full_head_dim=8, sinks=True,
    per_layer_width=4, per_layer_vocab=48,
))  # fmt: skip
NETWORKS = {"dense": NETWORK, "experts": SPARSE, "states": STATES, "latents": LATENTS, "lent": LENT}
MESHES = [
    {"data": 8},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"fsdp": 4, "tensor": 2},
    {"fsdp": 2, "tensor": 4},  # More tensor shards than key heads.
    {"expert": 8},
    {"expert": 4, "tensor": 2},
    {"fsdp": 2, "expert": 4},
    {"data": 2, "expert": 4},
    {"fsdp": 2, "tensor": 2, "expert": 2},
    {"data": 2, "fsdp": 2, "expert": 2},
    {"context": 4, "tensor": 2},
    {"fsdp": 2, "expert": 2, "context": 2},
    {"data": 2, "context": 2, "tensor": 2},
]
OBJECTIVE = methods.get("grpo").objective


@functools.cache
def params_of(name):
    # Larger than fresh ones, so that ratios are clipped and every parameter matters.
    return jax.tree.map(lambda leaf: 2 * leaf, NETWORKS[name].init(jax.random.key(0)))


@pytest.fixture(scope="module")
def params():
    return params_of("dense")


def packed_batch(rows=8, length=12):
    """Rows of two sequences and padding, with advantages and old log-probabilities."""
    random = np.random.default_rng(0)
    draw = functools.partial(random.normal, size=(rows, length))
    column = np.arange(length)
    segment = np.where(column < random.integers(2, 6, (rows, 1)), 1, 2) * (column < random.integers(7, 13, (rows, 1)))
    first = np.diff(segment, axis=1, prepend=0) != 0
    positions = column - np.maximum.accumulate(np.where(first, column, 0), axis=1)
    return Batch(
        tokens=random.integers(0, CONFIG.vocab_size, (rows, length)).astype(np.int32),
        mask=((segment > 0) & ~first).astype(np.float32),
        segment=segment.astype(np.int32),
        positions=positions.astype(np.int32),
        advantage=draw().astype(np.float32),
        behavior_logp=(draw() - 5).astype(np.float32),
        reference_logp=(draw() - 5).astype(np.float32),
        coefficients={"anything": np.float32(0.5)},
    )


@functools.cache
def loss_and_gradient(micro_batches=1):
    gradient = make_gradient(make_scorer(NETWORK), OBJECTIVE, micro_batches)

    def compute(params, batch):
        scores, gradients = gradient(params, batch)
        return OBJECTIVE(scores, batch)[0], gradients

    return jax.jit(compute)


@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 4}, {"data": 2, "context": 4}])
def test_a_forest_in_micro_batches_does_not_depend_on_the_mesh(params, sizes):
    """Rows of three blocks, two in each of four micro-batches, of which the last are empty; four devices may cut the blocks."""
    # As small as fresh ones: half a last bit of the larger ones moves these gradients by more than the bound.
    params = jax.tree.map(lambda leaf: leaf / 2, params)
    rollouts = forked(groups=8)
    random = np.random.default_rng(0)
    more = {name: rollouts.mask * random.normal(size=rollouts.mask.shape) for name in ("advantage", "reference", "behavior")}
    more = {name: value.astype(np.float32) for name, value in more.items()}
    rollouts = rollouts.replace(
        tokens=rollouts.tokens % CONFIG.vocab_size, weight=rollouts.mask / rollouts.mask.sum(), advantage=more["advantage"],
        behavior_logp=rollouts.mask * -4 + more["behavior"], extras={"reference_logp": rollouts.mask * -4 + more["reference"]},
    )  # fmt: skip
    batch = pack_forest(rollouts, 192, multiple=2, part_tokens=384, columns=4)
    assert len(batch.parts) == 4 and batch.parts.tolist() == sorted(batch.parts.tolist(), reverse=True) and batch.parts[-1] == 0
    loss, gradients = loss_and_gradient(0)(params, batch)
    mesh = make_mesh(**sizes)
    with sharded(mesh):
        inputs = shard_params(params, NETWORK, mesh), shard_rows(batch, mesh)
        found_loss, found = loss_and_gradient(0)(*inputs)
    alone = loss_and_gradient(1)(params, pack(rollouts, rollouts.tokens.shape[1]))
    for other_loss, other in ((found_loss, found), alone):
        np.testing.assert_allclose(other_loss, loss, rtol=1e-5, atol=1e-6)
        largest = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
        jax.tree.map(lambda a, b, c=largest: np.testing.assert_allclose(a, b, rtol=1e-4, atol=5e-6 * c), other, gradients)


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "context": 4}, {"context": 2, "expert": 2, "tensor": 2}])
def test_scores_of_forests_with_windows_and_values_do_not_depend_on_columns(sizes):
    """Prompts, halves of answers and answers, in rows that are filled up to a multiple of eight columns."""
    network = decoder(dataclasses.replace(
        CONFIG, value_head=1, attention_softcap=2.0, sliding_window=7, layer_types=("sliding", "full"),
        experts=dataclasses.replace(SPARSE.config.experts, shared_width=0),
    ))  # fmt: skip
    start = jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), network.init(jax.random.key(0))
    )
    batch = pack_forest(forked(groups=8), 190, multiple=4, columns=8)
    assert batch.forest.tokens.shape[1] == 192 and batch.tokens.shape[1] % 8 == 0
    needs, mesh = ("entropy", "value", "router_logits"), make_mesh(**sizes)
    scorer = jax.jit(make_scorer(network, needs))
    expected = scorer(start, batch)
    with sharded(mesh):
        found = scorer(shard_params(start, network, mesh), shard_rows(batch, mesh))
    for name in ("logp", *needs):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=2e-5, err_msg=name)


def descent(rate=0.5):
    """Gradient descent whose state is the last gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda gradients, *_: (optax.tree.scale(-rate, gradients), gradients),
    )


@functools.cache
def one_step(name, micro_batches=1):
    return jax.jit(make_update(NETWORKS[name], OBJECTIVE, descent(), micro_batches=micro_batches))


@functools.cache
def step_alone(name):
    """Loss, gradient and parameters of one step on one device."""
    state, metrics = one_step(name)(TrainState.create(params_of(name), descent()), packed_batch())
    return metrics["loss"], state.opt_state, state.params


STEPS = [(name, sizes, 1) for name in ("dense", "experts") for sizes in MESHES]
STEPS += [(name, MESHES[number], 2) for name in ("dense", "experts") for number in (1, 8)]
STEPS += [(name, MESHES[number], 1) for name in ("states", "latents", "lent") for number in (1, 3)]


@pytest.mark.parametrize(("name", "sizes", "micro_batches"), STEPS)
def test_a_step_does_not_depend_on_the_mesh(name, sizes, micro_batches):
    mesh, (loss, gradients, stepped) = make_mesh(**sizes), step_alone(name)
    with sharded(mesh):
        state = TrainState.create(shard_params(params_of(name), NETWORKS[name], mesh), descent())
        found, metrics = one_step(name, micro_batches)(state, shard_rows(packed_batch(), mesh))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5, atol=1e-6)
    for tree, other in ((found.opt_state, gradients), (found.params, stepped)):
        largest = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(other))
        assert largest > 1e-2
        jax.tree.map(lambda a, b, c=largest: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * c), tree, other)


def test_parameters_optimizer_and_rows_are_really_split(params):
    mesh, optimizer = make_mesh(2, 2, 2), optax.adam(1e-3)
    split = shard_params(params, NETWORK, mesh)
    batch = shard_rows(packed_batch(), mesh)

    def shard(leaf):
        return leaf.addressable_shards[0].data.shape

    assert shard(split["embedding"]) == (24, 8)
    assert shard(split["layers"]["attention"]["query"]["kernel"]) == (2, 8, 2, 4)
    assert shard(split["layers"]["attention"]["output"]["kernel"]) == (2, 2, 4, 8)
    assert shard(split["layers"]["mlp"]["up"]["kernel"]) == (2, 8, 12)
    assert shard(batch.tokens) == (2, 12) and shard(batch.coefficients["anything"]) == ()
    assert batch.tokens.sharding.is_equivalent_to(batch_sharding(mesh), 2)
    with sharded(mesh):
        state = TrainState.create(split, optimizer)
        updated, metrics = jax.jit(make_update(NETWORK, OBJECTIVE, optimizer))(state, batch)
    assert metrics["skipped"] == 0
    for tree in (state.opt_state[0].mu, updated.params, updated.opt_state[0].mu):
        assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), tree, split))


@pytest.mark.parametrize(
    ("name", "sizes"), [*(("dense", MESHES[n]) for n in (0, 1, 3)), ("experts", MESHES[8]), ("states", MESHES[3])]
)
def test_samples_do_not_depend_on_the_mesh(name, sizes):
    """Three prompts, which no mesh divides, and 24 rows."""
    network, params = NETWORKS[name], params_of(name)
    options = {"max_new_tokens": 6, "num_samples": 8, "seed": 3}
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    expected = generate(network, params, prompts, **options)
    mesh = make_mesh(**sizes)
    with sharded(mesh):
        found = generate(network, shard_params(params, network, mesh), prompts, **options)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logp, expected.logp, atol=1e-5)


def test_what_a_mesh_axis_does_not_divide_is_copied():
    mesh = make_mesh(1, 2, 4)
    attention = parameter_shardings(NETWORK, mesh)["layers"]["attention"]
    assert attention["query"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert attention["key"]["kernel"].spec == PartitionSpec(None, "fsdp", None, None)


def test_rules_may_be_replaced():
    shardings = parameter_shardings(NETWORK, make_mesh(1, 8, 1), rules=[("mlp", "fsdp")])
    assert shardings["layers"]["mlp"]["up"]["kernel"].spec == PartitionSpec(None, None, "fsdp")
    assert shardings["embedding"].is_fully_replicated


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 3), (-2, -2, 2)])
def test_a_mesh_takes_all_devices(sizes):
    with pytest.raises(ValueError, match=r"there are 8; choose positive sizes whose product is 8"):
        make_mesh(*sizes)


def test_a_mesh_of_given_devices():
    mesh = make_mesh(tensor=2, devices=jax.devices()[:2])
    assert mesh.axis_names == AXES and dict(mesh.shape) == {"data": 1, "fsdp": 1, "expert": 1, "context": 1, "tensor": 2}


def test_rows_must_divide():
    with pytest.raises(ValueError, match=r"batch.tokens has 6 rows, which data=2 times fsdp=2 times expert=1 do not .* of 4"):
        shard_rows(packed_batch(rows=6), make_mesh(2, 2, 2))


def test_parameters_of_unknown_networks_have_no_shardings():
    with pytest.raises(ValueError, match="has no logical axes"):
        parameter_shardings(from_apply(lambda params, tokens: tokens), make_mesh(8))
