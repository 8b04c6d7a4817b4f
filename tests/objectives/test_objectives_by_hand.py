"""Hand-computed values, printing, hashing, and what objectives refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import objectives
from jaxrl_llm.objectives import cispo, clip, kl, objective, policy, sequence_ratio, token_ratio, unclipped, value_loss
from jaxrl_llm.types import Batch, Scores


def one_token(ratio: float, advantage: float, **fields) -> tuple[Scores, Batch]:
    """A batch of one action."""
    one = np.ones((1, 1), np.float32)
    batch = Batch(tokens=np.zeros((1, 1), np.int32), mask=one, advantage=advantage * one, behavior_logp=-one, **fields)
    return Scores(logp=np.float32(np.log(ratio)) - one), batch


@pytest.mark.parametrize(("ratio", "advantage", "expected", "slope"), [
    (1.0, 2.0, -2.0, -2.0),
    (1.5, 2.0, -2.4, 0.0),
    (0.5, 2.0, -1.0, -1.0),
    (0.5, -2.0, 1.6, 0.0),
    (1.5, -2.0, 3.0, 3.0),
    (9.0, -2.0, 6.0, 0.0),
])  # fmt: skip
def test_clip_with_dual_bound_of_three(ratio, advantage, expected, slope):
    scores, batch = one_token(ratio, advantage)
    loss, gradient = jax.value_and_grad(lambda s: objective(policy(trust=clip(dual=3.0)))(s, batch)[0])(scores)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient.logp, [[slope]], rtol=1e-5)


@pytest.mark.parametrize(("ratio", "weight"), [(9.0, 5.0), (2.0, 2.0), (0.01, 0.01)])
def test_cispo_bounds_the_weight_and_keeps_the_gradient(ratio, weight):
    scores, batch = one_token(ratio, -1.0)
    gradient = jax.grad(lambda s: objective(policy(trust=cispo(high=4.0)))(s, batch)[0])(scores)
    np.testing.assert_allclose(gradient.logp, [[weight]], rtol=1e-5)


def test_on_policy_loss_is_zero_but_its_parts_are_not():
    mask = np.ones((2, 1), np.float32)
    batch = Batch(tokens=np.zeros((2, 1), np.int32), mask=mask, advantage=np.array([[1.0], [-1.0]]), behavior_logp=-mask)
    loss, metrics = objective(policy())(Scores(logp=-mask), batch)
    assert float(loss) == 0.0
    assert float(metrics["surrogate/positive_advantage"]) == 0.5
    assert float(metrics["surrogate/negative_advantage"]) == -0.5


def test_sequences_of_a_row_have_their_own_ratio():
    ones = np.ones((1, 4), np.float32)
    batch = Batch(tokens=np.zeros((1, 4), np.int32), mask=ones, segment=np.array([[1, 1, 2, 2]]), behavior_logp=0 * ones)
    found = sequence_ratio()(Scores(logp=np.array([[1.0, 3.0, -1.0, 0.0]])), batch)
    np.testing.assert_allclose(found, [[2, 2, -0.5, -0.5]])


def test_a_traced_coefficient_never_recompiles():
    traces = []
    step = objective(kl(coefficient="beta", kind="k1"))

    @jax.jit
    def loss(scores, batch):
        traces.append(None)
        return step(scores, batch)[0]

    scores, batch = one_token(2.0, 0.0, reference_logp=-np.ones((1, 1), np.float32))
    values = [loss(scores, batch.replace(coefficients={"beta": np.float32(beta)})) for beta in (0.0, 1.0, 2.0)]
    np.testing.assert_allclose(values, np.log(2.0) * np.arange(3), rtol=1e-5)
    assert len(traces) == 1


def test_objectives_are_static_arguments():
    one, other = objective(policy(trust=clip(high=0.3))), objective(policy(trust=clip(high=0.3)))
    assert one == other and hash(one) == hash(other)
    assert one != objective(policy())
    assert repr(one) == "objective(policy(trust=clip(high=0.3)))"
    scores, batch = one_token(2.0, 1.0)
    run = jax.jit(lambda chosen, scores, batch: chosen(scores, batch)[0], static_argnums=0)
    np.testing.assert_allclose(run(one, scores, batch), -1.3, rtol=1e-6)


def test_declarations():
    full = objective(policy(), kl(), value_loss(), objectives.entropy_bonus())
    assert full.needs == {"value", "entropy"}
    assert full.annotations == {"behavior_logp", "reference_logp", "returns", "behavior_value"}
    assert objective(policy(ratio=None, trust=objectives.score_function())).annotations == frozenset()


@pytest.mark.parametrize(("term", "message"), [
    (value_loss(), "scores.value"),
    (objectives.entropy_bonus(), "scores.entropy"),
    (kl(), "batch.reference_logp"),
])  # fmt: skip
def test_what_is_missing_is_named(term, message):
    scores, batch = one_token(1.0, 1.0)
    with pytest.raises(ValueError, match=message):
        objective(term)(scores, batch)


def test_missing_extras_are_named():
    scores, batch = one_token(1.0, 1.0, returns=np.zeros((1, 1)))
    with pytest.raises(ValueError, match=r"batch\.extras\['behavior_value'\]"):
        objective(value_loss())(scores.replace(value=np.zeros((1, 1))), batch)


def test_missing_behavior_logp_is_named():
    scores, batch = one_token(1.0, 1.0)
    with pytest.raises(ValueError, match="batch.behavior_logp"):
        objective(policy())(scores, batch.replace(behavior_logp=None))


def test_unknown_coefficient_names_those_there_are():
    scores, batch = one_token(1.0, 1.0, reference_logp=np.zeros((1, 1)), coefficients={"beta": 0.1})
    with pytest.raises(ValueError, match="'gamma'.*'beta'"):
        objective(kl(coefficient="gamma"))(scores, batch)


def test_unknown_kind_of_kl():
    scores, batch = one_token(1.0, 1.0, reference_logp=np.zeros((1, 1)))
    with pytest.raises(ValueError, match="'k4'"):
        objective(kl(kind="k4"))(scores, batch)


def test_unknown_options_name_the_known():
    with pytest.raises(TypeError, match="clip: unknown option 'higher'; it takes.*'high'"):
        clip(higher=0.3)
    with pytest.raises(TypeError, match="'high' has no default"):
        cispo()


@pytest.mark.parametrize("trust", [clip(), clip(dual=3.0), unclipped(), cispo(high=4.0), objectives.score_function()])
@pytest.mark.parametrize("ratio", [token_ratio(), sequence_ratio()])
def test_infinite_log_ratios_have_finite_gradients(ratio, trust):
    infinite = np.array([[-np.inf, -1.0, -np.inf, -1.0]], np.float32)
    behavior = np.array([[-1.0, -np.inf, -np.inf, -1.0]], np.float32)
    for advantage in (-1.0, 1.0):
        ones = np.ones((1, 4), np.float32)
        batch = Batch(tokens=np.zeros((1, 4), np.int32), mask=ones, advantage=advantage * ones, behavior_logp=behavior)
        chosen = objective(policy(ratio=ratio, trust=trust))
        loss, gradient = jax.value_and_grad(lambda s, c=chosen, b=batch: c(s, b)[0])(Scores(logp=jnp.asarray(infinite)))
        assert np.isfinite(loss) and np.isfinite(gradient.logp).all()


def test_junk_weights_outside_of_the_mask_have_no_influence():
    scores, batch = one_token(2.0, 1.0)
    wide = {"tokens": np.zeros((1, 2), np.int32), "mask": np.array([[1.0, 0.0]]), "advantage": np.array([[1.0, np.nan]])}
    batch = Batch(**wide, weight=np.array([[1.0, np.nan]]), behavior_logp=np.array([[-1.0, np.nan]]))
    loss, _ = objective(policy())(Scores(logp=np.array([[np.log(2) - 1, np.nan]])), batch)
    np.testing.assert_allclose(loss, -1.2, rtol=1e-6)


def test_a_broken_network_is_seen():
    scores, batch = one_token(1.0, 1.0)
    loss, _ = objective(policy())(scores.replace(logp=np.full((1, 1), np.nan)), batch)
    assert np.isnan(loss)


def test_a_dual_bound_of_one_or_less_is_refused():
    scores, batch = one_token(1.0, -1.0)
    with pytest.raises(ValueError, match="dual is 0.5"):
        objective(policy(trust=clip(dual=0.5)))(scores, batch)


def test_terms_of_one_kind_have_metrics_of_their_own():
    term = objectives.negative_log_likelihood()
    batch = Batch(tokens=np.zeros((1, 2), np.int32), mask=np.array([[0.0, 1.0]], np.float32))
    scores = Scores(logp=np.array([[0.0, -2.0]], np.float32))
    both = objectives.objective(objectives.scaled(term=term, coefficient=1.0), objectives.scaled(term=term, coefficient=0.5))
    loss, metrics = both(scores, batch)
    assert float(loss) == 3.0 and float(metrics["loss/scaled"]) == 2.0 and float(metrics["loss/scaled_2"]) == 1.0
