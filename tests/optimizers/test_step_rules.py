"""Step rules, transforms that ask for gradients, soft resets and evolution, against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import tiny_policy

from jaxrl_llm import methods, optimizers
from jaxrl_llm.data import pack
from jaxrl_llm.optimizers import evolution
from jaxrl_llm.training import TrainState, make_gradient, make_update
from jaxrl_llm.types import Batch


def tree(seed=0):
    random = np.random.default_rng(seed)
    return {"a": random.normal(size=(3, 4)), "b": {"c": random.normal(size=5)}}


def as_float32(values):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), values)


def assert_trees(found, expected, **tolerances):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-6} | tolerances)), found, expected)


def norm(values):
    return np.sqrt(sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in jax.tree.leaves(values)))


def batch_with(**scalars):
    return Batch(tokens=np.zeros((1, 2), np.int32), mask=np.ones((1, 2), np.float32), coefficients=scalars)


# ---- rules


@pytest.mark.parametrize(("reward", "expected"), [(0.25, 0.75), (1.5, 0.0), (-1e6, None)])
def test_polyak_step(reward, expected):
    gradients = as_float32(tree(1))
    rule = optimizers.polyak_step(optax.constant_schedule(0.3), best=1.0)
    found, state = rule.update(gradients, rule.init(gradients), gradients, batch=batch_with(reward=np.float32(reward)))
    size = 0.3 if expected is None else min(expected / norm(gradients) ** 2, 0.3)
    assert_trees(found, jax.tree.map(lambda leaf: -size * leaf, gradients))
    assert int(state["count"]) == 1
    still, _ = rule.update(jax.tree.map(jnp.zeros_like, gradients), state, None, batch=batch_with(reward=np.float32(0)))
    assert all(np.array_equal(leaf, np.zeros_like(leaf)) for leaf in jax.tree.leaves(still))
    with pytest.raises(ValueError, match="needs batch.coefficients"):
        rule.update(gradients, state)
    with pytest.raises(ValueError, match="epsilon is 0.0"):
        optimizers.polyak_step(optax.constant_schedule(0.3), epsilon=0.0)


def test_a_polyak_step_solves_a_quadratic():
    """Of -|x|^2 / 2, whose best value 0 is known, each step halves the distance."""
    rule, x = optimizers.polyak_step(optax.constant_schedule(10.0), best=0.0), jnp.array([3.0, -4.0])
    state = rule.init(x)
    for _ in range(4):
        change, state = rule.update(x, state, x, batch=batch_with(reward=-0.5 * jnp.sum(x**2)))
        x = x + change
    np.testing.assert_allclose(x, np.array([3.0, -4.0]) / 16, rtol=1e-5)


def test_implicit_transport():
    share, size, curvature = 0.25, 0.1, np.array([1.0, 3.0, 0.5, 2.0, 1.5])
    rule = optimizers.implicit_transport(optax.constant_schedule(size), share=share)
    params = {"x": jnp.asarray(tree(2)["b"]["c"], jnp.float32)}
    state = rule.init(params)
    start, momentum = np.asarray(params["x"], np.float64), None
    ahead = start.copy()
    for _ in range(5):
        np.testing.assert_allclose(params["x"], ahead, rtol=1e-4, atol=1e-5)
        change, state = rule.update({"x": jnp.asarray(curvature * np.asarray(params["x"]), jnp.float32)}, state, params)
        params = optax.apply_updates(params, change)
        gradient = curvature * ahead
        momentum = gradient if momentum is None else (1 - share) * momentum + share * gradient
        following = start - size * momentum / np.linalg.norm(momentum)
        ahead = following + (1 - share) / share * (following - start)
        start = following
    np.testing.assert_allclose(state["start"]["x"], start, rtol=1e-4, atol=1e-5)
    still = rule.update({"x": jnp.zeros(5)}, rule.init(params), params)[0]
    assert np.array_equal(still["x"], np.zeros(5))
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"share is {share}"):
            optimizers.implicit_transport(optax.constant_schedule(size), share=share)


def test_old_gradients_of_a_quadratic_need_no_correction():
    """d is the gradient at the parameters themselves, wherever the average came from: the transport is exact there."""
    rule = optimizers.implicit_transport(optax.constant_schedule(0.05), share=0.2)
    matrix = np.diag([1.0, 4.0, 2.0])
    params = {"x": jnp.array([1.0, -2.0, 0.5])}
    state = rule.init(params)
    for _ in range(6):
        change, after = rule.update({"x": jnp.asarray(matrix, jnp.float32) @ params["x"]}, state, params)
        np.testing.assert_allclose(after["momentum"]["x"], matrix @ np.asarray(state["start"]["x"]), rtol=1e-4, atol=1e-4)
        params, state = optax.apply_updates(params, change), after


# ---- further gradients


def test_recursive_momentum():
    share, curvature = 0.3, np.array([1.0, 3.0, 0.5, 2.0, 1.5])
    noise = np.random.default_rng(3).normal(size=(5, 5))

    def gradient_of(number):
        return lambda params, batch: {"x": jnp.asarray(curvature + noise[number], jnp.float32) * params["x"]}

    transform = optax.chain(optimizers.recursive_momentum(share=share), optax.sgd(0.1))
    params = {"x": jnp.asarray(tree(4)["b"]["c"], jnp.float32)}
    state, x, before, estimate = transform.init(params), np.asarray(params["x"], np.float64), None, None
    for number in range(5):
        ask = gradient_of(number)
        change, state = transform.update(ask(params, None), state, params, batch=None, gradient=ask)
        params = optax.apply_updates(params, change)
        own = (curvature + noise[number]) * x
        estimate = own if before is None else own + (1 - share) * (estimate - (curvature + noise[number]) * before)
        before, x = x, x - 0.1 * estimate
        np.testing.assert_allclose(params["x"], x, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="recursive_momentum asks for gradients"):
        transform.update(params, state, params)
    with pytest.raises(ValueError, match="share is 2"):
        optimizers.recursive_momentum(share=2)


@pytest.fixture(scope="module")
def params():
    return tiny_policy.init()


def test_weights_of_objectives_follow_their_gradients(params):
    """In an update of the program's own: weights and step by loops over the gradients of each objective."""
    method = methods.get("dynamic_weights", rate=2.0)
    batch = pack(tiny_policy.estimated(method, tiny_policy.random_rollouts(params)), 12)
    transform = optax.chain(optimizers.objective_weights(objectives=2, rate=2.0), optax.sgd(1.0))
    update = tiny_policy.jit(make_update(tiny_policy.policy, method.objective, transform))
    state, metrics = update(TrainState.create(params, transform), batch)
    assert float(metrics["skipped"]) == 0
    gradient = tiny_policy.jit(make_gradient(_scorer(method), method.objective))
    each = [
        jax.tree.map(np.asarray, gradient(params, batch.replace(advantage=batch.extras["objective_advantage"][..., k]))[1])
        for k in range(2)
    ]
    flat = [np.concatenate([leaf.ravel().astype(np.float64) for leaf in jax.tree.leaves(one)]) for one in each]
    raw = np.array([0.5 * np.exp(2.0 * sum(float(one @ other) for other in flat)) for one in flat])
    weights = raw / raw.sum()
    assert abs(weights[0] - weights[1]) > 1e-3
    expected = jax.tree.map(lambda old, a, b: old - weights[0] * a - weights[1] * b, params, *each)
    assert_trees(state.params, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.exp(state.opt_state[0]["log_weight"]), weights, rtol=1e-4)


def test_without_a_rate_it_is_the_mean_of_the_advantages(params):
    """On policy, where the surrogate is linear in them."""
    method = methods.get("dynamic_weights", rate=0.0)
    batch = pack(tiny_policy.estimated(method, tiny_policy.random_rollouts(params)), 12)
    batch = batch.replace(behavior_logp=np.asarray(_scorer(method)(params, batch).logp))
    moved = []
    for front in ((optimizers.objective_weights(objectives=2, rate=0.0),), ()):
        transform = optax.chain(*front, optax.sgd(1.0))
        update = tiny_policy.jit(make_update(tiny_policy.policy, method.objective, transform))
        moved.append(update(TrainState.create(params, transform), batch)[0].params)
    assert_trees(*moved, rtol=1e-4, atol=1e-6)


def _scorer(method):
    from jaxrl_llm.scoring import make_scorer

    return make_scorer(tiny_policy.policy, method.objective.needs)


def test_objectives_that_are_not_there(params):
    transform = optimizers.objective_weights(objectives=2)
    with pytest.raises(ValueError, match="objective_weights needs batch.extras"):
        transform.update(params, transform.init(params), params, batch=batch_with(), gradient=lambda *_: params)
    with pytest.raises(ValueError, match="objectives is 1"):
        optimizers.objective_weights(objectives=1)


# ---- resets


def test_soft_resets():
    start, gradients = as_float32(tree(5)), as_float32(tree(6))
    gradients["a"] = gradients["a"].at[0].set(0.0)
    transform = optimizers.soft_reset(optax.sgd(0.1), every=2, largest=0.6, threshold=0.5)
    params, state = start, transform.init(start)
    expected = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), start)
    dormant = entries = 0
    for leaf in jax.tree.leaves(gradients):
        sizes = np.abs(np.asarray(leaf, np.float64))
        dormant += sum(size <= 0.5 * sizes.mean() for size in sizes.ravel())
        entries += leaf.size
    for count in (1, 2, 3, 4):
        change, state = transform.update(gradients, state, params)
        params = optax.apply_updates(params, change)
        part = min(dormant / entries, 0.6) if count % 2 == 0 else 0.0
        expected = jax.tree.map(lambda x, g: x - 0.1 * np.asarray(g, np.float64), expected, gradients)
        expected = jax.tree.map(lambda x, s, part=part: x + part * (np.asarray(s) - x), expected, start)
        assert_trees(params, expected, rtol=1e-4)
    assert 0 < dormant < entries
    # Nothing moves at all: as far back as is allowed.
    transform = optimizers.soft_reset(optax.sgd(0.1), every=1, largest=0.6)
    zeros = jax.tree.map(jnp.zeros_like, start)
    change, _ = transform.update(zeros, transform.init(start), zeros)
    assert_trees(change, jax.tree.map(lambda leaf: 0.6 * leaf, start))
    for options in ({"every": 0}, {"every": 1, "largest": 2.0}):
        with pytest.raises(ValueError, match="give a step of at least 1"):
            optimizers.soft_reset(optax.identity(), **options)


# ---- evolution


def test_the_gradient_of_evolution_is_a_sum_over_its_noise():
    params, key = as_float32(tree(7)), jax.random.key(3)
    weights = np.random.default_rng(8).normal(size=(4, 2)).astype(np.float32)
    found = jax.jit(evolution.evolution_gradient)(params, key, weights, 0.2)
    expected = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
    for pair in range(4):
        for side, sign in enumerate((1.0, -1.0)):
            moved = evolution.perturbed(params, evolution.member(key, pair), sign * 0.2)
            noise = jax.tree.map(lambda a, b: (np.asarray(a, np.float64) - np.asarray(b, np.float64)) / 0.2, moved, params)
            factor = float(weights[pair, side])
            expected = jax.tree.map(lambda total, e, f=factor: total - f * e / (2 * 4 * 0.2), expected, noise)
    assert_trees(found, expected, rtol=1e-3, atol=1e-4)
    assert norm(found) > 0.1


def test_evolution_climbs():
    """Rewards -|x - 1|^2, 60 steps of ranks."""
    x, optimizer, random = jnp.zeros(6), optax.sgd(0.05), jax.random.key(1)
    state = optimizer.init(x)
    for number in range(60):
        key = jax.random.fold_in(random, number)
        fitness = np.array([
            [-float(jnp.sum((evolution.perturbed(x, evolution.member(key, i), s * 0.1) - 1) ** 2)) for s in (1.0, -1.0)]
            for i in range(8)
        ])  # fmt: skip
        gradient = evolution.evolution_gradient(x, key, evolution.centred_ranks()(fitness), 0.1)
        change, state = optimizer.update(gradient, state, x)
        x = x + change
    assert float(jnp.sum((x - 1) ** 2)) < 1.0


def ranks(values):
    """From -1/2 to 1/2, equal ones their mean, by sorting."""
    ordered = sorted(values)
    place = {value: np.mean([i for i, other in enumerate(ordered) if other == value]) for value in values}
    return [place[value] / (len(values) - 1) - 0.5 for value in values]


def test_shapes_of_fitness():
    fitness = np.array([[0.5, -1.0], [3.0, 0.5], [0.25, 2.0]])
    np.testing.assert_allclose(evolution.centred_ranks()(fitness).ravel(), ranks(list(fitness.ravel())), atol=1e-12)
    # The best two are ordered and above the four others: 1 + 4 + 4 comparisons.
    expected = np.array([[-2, -2], [5, -2], [-2, 3]]) * 6 / 9
    np.testing.assert_allclose(evolution.best_comparisons(best=2)(fitness), expected)
    whole = evolution.best_comparisons(best=6)(fitness)
    assert whole.sum() == pytest.approx(0) and np.argmax(whole) == 2
    broken = np.array([[np.nan, 1.0], [2.0, -np.inf]])
    for shape in (evolution.centred_ranks(), evolution.best_comparisons(best=1)):
        for values in (broken, np.full((2, 2), np.nan), np.ones((1, 2))):
            assert np.isfinite(shape(values)).all()
    assert not evolution.centred_ranks()(np.ones((2, 2))).any()
    with pytest.raises(ValueError, match="best is 5 of 4 members"):
        evolution.best_comparisons(best=5)(np.ones((2, 2)))
