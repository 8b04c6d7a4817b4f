"""The state of training as one pytree."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm.controllers import Controller
from jaxrl_llm.training import TrainState, method_state

PARAMS = {"a": jnp.arange(3.0), "b": {"c": jnp.ones((2, 2), jnp.bfloat16)}}


def test_create():
    optimizer = optax.adam(1e-3)
    state = TrainState.create(PARAMS, optimizer, method_state={"count": jnp.zeros(())}, key=jax.random.key(7))
    assert int(state.step) == 0 and int(state.skipped) == 0
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, optimizer.init(PARAMS))
    assert state.method_state == {"count": 0}
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(jax.random.key(7)))


def test_the_key_defaults_to_seed_zero():
    state = TrainState.create(PARAMS, optax.sgd(1.0))
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(jax.random.key(0)))


def test_is_a_pytree_that_passes_through_jit_with_its_types():
    state = TrainState.create(PARAMS, optax.sgd(1.0, momentum=0.9))
    again = jax.jit(lambda s: s.replace(step=s.step + 1))(state)
    assert int(again.step) == 1 and again.step.dtype == jnp.int32
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or None, again, state)
    assert [leaf.dtype for leaf in jax.tree.leaves(again)] == [leaf.dtype for leaf in jax.tree.leaves(state)]


def test_may_be_donated():
    """No two fields share a buffer, so that a step may overwrite the state."""
    state = TrainState.create({"a": jnp.arange(3.0)}, optax.sgd(1.0))
    step = jax.jit(lambda s: s.replace(step=s.step + 1, skipped=s.skipped + 0), donate_argnums=0)
    assert int(step(step(state)).step) == 2


def test_create_under_jit_and_eval_shape():
    optimizer = optax.adam(1e-3)
    shapes = jax.eval_shape(lambda params: TrainState.create(params, optimizer), PARAMS)
    assert shapes.params["a"].shape == (3,)
    state = jax.jit(lambda params: TrainState.create(params, optimizer))(PARAMS)
    np.testing.assert_array_equal(state.params["a"], PARAMS["a"])


def test_the_state_of_a_method_waits_for_a_finite_step():
    """What an estimator or a controller saw of a step that was skipped, or saw as NaN, does not stay."""
    follow = Controller(init=lambda: jnp.float32(1.0), value=None, update=lambda state, metrics: state + metrics["reward"])
    method = types.SimpleNamespace(controllers=(("beta", follow),))
    after = {"estimator": {"mean": jnp.float32(5.0)}, "controllers": {"beta": jnp.float32(1.0)}}

    def found(**metrics):
        state = method_state.after_step(method, {"mean": np.float32(2.0)}, after, metrics)
        return float(state["estimator"]["mean"]), float(state["controllers"]["beta"])

    assert found(skipped=0.0, reward=0.5) == (5.0, 1.5)
    assert found(skipped=0.5, reward=0.5) == (5.0, 1.5)
    assert found(skipped=0.0, reward=float("nan")) == (5.0, 1.0)
    assert found(skipped=1.0, reward=0.5) == (2.0, 1.0)
