"""Parameters in the layout of sampling: what they say, where they lie, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from test_sharding import CONFIG, NETWORK, OBJECTIVE, SPARSE, packed_batch

from jaxrl_llm.distributed import for_sampling, init_params, make_mesh, sampling_mesh, shard_params, sharded
from jaxrl_llm.networks import AdapterConfig, add_adapter, decoder
from jaxrl_llm.sampling import generate
from jaxrl_llm.sampling.decode import decode
from jaxrl_llm.sampling.records import make_sampling, row_keys
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.training.update import make_gradient

HALF = decoder(dataclasses.replace(CONFIG, dtype="bfloat16"))
OPTIONS = {"max_new_tokens": 6, "seed": 3}
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]


def test_matrices_are_rounded_as_the_network_rounds_them():
    params = HALF.init(jax.random.key(0))
    copy = for_sampling(HALF, params)
    assert copy["embedding"].dtype == copy["layers"]["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
    assert copy["final_norm"]["scale"].dtype == jnp.float32
    tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
    np.testing.assert_array_equal(jax.jit(HALF.apply)(copy, tokens), jax.jit(HALF.apply)(params, tokens))


def test_nothing_is_copied_where_nothing_would_change():
    params = NETWORK.init(jax.random.key(0))
    assert for_sampling(NETWORK, params) is params
    adapted, both = add_adapter(HALF, HALF.init(jax.random.key(0)), AdapterConfig("mlp", rank=2, alpha=4), jax.random.key(1))
    assert for_sampling(adapted, both) is both


@pytest.mark.parametrize("tensor", [0, 1, 4, 8])
def test_samples_do_not_depend_on_their_layout(tensor):
    """Three rows on one to eight devices; each has as many slots as the others."""
    mesh = make_mesh(2, 2, 2)
    params = init_params(NETWORK, jax.random.key(0), mesh)
    expected = generate(NETWORK, NETWORK.init(jax.random.key(0)), PROMPTS, **OPTIONS)
    sampling = sampling_mesh(mesh.devices, tensor or mesh.shape["tensor"])
    assert dict(sampling.shape) == {"data": 8 // (tensor or 2), "expert": 1, "tensor": tensor or 2}
    copy = for_sampling(NETWORK, params, sampling)
    kernel = copy["layers"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 16, 24 // (tensor or 2))
    with sharded(sampling):
        found = generate(NETWORK, copy, PROMPTS, **OPTIONS)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logp, expected.logp, atol=1e-5)


def test_parameters_are_born_on_the_mesh():
    mesh = make_mesh(1, 4, 2)
    born = init_params(NETWORK, jax.random.key(0), mesh)
    placed = shard_params(NETWORK.init(jax.random.key(0)), NETWORK, mesh)
    jax.tree.map(np.testing.assert_array_equal, born, placed)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), born, placed))
    assert born["layers"]["mlp"]["up"]["kernel"].sharding.spec == PartitionSpec(None, "fsdp", "tensor")


def test_rows_that_devices_would_copy_are_refused():
    mesh = make_mesh(2, 2, 2)
    params, batch = init_params(NETWORK, jax.random.key(0), mesh), packed_batch(rows=12)
    prompts = np.ones((6, 2), np.int32), np.full(6, 2, np.int32), row_keys(0, 0, np.arange(6))
    with (
        sharded(make_mesh(data=2, context=4)),
        pytest.raises(ValueError, match="a row of the update: 11 columns do not go .* 4"),
    ):
        make_gradient(make_scorer(NETWORK), OBJECTIVE, 1)(params, packed_batch(length=11))
    with sharded(mesh):
        with pytest.raises(ValueError, match=r"micro-batch of the update: 6 rows do not go evenly over 4 devices; .* of 4"):
            make_gradient(make_scorer(NETWORK), OBJECTIVE, 2)(params, batch)
        with pytest.raises(ValueError, match="samples of decode: 6 rows do not go evenly over 4 devices"):
            decode(NETWORK, params, *prompts, make_sampling(6, 48, max_new_tokens=2), max_new_tokens=2)


@pytest.mark.parametrize(("tensor", "shape"), [(0, (2, 2, 2)), (1, (4, 2, 1)), (8, (1, 1, 8))])
def test_experts_stay_shared_out_where_devices_sample(tensor, shape):
    mesh = make_mesh(fsdp=2, tensor=2, expert=2)
    params = init_params(SPARSE, jax.random.key(0), mesh)
    kernel = params["sparse_layers"]["experts"]["gate"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 4, 8, 6)
    sampling = sampling_mesh(mesh.devices, tensor or 2, expert=2)
    assert sampling.devices.shape == shape and (sampling.devices.ravel() == mesh.devices.ravel()).all()
    copy = for_sampling(SPARSE, params, sampling)
    kernel = copy["sparse_layers"]["experts"]["gate"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 8 // shape[1], 16, 12 // shape[2] if 12 % shape[2] == 0 else 12)
    assert copy["sparse_layers"]["experts"]["router"].is_fully_replicated
    if tensor:
        return
    expected = generate(SPARSE, SPARSE.init(jax.random.key(0)), PROMPTS, **OPTIONS)
    with sharded(sampling):
        found = generate(SPARSE, copy, PROMPTS, **OPTIONS)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logp, expected.logp, atol=1e-5)


def test_devices_that_share_a_copy_must_divide_the_mesh():
    with pytest.raises(ValueError, match="3 devices that share out a copy do not divide the 8 of the mesh"):
        sampling_mesh(make_mesh(8).devices, 3)
