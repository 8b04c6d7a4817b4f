import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.networks import attention


def heads(length=9, width=8, rows=2, dtype=jnp.float32):
    """Queries of 4 heads, keys and values of 2."""
    generator = np.random.default_rng(0)
    return [jnp.asarray(generator.normal(size=(rows, length, count, width)), dtype) for count in (4, 2, 2)]


def ragged_segments(length, rows=2):
    """Rows of sequences of different lengths, and padding at the end."""
    drawn = np.random.default_rng(1).integers(1, 5, (rows, length)) % 4
    return jnp.asarray(np.where(np.sort(drawn) == 0, 4, np.sort(drawn))[:, ::-1] % 4)


def squared(function):
    return lambda *inputs: (function(*inputs).astype(jnp.float32) ** 2).sum()


@pytest.fixture
def interpreted(monkeypatch):
    """Runs the kernel for TPU in the interpreter of Pallas."""
    interpreted = functools.partial(attention.splash.make_splash_mha, interpret=True)
    monkeypatch.setattr(attention.splash, "make_splash_mha", interpreted)


def test_reference_is_the_formula_by_plain_loops():
    query, key, value = heads(length=5)
    segments = np.asarray([[1, 1, 2, 2, 0], [3, 3, 3, 0, 0]])
    found = attention.reference_attention(query, key, value, attention.packed_mask(jnp.asarray(segments)))
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    for b, t, n in np.ndindex(2, 5, 4):
        seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
        logits = np.asarray([q[b, t, n] @ k[b, s, n // 2] / math.sqrt(8) for s in seen])
        chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        expected = sum(chance * v[b, s, n // 2] for chance, s in zip(chances, seen, strict=True))
        np.testing.assert_allclose(found[b, t, n], expected, atol=1e-5)


def test_xla_agrees_with_reference_in_values_and_gradients():
    inputs, mask = heads(), attention.packed_mask(ragged_segments(9))
    functions = [lambda *x, f=f: f(*x, mask) for f in (attention.reference_attention, attention.xla_attention)]
    np.testing.assert_allclose(functions[0](*inputs), functions[1](*inputs), atol=1e-5)
    gradients = [jax.jit(jax.grad(squared(f), (0, 1, 2)))(*inputs) for f in functions]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *gradients)


@pytest.mark.parametrize("name", ["reference_attention", "xla_attention"])
def test_a_query_that_sees_nothing_is_finite_in_value_and_gradient(name):
    function = functools.partial(getattr(attention, name), mask=jnp.zeros((2, 9, 9), bool))
    value, gradients = jax.value_and_grad(squared(function), (0, 1, 2))(*heads())
    assert jnp.isfinite(value) and all(jnp.isfinite(g).all() for g in gradients)


def test_options_of_the_reference_are_the_formula_by_plain_loops():
    query, key, value = heads(length=6)
    mask = attention.packed_mask(jnp.asarray([[1] * 6, [1, 1, 1, 1, 2, 2]]), window=3)
    found = attention.reference_attention(query, key, value, mask, scale=0.7, softcap=1.5)
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    for b, t, n in np.ndindex(2, 6, 4):
        seen = [s for s in range(max(t - 2, 0), t + 1) if b == 0 or (s > 3) == (t > 3)]
        logits = np.asarray([1.5 * math.tanh(0.7 * (q[b, t, n] @ k[b, s, n // 2]) / 1.5) for s in seen])
        chances = np.exp(logits) / np.exp(logits).sum()
        expected = sum(chance * v[b, s, n // 2] for chance, s in zip(chances, seen, strict=True))
        np.testing.assert_allclose(found[b, t, n], expected, atol=1e-5)


@pytest.mark.parametrize("options", [{"scale": 0.7}, {"softcap": 1.5}, {"scale": 0.7, "softcap": 1.5}])
@pytest.mark.parametrize("length", [9, 2 * attention.QUERY_BLOCK + 5])
def test_options_mean_the_same_everywhere(options, length):
    inputs, mask = heads(length), attention.packed_mask(ragged_segments(length), window=7)
    functions = (
        lambda q, k, v: attention.reference_attention(q, k, v, mask, **options),
        lambda q, k, v: attention.xla_attention(q, k, v, mask, **options),
    )
    expected, found = (jax.jit(jax.value_and_grad(squared(f), (0, 1, 2)))(*inputs) for f in functions)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("options", [{}, {"window": 37, "scale": 0.2}, {"softcap": 1.5}])
def test_splash_agrees_with_reference_in_values_and_gradients(interpreted, options):
    length = 136  # is padded to 256
    inputs, segments = heads(length, width=64), ragged_segments(length)
    mask = attention.packed_mask(segments, options.get("window"))
    plain = {name: value for name, value in options.items() if name != "window"}
    functions = (
        lambda *x: attention.reference_attention(*x, mask, **plain),
        lambda *x: attention.splash_attention(*x, segments, **options),
    )
    expected, found = (jax.jit(f)(*inputs) for f in functions)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    expected, found = (jax.jit(jax.grad(squared(f), (0, 1, 2)))(*inputs) for f in functions)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


@pytest.mark.parametrize("kv_heads", ["tensor", None])
def test_splash_is_split_over_rows_and_heads_of_a_mesh(interpreted, kv_heads):
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:4])
    inputs, segments = heads(128, width=64), ragged_segments(128)
    expected = attention.reference_attention(*inputs, attention.packed_mask(segments))
    rules = (("batch", "data"), ("heads", "tensor"), ("kv_heads", kv_heads))
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        found = jax.jit(attention.splash_attention)(*inputs, segments)
    assert found.sharding.spec == jax.sharding.PartitionSpec("data", None, "tensor")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_auto_uses_splash_on_tpu_only(monkeypatch):
    assert not attention.uses_splash("auto")
    assert attention.uses_splash("splash")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert attention.uses_splash("auto")
    assert not attention.uses_splash("xla")


def test_long_rows_in_blocks_equal_the_reference():
    length = 2 * attention.QUERY_BLOCK + 37
    keys = jax.random.split(jax.random.key(5), 3)
    shapes = ((2, length, 4, 8), (2, length, 2, 8), (2, length, 2, 8))
    query, key, value = (jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True))
    mask = attention.packed_mask(jnp.repeat(jnp.array([[1, 2, 0], [1, 1, 1]]), length // 3 + 1, axis=1)[:, :length])

    def loss(function):
        return lambda *inputs: jnp.sum(jnp.sin(function(*inputs, mask)))

    with_blocks = jax.value_and_grad(loss(attention.xla_attention), argnums=(0, 1, 2))(query, key, value)
    whole = jax.value_and_grad(loss(attention.reference_attention), argnums=(0, 1, 2))(query, key, value)
    for mine, theirs in zip(jax.tree.leaves(with_blocks), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
