"""Controllers: a value at each step, and a state that follows what was measured."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm import controllers


def test_scheduled():
    controller = controllers.scheduled(schedule=optax.linear_schedule(1.0, 0.0, 10))
    state = controller.init()
    assert state == () and controller.update(state, {"loss": 1.0}) == ()
    assert [float(controller.value(state, step)) for step in (0, 5, 20)] == pytest.approx([1.0, 0.5, 0.0])
    assert controller.value(state, 3).dtype == jnp.float32


def follow(controller, measured):
    """Values at each step, the last one after all measurements."""
    state, values = controller.init(), []
    for step, metrics in enumerate(measured):
        values.append(float(controller.value(state, step)))
        state = controller.update(state, metrics)
    return [*values, float(controller.value(state, len(measured)))]


def test_adaptive_kl():
    controller = controllers.adaptive_kl(initial=0.1, target=2.0, horizon=10.0)
    values = follow(controller, [{"reference_kl": kl} for kl in (9.0, 2.2, 0.0)])
    np.testing.assert_allclose(values, [0.1, 0.1 * 1.02, 0.102 * 1.01, 0.10302 * 0.98], rtol=1e-5)


def test_adaptive_entropy():
    controller = controllers.adaptive_entropy(target=0.2, initial=0.01, change=0.005, high=0.02)
    values = follow(controller, [{"entropy": entropy} for entropy in (0.5, 0.1, 0.1, 0.1, 0.1, 0.3)])
    # Nothing known; then above the target: no bonus; then growing to its bound; then none again.
    np.testing.assert_allclose(values, [0, 0, 0.01, 0.015, 0.02, 0.02, 0], rtol=1e-5, atol=1e-9)


def test_entropy_band():
    controller = controllers.entropy_band(low=0.1, high=0.5, initial=1e-3, rate=1e-2, least=1e-4, most=2e-3, warmup=1)
    values = follow(controller, [{"top_entropy": entropy} for entropy in (0.0, 0.05, 0.3, 0.6, 9.0)])
    np.testing.assert_allclose(values, [1e-3, 1e-3, 1.5e-3, 1.5e-3, 5e-4, 1e-4], rtol=1e-4)


def test_running_mean():
    values = follow(controllers.running_mean(measure="x"), [{"x": x} for x in (1.0, 2.0, 6.0)])
    np.testing.assert_allclose(values, [0, 1, 1.5, 3])


def test_equal_controllers_are_equal_and_print_as_code():
    one, other = (controllers.adaptive_entropy(target=0.2) for _ in range(2))
    assert one == other and repr(one) == "adaptive_entropy(target=0.2)"
    with pytest.raises(TypeError, match="adaptive_kl: unknown option 'goal'"):
        controllers.adaptive_kl(goal=1)


def test_until_drift():
    controller = controllers.until_drift(value=0.5, window=3, threshold=2.0)
    values = follow(controller, [{"entropy": entropy} for entropy in (1.0, 1.1, 0.9, 1.05, 3.0, 1.0)])
    assert values == [0.5] * 5 + [0.0] * 2


def test_moving_average():
    values = follow(controllers.moving_average(decay=0.75, measure="x"), [{"x": x} for x in (2.0, 4.0, 0.0)])
    share = 0.25 * np.array([0.75**2, 0.75, 1.0])
    np.testing.assert_allclose(values, [0, 2, (0.75 * 2 + 4) / 1.75, share @ [2, 4, 0] / share.sum()], rtol=1e-5)
