"""Terms with shares of their own, and masks that leave the denominator: by hand, against oracles, and under splits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from oracles import harness, tiny_policy
from oracles import policy_terms as oracle
from oracles.cases import batch_cases, brief
from oracles.tiny_policy import jit

from jaxrl_llm import estimators, objectives
from jaxrl_llm.data.packing import has_weight, pack, scale_weights
from jaxrl_llm.estimators import chain, named_weighting, sequence_mean, token_mean
from jaxrl_llm.objectives import entropy_bonus, objective, policy, renormalised, scaled, score_function, weighted
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.training import make_gradient
from jaxrl_llm.types import Batch, Rollouts, Scores

LENGTHS = np.array([1, 3], np.int32)
MASK = (np.arange(3) < LENGTHS[:, None]).astype(np.float32)


def estimated(estimator, **extras):
    rollouts = Rollouts(tokens=np.zeros((2, 3), np.int32), length=LENGTHS, mask=MASK, rewards=np.ones((2, 1)), extras=extras)
    return estimator.update(rollouts, estimator.init(), jax.random.key(0))[0]


def test_shares_of_its_own_by_hand():
    """Answers of one and of three tokens: means over sequences stay, the entropies count a quarter each."""
    found = estimated(chain(sequence_mean(), named_weighting(name="entropy", weighting=token_mean())))
    np.testing.assert_allclose(found.weight, MASK / LENGTHS[:, None] / 2, rtol=1e-6)
    np.testing.assert_allclose(found.extras["weight:entropy"], MASK / 4, rtol=1e-6)
    masked = named_weighting(name="critic", weighting=token_mean(), mask="first")
    first = (np.arange(3) == 0) * np.ones((2, 1), np.float32)
    np.testing.assert_allclose(estimated(masked, first=first).extras["weight:critic"], first / 2, rtol=1e-6)


def test_a_weighted_term_by_hand():
    """-0.1 times the mean entropy of the tokens, 2.5, beside minus the mean over sequences of log pi."""
    batch = Batch(
        tokens=np.zeros((2, 3), np.int32), mask=MASK, weight=MASK / LENGTHS[:, None] / 2, advantage=MASK,
        extras={"weight:entropy": MASK / 4},
    )  # fmt: skip
    scores = Scores(logp=jnp.array([[-1.0, 9, 9], [-2, -3, -4]]), entropy=jnp.array([[4.0, 9, 9], [1, 2, 3]]))
    terms = policy(ratio=None, trust=score_function()), weighted(term=entropy_bonus(coefficient=0.1), name="entropy")
    loss, metrics = objective(*terms)(scores, batch)
    assert float(loss) == pytest.approx((1 + 3) / 2 - 0.1 * 2.5)
    assert float(metrics["loss/entropy_bonus"]) == pytest.approx(-0.25)
    assert objective(*terms).annotations == {"weight:entropy"} and objective(*terms).needs == {"entropy"}
    with pytest.raises(ValueError, match="make it a term of the objective"):
        objective(scaled(term=terms[1], coefficient=2.0))(scores, batch)
    with pytest.raises(ValueError, match="weight:other"):
        objective(weighted(term=entropy_bonus(), name="other"))(scores, batch)


def test_rows_with_shares_of_a_term_alone_are_kept_and_parts_are_scaled():
    found = estimated(named_weighting(name="entropy", weighting=token_mean())).replace(weight=0 * MASK)
    assert has_weight(found).all()
    np.testing.assert_allclose(scale_weights(found, 2).extras["weight:entropy"], MASK / 2, rtol=1e-6)


@functools.cache
def program(terms, micro_batches):
    made = objective(*terms)
    scorer = make_scorer(tiny_policy.policy, made.needs)

    def run(params, batch):
        scores, gradient = make_gradient(scorer, made, micro_batches)(params, batch)
        return made(scores, batch)[0], gradient

    return jit(run)


REJECTION = objectives.rejection(kind="k2", over="token", high=0.02, of="policy")


@pytest.mark.parametrize("term", [
    weighted(term=entropy_bonus(coefficient=0.3), name="entropy"),
    policy(factors=(renormalised(factor=REJECTION),)),
    policy(factors=(renormalised(factor=REJECTION, over="sequence"),)),
])  # fmt: skip
def test_splits_do_not_matter(term):
    params = tiny_policy.init()
    rollouts = tiny_policy.random_rollouts(params)
    estimator = chain(estimators.group_advantage(), sequence_mean(), named_weighting(name="entropy", weighting=token_mean()))
    found = jax.tree.map(np.asarray, estimator.update(rollouts, estimator.init(), jax.random.key(0))[0])
    expected = program((term,), 1)(params, pack(found, 12))
    for batch in (pack(found, 24), pack(found, 12, rows=9)):
        actual = program((term,), 3)(params, batch)
        np.testing.assert_allclose(actual[0], expected[0], rtol=2e-5, atol=2e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), actual[1], expected[1])


@pytest.mark.parametrize("over", ["batch", "sequence"])
@pytest.mark.parametrize("options", [{"over": "token", "low": -0.2, "high": 0.2}, {"over": "mean", "high": 0.05}])
@brief
@given(case=batch_cases())
def test_renormalised(over, options, case):
    mask = functools.partial(oracle.rejection, **options)
    factor = functools.partial(oracle.renormalised, factor=mask, over=over)
    expected = functools.partial(oracle.surrogate, ratio=None, trust=oracle.plain_score, factors=(factor,))
    ours = renormalised(factor=objectives.rejection(**options), over=over)
    harness.check(policy(ratio=None, trust=score_function(), factors=(ours,)), case, expected)


def test_what_is_rejected_leaves_the_mean():
    """Two of four tokens are kept: the mean is over two; by sequences, over the one that has them."""
    kept = np.array([[0, 0, 0], [1, 1, 0]], np.float32)
    ratio = np.where(kept > 0, 0.0, 5.0) * MASK
    for weight, over, share in ((MASK / 4, "batch", 1 / 2), (MASK / LENGTHS[:, None] / 2, "sequence", 1 / 2)):
        batch = Batch(
            tokens=np.zeros((2, 3), np.int32), mask=MASK, weight=weight, behavior_logp=-8 * MASK,
            advantage=MASK, extras={"proximal_logp": -8 * MASK + ratio}, rollout=np.array([[0] * 3, [1] * 3], np.int32),
        )  # fmt: skip
        drop = objectives.rejection(kind="k2", over="token", high=1.0)
        loss = objective(policy(ratio=None, trust=score_function(), factors=(renormalised(factor=drop, over=over),)))
        found = jax.grad(lambda logp, batch=batch, loss=loss: loss(Scores(logp=logp), batch)[0])(jnp.float32(-MASK))
        np.testing.assert_allclose(found, -share * kept, rtol=1e-6)
    with pytest.raises(ValueError, match="over is 'row'"):
        objective(policy(factors=(renormalised(factor=drop, over="row"),)))(Scores(logp=jnp.float32(-MASK)), batch)
