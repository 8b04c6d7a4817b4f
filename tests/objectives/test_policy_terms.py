"""Values and gradients of ratios, trust regions, regressions, factors and divergences of policies against their oracles."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from oracles import harness
from oracles import policy_terms as oracle
from oracles.cases import batch_cases, brief

from jaxrl_llm import objectives
from jaxrl_llm.objectives import kl, policy, score_function, token_ratio, unclipped
from jaxrl_llm.types import Batch, Scores

RATIOS = [
    ("sequence_mean_ratio", "sequence_ratio", {}),
    ("sequence_total_ratio", "sequence_total_ratio", {}),
    ("arithmetic_sequence_ratio", "arithmetic_sequence_ratio", {}),
    ("sequence_token_ratio", "sequence_token_ratio", {}),
    ("sequence_mean_ratio", "sequence_ratio", {"highest": 0.05}),
    ("sequence_token_ratio", "sequence_token_ratio", {"highest": 0.05}),
    ("geometric_ratio", "geometric_ratio", {"low": 0.2, "high": 0.3}),
    ("turn_ratio", "turn_ratio", {"against": "proximal"}),
    ("turn_ratio", "turn_ratio", {"total": True}),
    ("likelihood", "likelihood", {}),
    ("mixture_ratio", "mixture_ratio", {}),
    ("mixture_ratio", "mixture_ratio", {"other": "behavior", "share": 0.5}),
]
TRUSTS = [
    ("flipped", {}),
    ("flipped", {"low": 0.1, "high": 0.3, "cap": 1.5}),
    ("sapo", {}),
    ("vespo", {}),
    ("gradient_preserving_clip", {}),
    ("gradient_preserving_clip", {"low_gradient": 0.5, "high_gradient": 0.25, "dual": 1.5, "high": 0.1}),
    ("shaped", {}),
    ("probability_clip", {}),
    ("proximal_clip", {"low": 0.1, "high": 0.3}),
    ("balanced_clip", {}),
    ("balanced_clip", {"lower": (0.8, 0.95), "upper": (1.1, 1.5), "step": 0.1, "positive_share": 0.4, "dual": None}),
    ("entropy_clip", {"widening": 0.5, "level": 0.5, "dual": None}),
    ("dro", {"beta": 0.3}),
    ("nft", {}),
    ("nft", {"weighting": "failure", "negative": 0.5, "floor": 0.3}),
    ("nft", {"weighting": "none"}),
    ("rover", {"rho": 0.5}),
    ("rpg", {"beta": 0.2, "direction": "reverse", "normalised": True}),
    ("rpg", {"beta": 0.2, "direction": "forward", "dual": None}),
    ("rpg", {"beta": 0.2, "direction": "forward", "normalised": True, "style": "differentiable"}),
    ("rpg", {"beta": 0.2, "direction": "reverse", "style": "differentiable"}),
]
FACTORS = [
    ("top_entropy_mask", {"share": 0.3}),
    ("top_entropy_mask", {"share": 0.5, "of": "proximal"}),
    ("top_covariance_mask", {"share": 0.25}),
    ("second_moment_mask", {}),
    ("second_moment_mask", {"harmful_only": True, "budget": 0.1}),
    ("divergence_mask", {"low": 0.05, "high": 0.1}),
    ("divergence_mask", {"kind": "kl", "low": 0.01, "high": 0.02, "against": "proximal"}),
    ("divergence_mask", {"symmetric": True, "low": 0.1, "high": 0.05}),
    ("ring_mask", {}),
    ("ring_mask", {"two_sided": True, "far_low": 0.4, "far_high": 0.5}),
    ("focal", {}),
    ("positive_advantage", {}),
    ("entropy_scale", {"strength": 0.5, "level": 0.5}),
    ("entropy_scale", {"widening": 0.0, "level": 0.5}),
    ("importance_weight", {}),
    ("importance_weight", {"high": 1.2}),
    ("importance_weight", {"low": 0.8, "high": 1.2, "outside": "mask", "of": "policy"}),
    ("rejection", {"high": 0.05}),
    ("rejection", {"kind": "k2", "over": "sum", "low": 0.01, "high": 0.3}),
    ("rejection", {"kind": "k3", "over": "max", "high": 0.2, "of": "policy"}),
    ("rejection", {"over": "token", "low": -0.2, "high": 0.2, "among": "negative"}),
    ("rejection", {"kind": "tv", "over": "mean", "high": 0.2, "among": "leaving"}),
]


@pytest.mark.parametrize(("reference", "name", "options"), RATIOS)
@brief
@given(case=batch_cases())
def test_ratio(reference, name, options, case):
    """Under a clip, and by value."""
    ratio = getattr(objectives, name)(**options)
    theirs = functools.partial(getattr(oracle, reference), **options)
    expected = functools.partial(oracle.surrogate, ratio=theirs, trust=oracle.plain_clip)
    harness.check(policy(ratio=ratio), case, expected)
    np.testing.assert_allclose(ratio(*harness.build(case)), theirs(*[extended(case)] * 2).astype(float), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("options", [{"high": 1.2}, {"low": 0.8, "high": 1.2, "outside": "mask"}])
@brief
@given(case=batch_cases())
def test_corrected_total_ratio(options, case):
    theirs = functools.partial(oracle.corrected_total_ratio, **options)
    trust = functools.partial(oracle.bounded_weight, high=0.3, low=0.2)
    expected = functools.partial(oracle.surrogate, ratio=theirs, trust=trust)
    ratio = objectives.corrected_total_ratio(weight=objectives.importance_weight(**options))
    harness.check(policy(ratio=ratio, trust=objectives.cispo(high=0.3, low=0.2)), case, expected)


@pytest.mark.parametrize("against", ["behavior", "proximal"])
@brief
@given(case=batch_cases())
def test_policy_gap(against, case):
    metrics = harness.check(objectives.policy_gap(against=against), case, lambda live, case: np.longdouble(0.0))
    for name, expected in oracle.policy_gap(extended(case), against=against).items():
        np.testing.assert_allclose(metrics[f"gap/{name}"], float(expected), rtol=2e-4, atol=1e-5, err_msg=name)


@brief
@given(case=batch_cases())
def test_prefix_ratio(case):
    """As MinPRO uses it, without gradient."""
    theirs = functools.partial(oracle.prefix_ratio)
    trust = functools.partial(oracle.bounded_weight, high=0.3, low=0.2)
    expected = functools.partial(oracle.surrogate, ratio=theirs, trust=trust)
    term = policy(ratio=objectives.prefix_ratio(), trust=objectives.cispo(high=0.3, low=0.2))
    harness.check(term, case, expected)


@pytest.mark.parametrize(("name", "options"), TRUSTS)
@brief
@given(case=batch_cases())
def test_trust(name, options, case):
    sequences = name == "vespo"
    ratio = objectives.sequence_total_ratio() if sequences else token_ratio()
    theirs = oracle.sequence_total_ratio if sequences else oracle.tokens
    trust = functools.partial(getattr(oracle, name), **options)
    expected = functools.partial(oracle.surrogate, ratio=theirs, trust=trust)
    harness.check(policy(ratio=ratio, trust=getattr(objectives, name)(**options)), case, expected)


@pytest.mark.parametrize(("name", "options"), FACTORS)
@brief
@given(case=batch_cases())
def test_factor(name, options, case):
    factor = functools.partial(getattr(oracle, name), **options)
    expected = functools.partial(oracle.surrogate, ratio=oracle.tokens, trust=oracle.plain_score, factors=(factor,))
    term = policy(trust=score_function(), factors=(getattr(objectives, name)(**options),))
    harness.check(term, case, expected)


@pytest.mark.parametrize("name", ["sequence_total_ratio", "sequence_ratio"])
@brief
@given(case=batch_cases())
def test_weights_of_sequences_normalised_over_the_batch(name, case):
    ratio = {"sequence_total_ratio": oracle.sequence_total_ratio, "sequence_ratio": oracle.sequence_mean_ratio}[name]
    inner = functools.partial(oracle.importance_weight, ratio=ratio, high=2.0)
    factor = functools.partial(oracle.batch_normalised, factor=inner, sequences=True)
    expected = functools.partial(oracle.surrogate, ratio=None, trust=oracle.plain_score, factors=(factor,))
    ours = objectives.batch_normalised(factor=objectives.importance_weight(ratio=getattr(objectives, name)(), high=2.0))
    harness.check(policy(ratio=None, trust=score_function(), factors=(ours,)), case, expected)


def test_a_weight_of_sequences_is_divided_by_the_mean_over_sequences():
    """Log-ratios 0.5 and -0.6 of rows of one and three actions: each row counts once."""
    mask = np.array([[0, 1, 0, 0], [0, 1, 1, 1]], np.float32)
    logp = np.array([[0, 0.5, 0, 0], [0, -0.2, -0.2, -0.2]], np.float32) - 2
    batch = Batch(
        tokens=np.zeros((2, 4), np.int32), mask=mask, behavior_logp=np.full((2, 4), -2, np.float32),
        extras={"proximal_logp": logp},
    )  # fmt: skip
    factor = objectives.batch_normalised(factor=objectives.importance_weight(ratio=objectives.sequence_total_ratio()))
    found = factor(Scores(logp=logp), batch)
    np.testing.assert_allclose(found[0, 1], 1.5005, atol=1e-4)
    np.testing.assert_allclose(found[1, 1:], 0.4995, atol=1e-4)
    token = objectives.batch_normalised(factor=objectives.importance_weight())(Scores(logp=logp), batch)
    mean = (np.exp(0.5) + 3 * np.exp(-0.2)) / 4
    np.testing.assert_allclose(token[0, 1], np.exp(0.5) / mean, rtol=1e-5)


@pytest.mark.parametrize("share", [2e-4, 0.25])
@brief
@given(case=batch_cases())
def test_covariance_clip_mask(share, case):
    _, batch = harness.build(case)
    draws = np.asarray(objectives.token_uniform(batch, 5))
    options = {"share": share, "lowest": 0.1, "highest": 2.0, "low": 0.3, "high": 0.3}
    factor = functools.partial(oracle.covariance_clip_mask, draws=draws, **options)
    trust = functools.partial(oracle.plain_clip, low=0.3, high=0.3)
    expected = functools.partial(oracle.surrogate, ratio=oracle.tokens, trust=trust, factors=(factor,))
    ours = objectives.covariance_clip_mask(seed=5, **options)
    harness.check(policy(trust=objectives.clip(low=0.3, high=0.3), factors=(ours,)), case, expected)


@brief
@given(case=batch_cases())
def test_token_uniform(case):
    _, batch = harness.build(case)

    def draw(seed, *numbers):
        key = jax.random.key(seed)
        for number in numbers:
            key = jax.random.fold_in(key, number)
        return jax.random.uniform(key)

    found = objectives.token_uniform(batch, 3)
    rows = batch.replace(**{name: getattr(batch, name)[:1] for name in BATCH_FIELDS}, extras={})
    np.testing.assert_array_equal(found[:1], oracle.token_uniform(draw, rows, 3))
    moved = jax.tree.map(lambda x: np.asarray(x)[::-1] if np.ndim(x) > 1 else x, batch)
    moved = moved.replace(rollout=moved.rollout[::-1], group=moved.group[::-1])
    np.testing.assert_array_equal(objectives.token_uniform(moved, 3)[::-1], found)


BATCH_FIELDS = (
    "tokens", "mask", "positions", "segment", "rollout", "group", "advantage", "weight", "behavior_logp", "reference_logp",
    "returns",
)  # fmt: skip


@pytest.mark.parametrize("options", [
    {"kind": "abs"},
    {"kind": "k1+"},
    {"kind": "k3+"},
    {"kind": "abs+", "against": "proximal"},
    {"kind": "k3", "against": "teacher"},
    {"kind": "k3", "bound": 0.1},
    {"kind": "k1", "bound": 0.2, "against": "behavior"},
    {"kind": "k3", "ratio_bound": 0.3},
    {"kind": "k2", "ratio_bound": None},
])  # fmt: skip
@brief
@given(case=batch_cases())
def test_kl(options, case):
    expected = functools.partial(oracle.kl_terms, coefficient=0.3, **options)
    harness.check(kl(coefficient=0.3, **options), case, expected)


@pytest.mark.parametrize(("name", "theirs"), [("token_ratio", "tokens"), ("own_ratio", "own_ratio")])
@brief
@given(case=batch_cases())
def test_kl_with_a_ratio_that_has_a_gradient(name, theirs, case):
    expected = functools.partial(oracle.kl_terms, coefficient=0.3, kind="k3", ratio=getattr(oracle, theirs))
    harness.check(kl(coefficient=0.3, ratio=getattr(objectives, name)()), case, expected)


@brief
@given(case=batch_cases())
def test_kl_with_factors(case):
    factors = (functools.partial(oracle.importance_weight, of="policy"), functools.partial(oracle.ring_mask))
    expected = functools.partial(oracle.kl_terms, coefficient=0.3, kind="k3", factors=factors)
    ours = (objectives.importance_weight(of="policy"), objectives.ring_mask())
    harness.check(kl(coefficient=0.3, factors=ours), case, expected)


@brief
@given(case=batch_cases())
def test_advantage_regression(case):
    """With an epsilon that finite differences do not see: where all log-ratios are equal, the deviation has an edge."""
    expected = functools.partial(oracle.advantage_regression, epsilon=0.5)
    harness.check(objectives.advantage_regression(epsilon=0.5), case, expected)


@brief
@given(case=batch_cases())
def test_two_sided_clip_is_the_dual_clip(case):
    trust = functools.partial(oracle.two_sided_clip, low=0.1, high=0.3, delta=1.5)
    expected = functools.partial(oracle.surrogate, ratio=oracle.tokens, trust=trust)
    harness.check(policy(trust=objectives.clip(low=0.1, high=0.3, dual=1.5)), case, expected)


def extended(case):
    """The case with its floats in extended precision."""
    return type(case)(**{
        name: value.astype(np.longdouble) if np.issubdtype(value.dtype, np.floating) else value
        for name, value in vars(case).items()
    })  # fmt: skip


@pytest.mark.parametrize(("make", "message"), [
    (lambda: policy(trust=objectives.sapo(positive=0.0)), "positive=0.0"),
    (lambda: policy(trust=objectives.shaped(gamma=0.0)), "gamma is 0.0; it must be above 0"),
    (lambda: policy(trust=objectives.flipped(cap=1.0)), "cap is 1.0"),
    (lambda: policy(trust=objectives.gradient_preserving_clip(dual=0.5)), "dual is 0.5"),
    (lambda: policy(trust=objectives.balanced_clip(step=0.0)), "step=0.0"),
    (lambda: policy(trust=objectives.balanced_clip(step=1e-6)), "step=1e-06.* more than 10000 bounds"),
    (lambda: policy(trust=objectives.balanced_clip(lower=(0.9, 0.6))), "ranges must not fall"),
    (lambda: policy(trust=objectives.dro(beta=0.0)), "beta is 0.0"),
    (lambda: policy(trust=objectives.nft(weighting="mean")), "weighting is 'mean'"),
    (lambda: policy(trust=objectives.rover(rho=0.0)), "rho is 0.0"),
    (lambda: policy(trust=objectives.rpg(direction="both")), "direction is 'both'"),
    (lambda: policy(trust=objectives.rpg(style="plain")), "style is 'plain'"),
    (lambda: policy(ratio=objectives.mixture_ratio(share=0.0)), "share is 0.0"),
    (lambda: policy(factors=(objectives.importance_weight(outside="drop"),)), "outside is 'drop'"),
    (lambda: policy(factors=(objectives.importance_weight(outside="mask"),)), "needs low or high"),
    (lambda: policy(factors=(objectives.rejection(),)), "needs low or high"),
    (lambda: policy(factors=(objectives.rejection(over="row", high=1.0),)), "over is 'row'"),
    (lambda: policy(factors=(objectives.rejection(among="none", high=1.0),)), "among is 'none'"),
    (lambda: policy(factors=(objectives.rejection(kind="k5", high=1.0),)), "kind of KL estimate is 'k5'"),
    (lambda: policy(factors=(objectives.divergence_mask(kind="js"),)), "kind is 'js'"),
    (lambda: policy(factors=(objectives.ring_mask(far_low=0.5),)), "belong to two_sided=True"),
    (lambda: objectives.advantage_regression(epsilon=0.0), "epsilon is 0.0"),
    (lambda: kl(kind="k4"), "kind of KL estimate is 'k4'"),
])  # fmt: skip
def test_bad_options_are_refused(make, message, plain_case):
    with pytest.raises(ValueError, match=message):
        make()(*harness.build(plain_case))


@pytest.fixture(scope="module")
def plain_case():
    found = []
    brief(given(case=batch_cases())(lambda case: found.append(case)))()
    return found[-1]


def test_coupling_is_found_in_nested_options():
    coupled = [
        policy(trust=objectives.balanced_clip()),
        policy(trust=unclipped(), factors=(objectives.second_moment_mask(),)),
        kl(factors=(objectives.top_covariance_mask(),)),
        policy(factors=(objectives.batch_normalised(factor=objectives.importance_weight()),)),
        objectives.advantage_regression(),
    ]
    assert all(term.coupled for term in coupled)
    assert not policy(trust=objectives.sapo(), factors=(objectives.importance_weight(), objectives.ring_mask())).coupled


def test_what_is_needed_follows_the_options():
    term = policy(ratio=token_ratio(against="proximal"), factors=(objectives.importance_weight(),))
    assert term.annotations == {"proximal_logp", "behavior_logp"}
    assert policy(factors=(objectives.top_entropy_mask(),)).needs == {"entropy"}
    assert "proximal_entropy" in policy(factors=(objectives.top_entropy_mask(of="proximal"),)).annotations
    assert kl(against="teacher").annotations == {"teacher_logp"}
    assert policy(trust=objectives.rover()).needs == {"mean_logp"}
