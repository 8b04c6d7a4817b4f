"""The gated delta rule in chunks against plain loops over tokens and their parents, float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.stepwise import stepwise_logits
from networks.test_attention import trees

from jaxrl_llm.networks import DecoderConfig, DeltaConfig, decoder, recurrent

LENGTH, HEADS, KEYS, VALUES = 45, 2, 4, 3


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Rows of six chunks."""
    monkeypatch.setattr(recurrent, "CHUNK", 8)
    jax.clear_caches()


def inputs():
    random = np.random.default_rng(0)
    query, key = (random.normal(size=(2, LENGTH, HEADS, KEYS)) for _ in range(2))
    query, key = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    value = random.normal(size=(2, LENGTH, HEADS, VALUES))
    decay, strength = np.exp(random.normal(size=(2, 2, LENGTH, HEADS)))
    return query, key, value, -0.3 * decay, 1 / (1 + strength)


def parents_of(reach):
    """Of each token the nearest one before it whose reach it lies within; -1 for none."""
    return [[max([p for p in range(t) if row[p] > t], default=-1) for t in range(len(row))] for row in np.asarray(reach)]


def by_loop(reach, query, key, value, decay, strength, cotangent):
    """What tokens give, and the gradients of its product with the cotangent."""
    given, scale = np.zeros_like(value), KEYS**-0.5
    gradients = [np.zeros_like(x) for x in (query, key, value, decay, strength)]
    of_query, of_key, of_value, of_decay, of_strength = gradients
    for b, parents in enumerate(parents_of(reach)):
        real = [t for t in range(LENGTH) if reach[b, t] > 0]
        for h in range(HEADS):
            states = {-1: np.zeros((KEYS, VALUES))}
            for t in real:
                before = np.exp(decay[b, t, h]) * states[parents[t]]
                change = strength[b, t, h] * (value[b, t, h] - before.T @ key[b, t, h])
                states[t] = before + np.outer(key[b, t, h], change)
                given[b, t, h] = states[t].T @ query[b, t, h] * scale
            back = {t: np.zeros((KEYS, VALUES)) for t in states}
            for t in reversed(real):
                q, k, s, out = query[b, t, h], key[b, t, h], strength[b, t, h], cotangent[b, t, h]
                before = np.exp(decay[b, t, h]) * states[parents[t]]
                missing = value[b, t, h] - before.T @ k
                of_query[b, t, h] = scale * states[t] @ out
                of_state = back[t] + scale * np.outer(q, out)
                of_strength[b, t, h] = k @ of_state @ missing
                of_missing = s * of_state.T @ k
                of_value[b, t, h] = of_missing
                of_before = of_state - np.outer(k, of_missing)
                of_key[b, t, h] = s * of_state @ missing - before @ of_missing
                of_decay[b, t, h] = (of_before * before).sum()
                back[parents[t]] = back[parents[t]] + np.exp(decay[b, t, h]) * of_before
    return given, gradients


def sequences():
    segments = np.array([[1] * 11 + [2] * 3 + [3] * 24 + [0] * 7, [1] * LENGTH])
    ends = [[max(np.flatnonzero(row == own)) + 1 if own else 0 for own in row] for row in segments]
    return np.array(ends, np.int32)


@pytest.mark.parametrize("kind", ["sequences", "trees"])
def test_chunks_are_the_recurrence_of_each_path(kind):
    reach = jnp.asarray(sequences() if kind == "sequences" else trees(LENGTH, seed=2)[0])
    real = (np.asarray(reach) > 0)[..., None, None]
    cotangent = np.random.default_rng(1).normal(size=(2, LENGTH, HEADS, VALUES)) * real
    expected, gradients = by_loop(np.asarray(reach), *inputs(), cotangent)

    @jax.jit
    def run(reach, *tokens):
        chunks = recurrent.chunks_of(reach)
        found, pull = jax.vjp(lambda *x: recurrent.delta_rule(*x, chunks)[0], *tokens)
        return found, pull(jnp.asarray(cotangent, jnp.float32)), chunks

    found, pulled, chunks = run(reach, *(jnp.asarray(x, jnp.float32) for x in inputs()))
    assert int(chunks.most) == 1 if kind == "sequences" else int(chunks.most) > 2
    wanted = np.where(np.asarray(reach) > 0, parents_of(reach), -1)
    np.testing.assert_array_equal(np.where(np.asarray(reach) > 0, chunks.parents, -1), wanted)
    np.testing.assert_allclose(np.where(real, found, 0), expected, atol=2e-6)
    for one, other in zip(pulled, gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_more_open_forks_than_there_is_room_for_give_nan():
    reach = np.where(np.arange(LENGTH) < 22, LENGTH - np.arange(LENGTH), np.arange(LENGTH) + 1)[None].repeat(2, 0)
    chunks = recurrent.chunks_of(jnp.asarray(reach, jnp.int32))
    assert int(chunks.most) > recurrent.SLOTS[-1]
    assert jnp.isnan(recurrent.delta_rule(*(jnp.asarray(x, jnp.float32) for x in inputs()), chunks)[0]).all()


CONFIG = DecoderConfig(
    vocab_size=23, hidden_size=16, intermediate_size=24, num_layers=3, num_heads=2, layer_types=("delta", "full", "delta"),
    delta=DeltaConfig(key_heads=1, value_heads=2, key_dim=4, value_dim=6), attention_gate=True,
)  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def logits(network, params, tokens, positions, reach):
    return network.apply(params, tokens, positions, reach=reach)


def test_a_forest_gives_what_each_path_gives_alone_and_so_does_decoding():
    network = decoder(CONFIG)
    params = jax.tree.map(lambda x: 1.5 * x, network.init(jax.random.key(0)))
    reach, positions = trees(LENGTH, rows=1)
    tokens = np.random.default_rng(2).integers(0, 23, (1, LENGTH))
    found, parents = logits(network, params, tokens, positions, reach), parents_of(reach)[0]
    leaves = [t for t in range(LENGTH) if t not in parents and int(reach[0, t]) > 0]
    paths = []
    for leaf in leaves:
        path = [leaf]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        paths.append(path)
    lengths, width = np.array([len(path) for path in paths]), max(map(len, paths))
    alone = np.array([[*tokens[0, path], *[0] * (width - len(path))] for path in paths])
    segments = np.array([[length] * length + [0] * (width - length) for length in lengths], np.int32)
    at = np.broadcast_to(np.arange(width), alone.shape)
    expected = logits(network, params, alone, at, jnp.asarray(segments))
    for row, path in enumerate(paths):
        np.testing.assert_allclose(found[0, path], expected[row, : len(path)], atol=2e-5)
    long = np.flatnonzero(lengths > 6)
    steps = stepwise_logits(network, params, alone[long], np.full(len(long), 3), 4)
    np.testing.assert_allclose(steps, expected[long, 2:6], atol=2e-5)
    whole = dataclasses.replace(CONFIG, remat="none")
    np.testing.assert_array_equal(logits(decoder(whole), params, tokens, positions, reach), found)
