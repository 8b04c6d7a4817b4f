"""Embeddings of a table that a mesh has split: values and gradients of a plain lookup, and who is sent what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl_llm.distributed import make_mesh, sharded
from jaxrl_llm.distributed.hlo import read_hlo
from jaxrl_llm.networks.lookup import looked_up

MESHES = [
    {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "expert": 2, "tensor": 2},
    {"fsdp": 2, "context": 2, "tensor": 2}, {"data": 2, "fsdp": 2, "context": 2},
]  # fmt: skip
ROWS, COLUMNS, VOCABULARY, WIDTH = 8, 6, 20, 16


def case():
    random = np.random.default_rng(0)
    table = random.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    # Beyond both ends too, and one token many times.
    tokens = random.integers(-3, VOCABULARY + 3, (ROWS, COLUMNS))
    tokens[:, 0] = 7
    return table, tokens, random.normal(size=(ROWS, COLUMNS, WIDTH)).astype(np.float32)


def by_loops(table, tokens, slope):
    found, gradient = np.zeros(slope.shape), np.zeros(table.shape)
    for place in np.ndindex(tokens.shape):
        token = min(max(tokens[place], 0), VOCABULARY - 1)
        found[place] = table[token]
        gradient[token] += slope[place]
    return found, gradient


def value_and_gradient(table, tokens, slope):
    found, pull = jax.vjp(lambda table: looked_up(table, tokens, jnp.float32), table)
    return found, pull(slope)[0]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_a_split_table_gives_the_rows_and_gradients_of_a_whole_one(sizes):
    table, tokens, slope = case()
    with sharded(make_mesh(**sizes)):
        found, gradient = jax.jit(value_and_gradient)(table, tokens, slope)
    for own, expected in zip((found, gradient), by_loops(table, tokens, slope), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-5)


def test_without_a_mesh_it_is_a_plain_lookup():
    for own, expected in zip(value_and_gradient(*case()), by_loops(*case()), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-5)


def test_nobody_is_sent_the_embeddings_of_all_tokens():
    mesh, (table, tokens, slope) = make_mesh(data=2, fsdp=4), case()
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    placed = [jax.device_put(table, NamedSharding(mesh, PartitionSpec(None, "fsdp")))]
    placed += [jax.device_put(values, rows) for values in (tokens, slope)]
    with sharded(mesh):
        text = jax.jit(value_and_gradient).lower(*placed).compile().as_text()
    for (kind, _), one in read_hlo(text, mesh).collectives.items():
        if kind == "all-gather":
            assert one.largest <= tokens.size  # of the tokens themselves
