"""What decoding keeps: codes stand for the numbers that they were made from, and attention reads what they stand for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_llm.networks.past import Cells, LayerPast, Sight, cells_of, past_attention, written


def numbers(cells: Cells):
    """Keys and values that the cells stand for, float64."""
    if cells.values is None:
        keys = np.asarray(cells.keys, np.float64) * (1 if cells.key_scale is None else np.asarray(cells.key_scale)[:, :, None])
        return keys, keys[:, :, :3].swapaxes(2, 3)
    keys, values = (np.asarray(part, np.float64) for part in (cells.keys, cells.values))
    if cells.key_scale is None:
        return keys, values
    return keys * np.asarray(cells.key_scale)[:, :, None], values * np.asarray(cells.value_scale)[..., None]


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([0.0, 1e-30, 1.0, 1e4]))
@settings(max_examples=20, deadline=None)
def test_codes_are_the_nearest_ones_whatever_the_size(seed, size):
    random = np.random.default_rng(seed)
    keys, values = random.normal(size=(2, 3, 4, 5)) * size, random.normal(size=(2, 3, 5, 4)) * size
    cells = cells_of(jnp.asarray(keys, jnp.float32), jnp.asarray(values, jnp.float32), "int8")
    assert cells.keys.dtype == cells.values.dtype == jnp.int8
    for found, given_numbers, axis in zip(numbers(cells), (keys, values), (2, 3), strict=True):
        step = np.abs(given_numbers).max(axis=axis, keepdims=True) / 127
        assert (np.abs(found - given_numbers) <= 0.5001 * step + 1e-37).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("latent", [0, 3])
def test_attention_reads_what_the_cells_stand_for(dtype, latent):
    """With sinks; with a latent, values are the first coordinates of the keys, which alone are kept."""
    random = np.random.default_rng(0)
    heads, groups, width, context, columns, slots = 2, 3, 4, 5, 6, 2

    def drawn(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    def value(*shape):
        return None if latent else drawn(*shape)

    past = LayerPast(
        contexts=cells_of(drawn(1, heads, width, context), value(1, heads, context, width), dtype),
        tails=cells_of(drawn(slots, heads, width, columns), value(slots, heads, columns, width), dtype),
    )
    sinks = drawn(heads * groups)
    column, start, lengths = 3, np.array([1, 3]), np.array([4])
    past = written(past, drawn(slots, heads, width), value(slots, heads, width), jnp.int32(column))
    query = drawn(slots, heads * groups, width)
    position = lengths[0] + column - start
    sight = Sight(position, np.array([1, 0]), lengths, start, jnp.int32(column), np.full(slots, lengths[0]), 2)
    found = jax.jit(functools.partial(past_attention, latent=latent))(query, past, sight, sinks=sinks)
    own, shared = numbers(past.tails), numbers(past.contexts)
    for slot in range(slots):
        for head in range(heads * groups):
            group, seen = head // groups, slice(start[slot], column + 1)
            keys = np.concatenate([shared[0][0, group, :, : lengths[0]], own[0][slot, group, :, seen]], axis=1)
            values = np.concatenate([shared[1][0, group, : lengths[0]], own[1][slot, group, seen]])
            weights = np.exp(np.asarray(query[slot, head], np.float64) @ keys / np.sqrt(width))
            total = weights.sum() + np.exp(np.float64(sinks[head]))
            np.testing.assert_allclose(found[slot, head], weights @ values / total, atol=2e-6)


def test_what_is_written_stands_in_its_column_alone():
    empty = cells_of(jnp.zeros((2, 1, 4, 3)), jnp.zeros((2, 1, 3, 4)), "int8")
    key, value = jnp.arange(8.0).reshape(2, 1, 4), -jnp.arange(8.0).reshape(2, 1, 4)
    keys, values = numbers(written(LayerPast(empty, empty), key, value, jnp.int32(1)).tails)
    np.testing.assert_allclose(keys[..., 1], key, atol=0.03)
    np.testing.assert_allclose(values[:, :, 1], value, atol=0.03)
    assert not keys[..., [0, 2]].any() and not values[:, :, [0, 2]].any()
