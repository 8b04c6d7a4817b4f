"""Controllers: a value at each step, and a state that follows what was measured."""

import jax.numpy as jnp
import optax
import pytest

from jaxrl_llm import controllers


def test_scheduled():
    controller = controllers.scheduled(schedule=optax.linear_schedule(1.0, 0.0, 10))
    state = controller.init()
    assert state == () and controller.update(state, {"loss": 1.0}) == ()
    assert [float(controller.value(state, step)) for step in (0, 5, 20)] == pytest.approx([1.0, 0.5, 0.0])
    assert controller.value(state, 3).dtype == jnp.float32
