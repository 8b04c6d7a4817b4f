"""The head on meshes: each device its own part of vocabulary and tokens, with values and gradients of plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from oracles import statistics as oracle

from jaxrl_llm.distributed import make_mesh, sharded
from jaxrl_llm.head import token_statistics

NEEDS = frozenset({"entropy", "mean_logp"})
ROWS, LENGTH, WIDTH = 4, 6, 8
# Sizes of the mesh, and of a vocabulary: one that `tensor` divides, or one that stays whole. Four rows on eight devices are
# whole on some of them, while the width is split over all.
CASES = [((1, 1, 8), 24), ((2, 2, 2), 24), ((1, 4, 2), 23), ((4, 2, 1), 22), ((1, 8, 1), 24), ((1, 2, 2, 1, 2), 24)]


@pytest.mark.parametrize(("sizes", "vocabulary"), CASES)
def test_a_mesh_changes_neither_statistics_nor_gradients(sizes, vocabulary):
    random = np.random.default_rng(0)
    hidden, matrix = random.normal(size=(ROWS, LENGTH, WIDTH)), random.normal(size=(vocabulary, WIDTH))
    targets = random.integers(0, vocabulary, (ROWS, LENGTH)).astype(np.int32)
    values, by_hidden, by_matrix = oracle.token_statistics(hidden.reshape(-1, WIDTH), matrix, targets.ravel())
    cotangents = {name: random.normal(size=(ROWS, LENGTH)) for name in values}

    def run(hidden, matrix):
        found = token_statistics(hidden, matrix, targets, needs=NEEDS, token_chunk=6, vocabulary_chunk=5)
        return sum(jnp.sum(cotangents[name] * found[name]) for name in values), found

    mesh = make_mesh(*sizes)
    with sharded(mesh):
        whole = NamedSharding(mesh, PartitionSpec())
        inputs = jax.device_put((jnp.float32(hidden), jnp.float32(matrix)), whole)
        (_, found), gradients = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))(*inputs)
    for name, expected in values.items():
        np.testing.assert_allclose(np.ravel(found[name]), expected, rtol=1e-5, atol=2e-6, err_msg=name)
    expected_hidden = sum(cotangents[name].reshape(-1, 1) * by_hidden[name] for name in values)
    expected_matrix = sum(np.tensordot(cotangents[name].ravel(), by_matrix[name], 1) for name in values)
    np.testing.assert_allclose(np.reshape(gradients[0], (-1, WIDTH)), expected_hidden, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients[1], expected_matrix, rtol=1e-4, atol=1e-5)
