"""Numerical primitives: values, and gradients that are finite everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.numerics import keep_finite, kl_estimate, log_ratio, masked, materialised, safe_divide, without_infinities

INF = np.inf
EDGES = np.array([-INF, -1e30, -100.0, -1.0, 0.0, 1.0, 100.0, 1e30, INF], np.float32)


def gradients(function, *arguments):
    return jax.grad(lambda *x: jnp.sum(function(*x)), argnums=tuple(range(len(arguments))))(*arguments)


def test_masked_stops_nan_forwards_and_backwards():
    value, mask = jnp.array([1.0, jnp.nan, jnp.inf]), jnp.array([1.0, 0.0, 0.0])
    np.testing.assert_array_equal(masked(value, mask), [1, 0, 0])
    np.testing.assert_array_equal(gradients(lambda x: masked(2 * x, mask), value)[0], [2, 0, 0])


def test_masked_after_a_singular_function_has_a_finite_gradient_when_the_input_is_masked_too():
    mask = jnp.array([1.0, 0.0])
    found = gradients(lambda x: masked(jnp.log(1 + masked(x, mask)), mask), jnp.array([1.0, -1.0]))[0]
    np.testing.assert_allclose(found, [0.5, 0])


def test_safe_divide():
    numerator, denominator = jnp.array([1.0, 3.0, 0.0, -2.0]), jnp.array([0.0, 2.0, 0.0, -4.0])
    np.testing.assert_allclose(safe_divide(numerator, denominator), [0, 1.5, 0, 0.5])
    by_numerator, by_denominator = gradients(safe_divide, numerator, denominator)
    np.testing.assert_allclose(by_numerator, [0, 0.5, 0, -0.25])
    np.testing.assert_allclose(by_denominator, [0, -0.75, 0, 0.125])


def test_without_infinities():
    found = without_infinities(jnp.array([-INF, -2.0, INF, np.nan]))
    np.testing.assert_array_equal(found, [0, -2, 0, np.nan])
    np.testing.assert_array_equal(gradients(without_infinities, jnp.array([-INF, -2.0, INF]))[0], [0, 1, 0])


@pytest.mark.parametrize(("logp", "other", "value", "slope"), [
    (-1.0, -3.0, 2.0, 1.0),
    (-50.0, -1.0, -20.0, 0.0),
    (-1.0, -50.0, 20.0, 0.0),
    (-INF, -1.0, -20.0, 0.0),
    (-1.0, -INF, 20.0, 0.0),
    (-INF, -INF, 0.0, 0.0),
    (-1.0, -1.0, 0.0, 1.0),
])  # fmt: skip
def test_log_ratio(logp, other, value, slope):
    np.testing.assert_allclose(log_ratio(jnp.float32(logp), jnp.float32(other)), value)
    by_logp, by_other = gradients(log_ratio, jnp.float32(logp), jnp.float32(other))
    assert (float(by_logp), float(by_other)) == (slope, -slope)


def test_log_ratio_is_finite_for_every_pair_and_nan_stays_nan():
    logp, other = (jnp.asarray(x.ravel()) for x in np.meshgrid(EDGES, EDGES))
    for function in (log_ratio, *(lambda a, b, kind=kind: kl_estimate(a, b, kind) for kind in ("k1", "k2", "k3"))):
        assert np.isfinite(function(logp, other)).all()
        assert all(np.isfinite(gradient).all() for gradient in gradients(function, logp, other))
    for pair in ((np.nan, -1.0), (-1.0, np.nan), (np.nan, -INF)):
        assert np.isnan(log_ratio(jnp.float32(pair[0]), jnp.float32(pair[1])))


@pytest.mark.parametrize(("kind", "expected"), [("k1", 0.5), ("k2", 0.125), ("k3", np.exp(-0.5) - 1 + 0.5)])
def test_kl_estimates_by_hand(kind, expected):
    np.testing.assert_allclose(kl_estimate(jnp.float32(-1.0), jnp.float32(-1.5), kind), expected, rtol=1e-6)


def test_kl_estimates_of_a_known_pair_of_distributions():
    """k1 and k3 are unbiased: their expectation under the policy is the KL; the gradient of k2's is the KL's gradient."""
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    exact = np.sum(p * np.log(p / q))
    for kind in ("k1", "k3"):
        np.testing.assert_allclose(np.sum(p * kl_estimate(jnp.log(p), jnp.log(q), kind)), exact, rtol=1e-5)

    logits = jnp.log(p)
    by_kl = jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) * (jax.nn.log_softmax(x) - jnp.log(q))))(logits)
    by_k2 = jax.grad(lambda x: jnp.sum(p * kl_estimate(jax.nn.log_softmax(x), jnp.log(q), "k2")))(logits)
    np.testing.assert_allclose(by_k2, by_kl, rtol=1e-4, atol=1e-6)


def test_k3_keeps_small_differences():
    """exp(x) - 1 - x of x = 3e-4 is 4.50045e-8; the naive form loses it in float32."""
    found = kl_estimate(jnp.float32(0.0), jnp.float32(3e-4), "k3")
    np.testing.assert_allclose(found, 4.50045e-8, rtol=2e-3)


@pytest.mark.parametrize("kind", ["k1", "k3", "abs"])
def test_straight_through_kinds_have_the_gradient_of_k2(kind):
    logp, reference = jnp.array([-1.0, -0.3, -2.0]), jnp.array([-0.4, -0.3, -2.5])
    np.testing.assert_allclose(kl_estimate(logp, reference, f"{kind}+"), kl_estimate(logp, reference, kind), rtol=1e-6)
    found, expected = (jax.grad(lambda x, k=k: kl_estimate(x, reference, k).sum())(logp) for k in (f"{kind}+", "k2"))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_unknown_kind():
    with pytest.raises(ValueError, match="'k4'.*'k1', 'k2', 'k3', 'abs'"):
        kl_estimate(jnp.zeros(()), jnp.zeros(()), "k4")


@pytest.mark.parametrize("value", [[1.5, -2.0], [np.nan, 3.0], [np.inf, -np.inf], []])
def test_what_is_materialised_stays_as_it_is(value):
    value = np.array(value, np.float32)
    for x in (value, value[None].repeat(3, 0), jnp.asarray(value, jnp.bfloat16)):
        np.testing.assert_array_equal(np.asarray(jax.jit(materialised)(x), np.float32), np.asarray(x, np.float32))
    np.testing.assert_array_equal(jax.jit(jax.vmap(materialised))(value[None].repeat(2, 0)), value[None].repeat(2, 0))


def test_what_is_materialised_has_no_gradient():
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: (x * materialised(x)).sum()))(jnp.array([2.0, 3.0])), [2.0, 3.0])


def test_the_maximum_of_what_is_materialised_is_one_of_it():
    """Without it, XLA for CPU rounds 3.3 x - max(3.3 x) of these at once, and 0 is not among the differences."""
    x = np.random.default_rng(0).normal(size=(8, 300)).astype(np.float32)

    def hits(x):
        scaled = materialised(3.3 * x)
        below = scaled - scaled.max(-1, keepdims=True)
        return (below == 0).sum(-1), jnp.exp(below).sum(-1), (jnp.abs(below) / 0.7).min(-1)

    np.testing.assert_array_equal(jax.jit(hits)(x)[0], 1)


def test_the_bound_of_a_log_ratio_is_an_option():
    far, near = jnp.float32(-1.0), jnp.float32(-31.0)
    assert float(log_ratio(far, near)) == 20.0 and float(log_ratio(far, near, None)) == 30.0
    assert float(log_ratio(far, near, 10.0)) == 10.0 and float(log_ratio(near, far, 10.0)) == -10.0
    assert float(log_ratio(far, jnp.float32(-jnp.inf), None)) == 20.0
    assert float(kl_estimate(far, near, "k2")) == 200.0 and float(kl_estimate(far, near, "k2", None)) == 450.0
    assert np.isfinite(kl_estimate(jnp.float32(-500.0), far, "k3", None))


@pytest.mark.parametrize(("new", "kept"), [((2.0, 5), True), ((np.nan, 5), False), ((-np.inf, 5), False), ((3e38, 5), True)])
def test_a_state_stays_finite_as_a_whole(new, kept):
    old = {"mean": jnp.float32(1.0), "count": 3, "shortest": jnp.array([np.inf, 2.0])}
    found = keep_finite({"mean": jnp.float32(new[0]), "count": new[1], "shortest": jnp.array([np.inf, 1.0])}, old)
    assert found["count"] == (5 if kept else 3) and found["shortest"].tolist() == [np.inf, 1.0 if kept else 2.0]
    assert keep_finite((), ()) == ()
