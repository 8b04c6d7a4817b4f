"""Merges, averages, extrapolation and slow-fast steps against loops in float64, and the plain methods that they become."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import tiny_policy

from jaxrl_llm import methods, optimizers
from jaxrl_llm.data import pack
from jaxrl_llm.training import TrainState, make_update

RANDOM = np.random.default_rng(0)


def tree(seed=0):
    random = np.random.default_rng(seed)
    return {
        "a": jnp.asarray(random.normal(size=(3, 4)), jnp.float32),
        "b": {"c": jnp.asarray(random.normal(size=5), jnp.float32)},
    }


def assert_trees(found, expected, **tolerances):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-7} | tolerances)), found, expected)


def largest(values, density):
    """The entries of largest magnitude, by sorting."""
    flat = np.abs(np.asarray(values, np.float64)).ravel()
    lowest = np.sort(flat)[::-1][max(int(density * flat.size), 1) - 1]
    return np.where(np.abs(values) >= lowest, values, 0)


def test_task_vector():
    tuned, base = tree(1), tree(2)
    found = optimizers.task_vector(tuned, base, density=0.5, bound=0.8)
    expected = jax.tree.map(lambda a, b: np.clip(largest(np.asarray(a - b), 0.5), -0.8, 0.8), tuned, base)
    assert_trees(found, expected)
    assert (found["a"] == 0).sum() == 6


def test_online_ties():
    direction, updates = tree(3), tree(4)
    transform = optimizers.online_ties(direction, density=0.4, mix=0.25)
    found, state = transform.update(updates, transform.init(tree()))

    def merged(update, towards):
        kept, result = largest(np.asarray(update), 0.4), np.zeros(update.shape)
        for place in np.ndindex(*update.shape):
            sign = np.sign(towards[place] + kept[place])
            result[place] += 0.25 * towards[place] * (np.sign(towards[place]) == sign)
            result[place] += 0.75 * kept[place] * (np.sign(kept[place]) == sign)
        return result

    assert_trees(found, jax.tree.map(merged, updates, direction))
    assert int(state.count) == 1


def test_online_dare():
    direction, updates = tree(3), {"a": jnp.ones((200, 50)), "b": {"c": jnp.ones(3000)}}
    direction = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 2.0), updates)
    transform = optimizers.online_dare(direction, keep=0.2, mix=0.1)
    state = transform.init(updates)
    first, state = transform.update(updates, state)
    second, _ = transform.update(updates, state)
    again, _ = transform.update(updates, transform.init(updates))
    assert_trees(first, again, rtol=0, atol=0)
    for leaf, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        # Either 0.1 * 2 alone, or with 0.9 / 0.2 beside it; the mean is that of the plain mixture.
        assert {round(float(value), 3) for value in np.unique(leaf)} == {0.2, 4.7}
        np.testing.assert_allclose(leaf.mean(), 0.2 + 0.9, rtol=0.06)
        assert (np.asarray(leaf) != np.asarray(other)).any()


def test_merging_with_nothing_is_the_optimizer():
    updates, nothing = tree(4), jax.tree.map(jnp.zeros_like, tree())
    for transform in (
        optimizers.online_dare(nothing, keep=1.0, mix=0.0),
        optimizers.online_ties(nothing, density=1.0, mix=0.0),
    ):
        assert_trees(transform.update(updates, transform.init(tree()))[0], updates)


def test_polyak():
    average = optimizers.polyak(share=0.25, every=2)
    state, expected = average.init(tree(0)), tree(0)
    for step in range(1, 6):
        params = tree(step)
        found, state = jax.jit(average.update)(params, state)
        if step % 2 == 0:
            expected = jax.tree.map(lambda new, old: 0.25 * new + 0.75 * old, params, expected)
        assert_trees(found, expected)


def test_bema():
    average = optimizers.bema(lag=10.0, scale=2.0)
    start = tree(0)
    state, ema = average.init(start), jax.tree.map(np.float64, start)
    for step in range(4):
        params, time = tree(step + 1), 10.0 + 2.0 * step
        found, state = jax.jit(average.update)(params, state)
        ema = jax.tree.map(lambda old, new: old + time**-0.5 * (new - old), ema, params)  # noqa: B023
        expected = jax.tree.map(lambda mean, new, old: mean + time**-0.2 * (new - old), ema, params, start)  # noqa: B023
        assert_trees(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_extrapolation(share):
    """Two iterations of two steps each, by hand; share 0 changes nothing."""
    transform = optimizers.extrapolate_every(2, share=share)
    params, hat, earlier = tree(0), tree(0), tree(0)
    state = transform.init(params)
    for step in range(4):
        updates = tree(10 + step)
        changes, state = transform.update(updates, state, params)
        params, hat = optax.apply_updates(params, changes), optax.apply_updates(hat, updates)
        if step % 2:
            reached, hat = hat, jax.tree.map(lambda new, old: new + share * (new - old), hat, earlier)
            earlier = reached
        assert_trees(params, hat, atol=1e-6)


@pytest.fixture(scope="module")
def step():
    params = tiny_policy.init()
    method = methods.get("grpo", kl_coefficient=0.0)
    batch = pack(tiny_policy.estimated(method, tiny_policy.random_rollouts(params)), 12)
    optimizer = optax.sgd(0.3)
    update = make_update(tiny_policy.policy, method.objective, optimizer)
    return update, TrainState.create(params, optimizer), batch


def test_slow_fast_by_hand(step):
    update, state, batch = step
    one = tiny_policy.jit(update)
    fast = state
    for _ in range(3):
        fast, _ = one(fast, batch)
    middle = jax.tree.map(lambda end, start: start + 0.4 * (end - start), fast.params, state.params)
    expected, metrics = one(fast.replace(params=middle), batch)
    named = batch.replace(coefficients={"back": np.float32(0.4)})
    for reposition, given in ((0.4, batch), ("back", named)):
        wrapped = tiny_policy.jit(optimizers.slow_fast(update, fast_steps=3, reposition=reposition))
        found, measured = wrapped(state, given)
        assert_trees(found.params, expected.params, rtol=1e-4, atol=1e-6)
        assert int(found.step) == 1 and float(measured["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-4)


def test_slow_fast_without_reposition_is_the_plain_update(step):
    update, state, batch = step
    found, _ = tiny_policy.jit(optimizers.slow_fast(update, fast_steps=2, reposition=0.0))(state, batch)
    assert_trees(found.params, tiny_policy.jit(update)(state, batch)[0].params, rtol=1e-5, atol=1e-7)


def test_refusals():
    for call, message in (
        (lambda: optimizers.online_dare({}, keep=0.0, mix=0.1), "keep is 0.0"),
        (lambda: optimizers.online_ties({}, density=2.0, mix=0.1), "density is 2.0"),
        (lambda: optimizers.polyak(share=0.0), "share is 0.0"),
        (lambda: optimizers.polyak(share=0.5, every=0), "every is 0"),
        (lambda: optimizers.extrapolate_every(0), "every is 0"),
        (lambda: optimizers.slow_fast(None, fast_steps=0), "fast_steps is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
