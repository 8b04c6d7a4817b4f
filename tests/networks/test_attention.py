import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_llm.networks import DecoderConfig, attention
from jaxrl_llm.networks.blocks import CPU_BLOCK, blocked_attention, visible_blocks
from jaxrl_llm.networks.kernels import LANES, kernel_attention, kernel_blocks


def heads(length=9, width=8, rows=2, dtype=jnp.float32):
    """Queries of 4 heads, keys and values of 2."""
    generator = np.random.default_rng(0)
    return [jnp.asarray(generator.normal(size=(rows, length, count, width)), dtype) for count in (4, 2, 2)]


def ragged_segments(length, rows=2):
    """Rows of sequences of different lengths, and padding at the end."""
    drawn = np.random.default_rng(1).integers(1, 5, (rows, length)) % 4
    return jnp.asarray(np.where(np.sort(drawn) == 0, 4, np.sort(drawn))[:, ::-1] % 4)


def mask_of(segments, window=None):
    """Causal mask of rows of sequences, by plain NumPy; padding is a sequence like the others."""
    segments, index = np.asarray(segments), np.arange(np.shape(segments)[1])
    distance = index[:, None] - index
    seen = (distance >= 0) & (distance < (window or len(index))) & (segments[:, :, None] == segments[:, None, :])
    return jnp.asarray(seen)


def trees(length, rows=2, seed=0):
    """Reach and positions of rows of random trees of tokens, with padding at the end."""
    random = np.random.default_rng(seed)
    reach, positions = np.zeros((2, rows, length), np.int32)
    for row in range(rows):
        path = []
        for column in range(length - row * 3):
            # Mostly a token goes on from the last one; else from one of those on the path to it, or a new tree begins.
            if path and random.random() < 0.05:
                path = path[: random.integers(0, len(path) + 1)]
            positions[row, column] = len(path)
            path = [*path, column]
            reach[row, path] = column + 1
    return jnp.asarray(reach), jnp.asarray(positions)


def squared(function):
    return lambda *inputs: (function(*inputs).astype(jnp.float32) ** 2).sum()


def test_reference_is_the_formula_by_plain_loops():
    query, key, value = heads(length=5)
    segments = np.asarray([[1, 1, 2, 2, 0], [3, 3, 3, 0, 0]])
    found = attention.reference_attention(query, key, value, mask_of(segments))
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    for b, t, n in np.ndindex(2, 5, 4):
        seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
        logits = np.asarray([q[b, t, n] @ k[b, s, n // 2] / math.sqrt(8) for s in seen])
        chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        expected = sum(chance * v[b, s, n // 2] for chance, s in zip(chances, seen, strict=True))
        np.testing.assert_allclose(found[b, t, n], expected, atol=1e-5)


def test_dense_agrees_with_reference_in_values_and_gradients():
    inputs, mask = heads(), mask_of(ragged_segments(9))
    functions = [lambda *x, f=f: f(*x, mask) for f in (attention.reference_attention, attention.dense_attention)]
    np.testing.assert_allclose(functions[0](*inputs), functions[1](*inputs), atol=1e-5)
    gradients = [jax.jit(jax.grad(squared(f), (0, 1, 2)))(*inputs) for f in functions]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *gradients)


@pytest.mark.parametrize("name", ["reference_attention", "dense_attention"])
def test_a_query_that_sees_nothing_is_finite_in_value_and_gradient(name):
    function = functools.partial(getattr(attention, name), mask=jnp.zeros((2, 9, 9), bool))
    value, gradients = jax.value_and_grad(squared(function), (0, 1, 2))(*heads())
    assert jnp.isfinite(value) and all(jnp.isfinite(g).all() for g in gradients)


def test_options_of_the_reference_are_the_formula_by_plain_loops():
    query, key, value = heads(length=6)
    mask = mask_of([[1] * 6, [1, 1, 1, 1, 2, 2]], window=3)
    sinks = np.linspace(-1.0, 1.0, 4)
    found = attention.reference_attention(query, key, value, mask, scale=0.7, softcap=1.5, sinks=jnp.asarray(sinks))
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    for b, t, n in np.ndindex(2, 6, 4):
        seen = [s for s in range(max(t - 2, 0), t + 1) if b == 0 or (s > 3) == (t > 3)]
        logits = np.asarray([1.5 * math.tanh(0.7 * (q[b, t, n] @ k[b, s, n // 2]) / 1.5) for s in seen])
        chances = np.exp(logits) / (np.exp(logits).sum() + np.exp(sinks[n]))
        expected = sum(chance * v[b, s, n // 2] for chance, s in zip(chances, seen, strict=True))
        np.testing.assert_allclose(found[b, t, n], expected, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"scale": 0.7}, {"softcap": 1.5}, {"scale": 0.7, "softcap": 1.5, "window": 20}])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_blocks_and_dense_weights_agree_with_the_reference_on_trees(options, dtype):
    length = 2 * CPU_BLOCK + 27
    inputs, (reach, positions) = heads(length, dtype=dtype), trees(length)
    window = options.pop("window", attention.WITHOUT_WINDOW)
    mask, visible = attention.reach_mask(reach, positions, window), visible_blocks(reach, positions, window)
    real = (reach > 0)[..., None, None]
    functions = [
        lambda *x: attention.reference_attention(*x, mask, **options),
        lambda *x: attention.dense_attention(*x, mask, **options),
        lambda *x: blocked_attention(*x, reach, positions, visible, window, **options),
    ]
    functions = [lambda *x, f=f: jnp.where(real, f(*x), 0) for f in functions]
    expected, *others = [jax.jit(f)(*inputs) for f in functions]
    bound = 1e-5 if dtype == jnp.float32 else 0.03
    for found in others:
        np.testing.assert_allclose(np.float32(found), np.float32(expected), atol=bound)
    expected, *others = [jax.jit(jax.grad(squared(f), (0, 1, 2)))(*inputs) for f in functions]
    for found in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), atol=10 * bound), found, expected)


def test_a_token_sees_those_on_its_path():
    """By plain loops: the parent of a token is the last one before it whose reach it lies within."""
    reach, positions = trees(60, rows=1)
    mask, path = np.asarray(attention.reach_mask(reach, positions))[0], []
    for column in range(60):
        path = [*path[: int(positions[0, column])], column]
        assert np.flatnonzero(mask[column]).tolist() == path


def test_blocks_that_nothing_is_seen_of_are_passed_over():
    """Eight equal sequences a row touch an eighth of the causal pairs of blocks, in the kernel too."""
    segments = jnp.repeat(jnp.arange(1, 9), 512)[None]
    positions = jnp.tile(jnp.arange(512), 8)[None]
    of_queries, of_keys = kernel_blocks(attention.reach_of(segments), positions, attention.WITHOUT_WINDOW)
    assert of_queries.count.tolist() == [[1] * 8] and of_keys.count.tolist() == [[1] * 8]
    segments, positions = segments[:, :: 512 // (2 * CPU_BLOCK)], jnp.tile(jnp.arange(2 * CPU_BLOCK), 8)[None]
    count = visible_blocks(attention.reach_of(segments), positions, attention.WITHOUT_WINDOW).count
    assert int(count.sum()) == 8 * 3 and count.size == 16
    near = visible_blocks(attention.reach_of(jnp.ones_like(segments)), jnp.arange(16 * CPU_BLOCK)[None], CPU_BLOCK)
    assert near.count.tolist() == [[1] + [2] * 15]


def test_the_reach_of_a_token_in_a_row_of_sequences_is_the_end_of_its_own():
    segments = jnp.asarray([[1, 1, 2, 3, 3, 0, 0], [1] * 7])
    assert attention.reach_of(segments).tolist() == [[2, 2, 3, 5, 5, 0, 0], [7] * 7]
    seen = (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] > 0) & jnp.tri(7, dtype=bool)
    positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
    np.testing.assert_array_equal(attention.reach_mask(attention.reach_of(segments), positions), seen)


@pytest.mark.parametrize("options", [{}, {"scale": 0.2, "softcap": 1.5, "window": 37}])
@pytest.mark.parametrize(("length", "dtype"), [(200, jnp.float32), (384, jnp.bfloat16)])
def test_the_kernel_agrees_with_the_reference_on_trees(options, length, dtype):
    """In the interpreter of Pallas; 200 tokens are padded to 256, one block, and 384 are three."""
    inputs, (reach, positions) = heads(length, width=64, dtype=dtype), trees(length)
    plain = {name: value for name, value in options.items() if name != "window"}
    window = options.get("window", attention.WITHOUT_WINDOW)
    mask, blocks = attention.reach_mask(reach, positions, window), kernel_blocks(reach, positions, window)
    real = (reach > 0)[..., None, None]
    functions = [
        lambda *x: jnp.where(real, attention.reference_attention(*x, mask, **plain), 0),
        lambda *x: jnp.where(real, kernel_attention(*x, reach, positions, blocks, window, **plain, interpret=True), 0),
    ]
    bound = 1e-5 if dtype == jnp.float32 else 0.03
    expected, found = (jax.jit(f)(*inputs) for f in functions)
    np.testing.assert_allclose(np.float32(found), np.float32(expected), atol=bound)
    expected, found = (jax.jit(jax.grad(squared(f), (0, 1, 2)))(*inputs) for f in functions)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), atol=10 * bound), found, expected)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.sampled_from([1, 9, 300]), st.booleans())
def test_all_agree_on_random_trees(seed, window, capped):
    """One shape, so that each is compiled once: rows of two blocks, with windows of one token and wider than the row."""
    inputs, (reach, positions) = heads(2 * LANES, width=16), trees(2 * LANES, seed=seed)
    inputs = (*inputs, reach, positions, jnp.int32(window), jnp.linspace(-1.0, 1.0, inputs[0].shape[2]))
    expected, *others = (_all_of(capped)[name](*inputs) for name in range(3))
    for found in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


@functools.cache
def _all_of(capped: bool):
    """Values and gradients of the reference, of blocks and of the kernel; where logits are capped there are sinks too."""
    options = {"softcap": 2.0} if capped else {}

    def all_options(sinks):
        return options | ({"sinks": sinks} if capped else {})

    def reference(q, k, v, reach, positions, window, sinks):
        return attention.reference_attention(q, k, v, attention.reach_mask(reach, positions, window), **all_options(sinks))

    def blocked(q, k, v, reach, positions, window, sinks):
        visible = visible_blocks(reach, positions, window)
        return blocked_attention(q, k, v, reach, positions, visible, window, **all_options(sinks))

    def kernel(q, k, v, reach, positions, window, sinks):
        blocks = kernel_blocks(reach, positions, window)
        return kernel_attention(q, k, v, reach, positions, blocks, window, **all_options(sinks), interpret=True)

    def loss(function):
        return lambda *x: (jnp.where((x[3] > 0)[..., None, None], function(*x), 0) ** 2).sum()

    return [jax.jit(jax.value_and_grad(loss(function), (0, 1, 2, 6))) for function in (reference, blocked, kernel)]


KERNEL = DecoderConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=4, head_dim=64, attention="pallas"
)


@pytest.mark.parametrize("kv_heads", ["tensor", None])
def test_the_kernel_is_split_over_rows_and_heads_of_a_mesh(kv_heads, monkeypatch):
    monkeypatch.setattr(attention, "kernel_attention", functools.partial(kernel_attention, interpret=True))
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:4])
    inputs, (reach, positions) = heads(128, width=64), trees(128)
    window, real = jnp.int32(attention.WITHOUT_WINDOW), (reach > 0)[..., None, None]
    expected = attention.reference_attention(*inputs, attention.reach_mask(reach, positions))
    rules = (("batch", "data"), ("heads", "tensor"), ("kv_heads", kv_heads))
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        run = jax.jit(functools.partial(attention.attend, KERNEL))
        found = run(*inputs, reach, positions, kernel_blocks(reach, positions, window), window)
    assert found.sharding.spec == jax.sharding.PartitionSpec("data", None, "tensor")
    np.testing.assert_allclose(jnp.where(real, found, 0), jnp.where(real, expected, 0), atol=1e-5)


@pytest.mark.parametrize("window", [37, attention.WITHOUT_WINDOW])
@pytest.mark.parametrize("name", ["pallas", "xla", "reference"])
def test_columns_are_split_over_a_mesh(name, window, monkeypatch):
    """Rows of 216 columns on four devices, whose 54 are no whole block, in trees, with and without a window."""
    monkeypatch.setattr(attention, "kernel_attention", functools.partial(kernel_attention, interpret=True))
    mesh = jax.make_mesh((4,), ("context",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    inputs, (reach, positions) = heads(216, width=64), trees(216)
    window, real = jnp.int32(window), (reach > 0)[..., None, None]
    config = dataclasses.replace(KERNEL, attention=name)

    def loss(*inputs):
        blocks = attention.blocks_of(config, reach, positions, window)
        mixed = jnp.where(real, attention.attend(config, *inputs, reach, positions, blocks, window), 0)
        return jnp.sum(jnp.sin(mixed)), mixed

    def expected_loss(*inputs):
        mask = attention.reach_mask(reach, positions, window)
        mixed = jnp.where(real, attention.reference_attention(*inputs, mask), 0)
        return jnp.sum(jnp.sin(mixed)), mixed

    with jax.set_mesh(mesh), nn.logical_axis_rules((("length", "context"),)):
        gradients, mixed = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*inputs)
    expected = jax.jit(jax.grad(expected_loss, (0, 1, 2), has_aux=True))(*inputs)
    assert mixed.sharding.spec == jax.sharding.PartitionSpec(None, "context")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), (gradients, mixed), expected)


def test_auto_is_the_kernel_on_tpu_only(monkeypatch):
    assert not attention.uses_kernel("auto")
    assert attention.uses_kernel("pallas")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert attention.uses_kernel("auto")
    assert not attention.uses_kernel("xla")
