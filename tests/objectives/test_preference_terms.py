"""Losses on pairs against their oracle, link by link, and in the cases that are known by hand."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from oracles import harness
from oracles import preference_terms as oracle
from oracles.cases import batch_cases, brief
from oracles.tiny_policy import jit

from jaxrl_llm import objectives
from jaxrl_llm.types import Batch, Scores

LINKS = [
    ("sigmoid_link", {"beta": 0.3}),
    ("sigmoid_link", {"beta": 0.3, "smoothing": 0.2, "margin": 0.4}),
    ("robust_link", {"flip_rate": 0.2}),
    ("biased_link", {"beta": 0.4, "bias": 0.7}),
    ("hinge_link", {"beta": 0.4, "margin": 0.8}),
    ("ipo_link", {"beta": 0.5}),
    ("exo_link", {"beta": 0.3, "smoothing": 0.05}),
    ("nca_link", {"beta": 0.3}),
    ("bco_link", {"beta": 0.3}),
    ("sppo_link", {"beta": 0.5}),
    ("apo_zero_link", {"beta": 0.3}),
    ("apo_down_link", {"beta": 0.3}),
    ("discopop_link", {}),
    ("positive_link", {"penalty": 2.0}),
]
EVIDENCE = {
    "likelihood": ({}, {}),
    "anchored_ratio": ({"share": 0.3}, {"share": 0.3}),
    "length_bonus": ({"bonus": 0.2}, {"bonus": 0.2}),
}
TRANSFORMS = [("alpha_transform", {"alpha": a}) for a in (0.0, 0.5, 1.0)] + [("jensen_shannon_transform", {})]


@pytest.fixture
def paired():
    """Most rollouts of a case in groups of one preferred and one other; some groups stay as they were drawn."""

    def arrange(case):
        numbers = np.unique(case.rollout[case.mask > 0])
        random = np.random.default_rng(int(case.tokens.sum()))
        kept = random.random(len(numbers)) < 0.15
        for rank, number in enumerate(random.permutation(numbers)):
            here = case.rollout == number
            case.group[here] = 40 + rank // 2
            if not kept[rank]:
                case.preference[here & (case.mask > 0)] = 1.0 - 2.0 * (rank % 2)
        return case

    return arrange


def test_most_links_meet_pairs(paired):
    """The cases are worth something: pairs occur."""
    counts = []

    @brief
    @given(case=batch_cases())
    def count(case):
        counts.append(len(oracle.pairs_of(paired(case))))

    count()
    assert sum(counts) > len(counts)


@pytest.mark.parametrize(("name", "options"), LINKS)
@brief
@given(case=batch_cases())
def test_links(name, options, paired, case):
    paired(case)
    if name == "positive_link":
        assume(not (case.logp == case.reference_logp)[case.mask > 0].any())  # at 0 the penalty has a kink
    link = getattr(objectives, name)(**options)
    expected = functools.partial(oracle.preference, link=functools.partial(getattr(oracle, name), **options))
    harness.check(objectives.preference(link=link), case, expected)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("name", EVIDENCE)
@brief
@given(case=batch_cases())
def test_evidence(name, average, paired, case):
    ours, theirs = EVIDENCE[name]
    term = objectives.preference(evidence=getattr(objectives, name)(**ours), average=average)
    evidence = functools.partial(getattr(oracle, name), **theirs)
    harness.check(term, paired(case), functools.partial(oracle.preference, evidence=evidence, average=average))


@pytest.mark.parametrize("average", [True, "transformed"])
@pytest.mark.parametrize(("name", "options"), TRANSFORMS)
@brief
@given(case=batch_cases())
def test_transforms(name, options, average, paired, case):
    term = objectives.preference(transform=getattr(objectives, name)(**options), average=average)
    transform = functools.partial(getattr(oracle, name), **options)
    harness.check(term, paired(case), functools.partial(oracle.preference, transform=transform, average=average))


@pytest.mark.parametrize("average", ["transformed", "both"])
@brief
@given(case=batch_cases())
def test_averages_that_mean_nothing_are_refused(average, paired, case):
    with pytest.raises(ValueError, match="average"):
        harness.program(objectives.objective(objectives.preference(average=average)))(*harness.build(paired(case)))


@brief
@given(case=batch_cases())
def test_log_odds(paired, case):
    term = objectives.preference(evidence=objectives.likelihood(), average=True, transform=objectives.log_odds())
    expected = functools.partial(oracle.preference, evidence=oracle.likelihood, average=True, transform=oracle.log_odds)
    harness.check(term, paired(case), expected)


@pytest.mark.parametrize("name", ["token_guidance", "beyond_shared_length"])
@brief
@given(case=batch_cases())
def test_factors(name, paired, case):
    term = objectives.preference(factors=(getattr(objectives, name)(alpha=0.3),))
    factor = functools.partial(getattr(oracle, name), alpha=0.3)
    harness.check(term, paired(case), functools.partial(oracle.preference, factor=factor))


@brief
@given(case=batch_cases())
def test_importance(paired, case):
    term = objectives.preference(importance=objectives.collision_ratio())
    harness.check(term, paired(case), functools.partial(oracle.preference, importance=oracle.collision_ratio))


@pytest.mark.parametrize("average", [False, True])
@brief
@given(case=batch_cases())
def test_chosen_likelihood(average, paired, case):
    term = objectives.chosen_likelihood(coefficient=0.4, average=average)
    harness.check(term, paired(case), functools.partial(oracle.chosen_likelihood, coefficient=0.4, average=average))


@brief
@given(case=batch_cases())
def test_chosen_token_likelihood(paired, case):
    term = objectives.chosen_token_likelihood(coefficient=0.4)
    harness.check(term, paired(case), functools.partial(oracle.chosen_token_likelihood, coefficient=0.4))


@pytest.mark.parametrize("paired_sides", [False, True])
@brief
@given(case=batch_cases())
def test_quantile_preference(paired_sides, paired, case):
    term = objectives.quantile_preference(link=objectives.sigmoid_link(beta=0.3, smoothing=0.1), paired=paired_sides)
    link = functools.partial(oracle.sigmoid_link, beta=0.3, smoothing=0.1)
    assume(not (case.logp == case.reference_logp)[case.mask > 0].any())  # ties of quantiles have a kink
    harness.check(term, paired(case), functools.partial(oracle.quantile_preference, link=link, paired=paired_sides))


def six(seed=0, complete=True):
    """Two groups of six rollouts, of which the second may lack one; answers of one to three tokens."""
    random = np.random.default_rng(seed)
    roles = [(a, b) for a in (1, -1) for b in (0, 1, -1)] * 2
    shape = (12, 3)
    mask = (np.arange(3) < random.integers(1, 4, 12)[:, None]).astype(np.float32)
    fields = {
        "logp": -random.exponential(1.0, shape), "reference_logp": -random.exponential(1.0, shape),
        "weight": mask * random.exponential(1.0, shape), "mask": mask, "rollout": np.tile(np.arange(12)[:, None], (1, 3)),
        "group": np.tile(np.repeat([5, 3], 6)[:, None], (1, 3)),
        "preference": np.tile(np.array(roles)[:, :1], (1, 3)), "revises": np.tile(np.array(roles)[:, 1:], (1, 3)),
    }  # fmt: skip
    if not complete:
        fields["preference"][7] = 0
    order = random.permutation(12)
    return types.SimpleNamespace(**{name: value[order] for name, value in fields.items()})


def six_batch(case):
    names = ("mask", "weight", "rollout", "group", "reference_logp")
    return Batch(
        tokens=np.zeros(case.mask.shape, np.int32),
        **{name: jnp.asarray(getattr(case, name)) for name in names},
        extras={name: jnp.asarray(getattr(case, name), jnp.float32) for name in ("preference", "revises")},
    )


@pytest.mark.parametrize("complete", [True, False])
def test_self_improving(complete):
    case = six(complete=complete)
    batch = six_batch(case)
    term = objectives.objective(objectives.self_improving(alpha=0.3))
    run = jit(jax.value_and_grad(lambda logp: term(Scores(logp=logp), batch)[0]))
    loss, gradient = run(jnp.asarray(case.logp, jnp.float32))
    live = types.SimpleNamespace(logp=case.logp.astype(np.longdouble))
    expected = harness.differences(lambda: oracle.self_improving(live, case, alpha=0.3), live.logp, case.mask)
    np.testing.assert_allclose(loss, float(oracle.self_improving(live, case, alpha=0.3)), rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(gradient).max() > 0.01


@pytest.mark.reduction("srpo", "ipo")
@pytest.mark.parametrize(("alpha", "factor"), [(0.0, 4.0), (1.0, 2.0)])
def test_self_improving_without_a_look_at_the_shown_answer_is_ipo(alpha, factor):
    """Where d(a|b) = g(a), both errors are multiples of (d - 1 / (2 beta))^2 with d = g(w) - g(l)."""
    beta, case = 0.4, six()
    gains = {(g, a): 0.3 * g + 0.7 * a for g in (5, 3) for a in (1, -1)}
    live = types.SimpleNamespace(logp=np.zeros(case.mask.shape))
    case.reference_logp = np.zeros(case.mask.shape)
    for n in range(12):
        live.logp[n, 0] = gains[int(case.group[n, 0]), int(case.preference[n, 0])]
    expected = sum(
        case.weight[case.group == g].sum() * factor * beta**2 * (gains[g, 1] - gains[g, -1] - 0.5 / beta) ** 2 for g in (5, 3)
    )
    term = objectives.objective(objectives.self_improving(alpha=alpha, beta=beta))
    loss, _ = jit(term)(Scores(logp=jnp.asarray(live.logp, jnp.float32)), six_batch(case))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize(("link", "expected"), [
    (objectives.sigmoid_link(beta=1.0), np.log1p(np.exp(-2.0))),
    (objectives.sigmoid_link(beta=1.0, margin=2.0), np.log(2.0)),
    (objectives.hinge_link(beta=0.25), 0.5),
    (objectives.hinge_link(beta=1.0), 0.0),
    (objectives.ipo_link(beta=0.25), 0.0),
    (objectives.sppo_link(beta=0.25), 2.0),
    (objectives.apo_zero_link(beta=0.0), 1.0),
    (objectives.nca_link(beta=0.0), 2 * np.log(2.0)),
    (objectives.positive_link(beta=1.0), np.log1p(np.exp(-2.0))),
    (objectives.biased_link(beta=1.0, bias=-1.0), np.log1p(np.exp(0.0))),
    (objectives.robust_link(beta=0.0, flip_rate=0.3), np.log(2.0)),
    (objectives.discopop_link(beta=0.0), 0.5 * np.log(2.0) + 0.5),
])  # fmt: skip
def test_links_by_hand(link, expected):
    """c = 1, r = -1: a difference of 2."""
    np.testing.assert_allclose(link(jnp.float32(1.0), jnp.float32(-1.0)), expected, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), LINKS)
def test_links_are_finite_everywhere(name, options):
    link = getattr(objectives, name)(**options)
    rewards = jnp.asarray([-20000.0, -60.0, 0.0, 60.0, 20000.0])
    c, r = (grid.ravel() for grid in jnp.meshgrid(rewards, rewards))
    assert np.isfinite(link(c, r)).all()
    assert all(np.isfinite(g).all() for g in jax.grad(lambda *x: link(*x).sum(), argnums=(0, 1))(c, r))


@pytest.mark.parametrize(("name", "options"), TRANSFORMS)
def test_transforms_of_a_log_ratio_begin_like_it(name, options):
    """f-divergence scores differ from the log-ratio by second-order terms, but for Jensen-Shannon's slope of 1/2."""
    transform = getattr(objectives, name)(**options)
    slope = 0.5 if name == "jensen_shannon_transform" else 1.0
    np.testing.assert_allclose(transform(jnp.float32(0.0)), 0.0, atol=1e-7)
    np.testing.assert_allclose(jax.grad(transform)(0.0), slope, rtol=1e-6)
    assert all(np.isfinite(jax.grad(transform)(x)) and np.isfinite(transform(x)) for x in (-3e4, 3e4))


@pytest.mark.parametrize(("refused", "options", "message"), [
    ("sigmoid_link", {"smoothing": 0.5}, "smoothing is 0.5.*below 1/2"),
    ("robust_link", {"flip_rate": -0.1}, "flip_rate is -0.1.*at least 0"),
    ("exo_link", {"smoothing": 0.0}, "smoothing is 0.0.*above 0"),
    ("discopop_link", {"temperature": 1.0}, "temperature is 1.0"),
    ("ipo_link", {"beta": 0.0}, "beta is 0.0"),
    ("sppo_link", {"beta": -0.1}, "beta is -0.1"),
])  # fmt: skip
def test_bad_options_are_refused(refused, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(objectives, refused)(**options)(jnp.zeros(1), jnp.zeros(1))


def test_the_packing_and_the_order_of_rollouts_do_not_matter():
    """Two pairs in four rows, or all in one row in another order."""
    random = np.random.default_rng(3)
    logp, reference = (-random.exponential(1.0, (4, 3)).astype(np.float32) for _ in range(2))
    rows = {"logp": logp, "reference_logp": reference, "rollout": np.arange(4), "group": [0, 1, 1, 0]}
    rows["preference"] = np.array([1.0, -1.0, 1.0, -1.0])
    term = objectives.objective(objectives.preference(link=objectives.ipo_link()))

    def value(order, shape):
        def lay(values):
            values = np.asarray(values)[order]
            return (values if values.ndim == 2 else np.tile(values[:, None], (1, 3))).reshape(shape)

        batch = Batch(
            tokens=np.zeros(shape, np.int32),
            mask=np.ones(shape, np.float32),
            segment=lay(np.arange(4)) + 1,
            rollout=lay(rows["rollout"]),
            group=lay(rows["group"]),
            reference_logp=lay(rows["reference_logp"]),
            extras={"preference": lay(rows["preference"])},
        )
        return jit(term)(Scores(logp=lay(rows["logp"])), batch)[0]

    np.testing.assert_allclose(value([0, 1, 2, 3], (4, 3)), value([2, 0, 3, 1], (1, 12)), rtol=1e-6)
