"""Methods on pairs and on labelled answers: what they become in the cases that their papers name."""

import jax
import numpy as np
import pytest
from oracles import tiny_policy, tiny_steps
from oracles.tiny_steps import assert_close, gradient_of

from jaxrl_llm import methods, objectives
from jaxrl_llm.data.packing import pack
from jaxrl_llm.types import Rollouts, Scores

ALONE, REVISED = ((1, 0), (-1, 0)), tuple((a, b) for a in (1, -1) for b in (0, 1, -1))


@pytest.fixture(scope="module")
def params():
    return tiny_policy.init()


@pytest.fixture(scope="module")
def pairs(params):
    return tiny_steps.rollouts(params)


REDUCTIONS = {  # method and options -> the method and options that it then is, and the factor of the gradient
    "conservative DPO without noise": ("cdpo", {"smoothing": 0.0}, "dpo", {}, 1.0),
    "robust DPO without noise": ("rdpo", {"flip_rate": 0.0}, "dpo", {}, 1.0),
    "RPO without imitation": ("rpo", {"eta": 0.0, "beta": 0.1}, "dpo", {}, 1.0),
    "the reverse KL": ("f_dpo", {"alpha": 0.0}, "dpo", {}, 1.0),
    "all tokens count": ("ld_dpo", {"alpha": 1.0}, "dpo", {}, 1.0),
    "no bonus for length": ("length_regularised_dpo", {"alpha": 0.0}, "dpo", {}, 1.0),
    "no guidance": ("tgdpo", {"alpha": 0.0}, "dpo", {}, 1.0),
    "no penalty": ("dpo_positive", {"penalty": 0.0, "beta": 0.1}, "dpo", {}, 1.0),
    "a mixture of one loss": ("mpo", {"relative": 1.0, "absolute": 0.0, "imitation": 0.0}, "dpo", {}, 1.0),
    "pairs with goals": ("reward_augmented_dpo", {"beta": 0.1, "smoothing": 0.0}, "dpo", {}, 1.0),
    "no exploration": ("xpo", {"alpha": 0.0}, "dpo", {}, 1.0),
    "the reference alone": ("inpo", {"share": 1.0, "eta": 0.1}, "ipo", {}, 1.0),
    "the log reward": ("alphapo", {"alpha": 0.0, "beta": 2.0, "gamma": 0.5}, "simpo", {}, 1.0),
    "no bias": ("cpl", {"bias": 1.0}, "cpo", {"imitation": 0.0}, 1.0),
    "means for sums": ("dppo_pbrl", {"temperature": 0.5}, "simpo", {"gamma": 0.0}, 1.0),
    # An average over all rows is half of one over pairs of them.
    "anchored pairs": ("apo_zero", {}, "apo_zero_unpaired", {}, 2.0),
}


@pytest.mark.reduction(*(reduced for reduced, *_ in REDUCTIONS.values()))
@pytest.mark.parametrize("case", REDUCTIONS)
def test_reductions(case, pairs, params):
    name, options, other, settings, factor = REDUCTIONS[case]
    found = gradient_of(methods.get(name, **options), pairs, params)
    assert_close(found, gradient_of(methods.get(other, **settings), pairs, params), factor)


@pytest.mark.reduction("tgdpo")
def test_a_teacher_that_is_the_reference_guides_nothing(pairs, params):
    same = pairs.replace(extras=pairs.extras | {"teacher_logp": pairs.extras["reference_logp"]})
    assert_close(gradient_of(methods.get("tgdpo"), same, params), gradient_of(methods.get("dpo"), pairs, params))


@pytest.mark.reduction("aot", "aot_unpaired")
@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_the_quantiles_of_one_pair_are_the_pair(name, pairs, params):
    single = pairs.replace(valid=(pairs.group == pairs.group[0]).astype(np.float32))
    single = single.replace(mask=single.mask * single.valid[:, None])
    assert_close(gradient_of(methods.get(name, beta=0.1), single, params), gradient_of(methods.get("dpo"), single, params))


@pytest.mark.reduction("online_dpo", "ipo_md")
@pytest.mark.parametrize(("online", "offline"), [("online_dpo", "dpo"), ("ipo_md", "ipo")])
def test_two_samples_are_the_pair_that_their_rewards_make(online, offline, pairs, params):
    total = pairs.rewards.sum(axis=1)
    best = np.array([total[n] == total[pairs.group == g].max() for n, g in enumerate(pairs.group)])
    labelled = pairs.replace(extras=pairs.extras | {"preference": np.where(best, 1.0, -1.0).astype(np.float32)})
    bare = pairs.replace(extras={"reference_logp": pairs.extras["reference_logp"]})
    found = gradient_of(methods.get(online), bare, params)
    assert_close(found, gradient_of(methods.get(offline), labelled, params))


@pytest.mark.reduction("bco")
def test_a_classifier_without_a_shift_is_that_of_pairs(pairs, params):
    """Before anything was seen the shift is 0."""
    link = objectives.bco_link()
    both = methods.Method(
        "pairs", "-", "-", None, methods.get("dpo").estimator, objectives.objective(objectives.preference(link=link))
    )
    assert_close(gradient_of(both, pairs, params), gradient_of(methods.get("bco", beta=0.1), pairs, params), 2.0)


@pytest.mark.reduction("kto")
def test_kto_against_no_gain_is_anchored(pairs, params):
    """Where answers are less likely than for the reference on average, the reference point is 0."""
    lower = pairs.replace(extras=pairs.extras | {"reference_logp": np.where(pairs.mask > 0, -0.01, 0).astype(np.float32)})
    found = gradient_of(methods.get("kto", mismatched=False), lower, params)
    assert_close(found, gradient_of(methods.get("apo_zero_unpaired"), lower, params))


@pytest.mark.reduction("kto")
def test_kto_of_mismatched_answers_that_gain_nothing_is_anchored(pairs, params):
    assert "mismatched_ratio" in methods.get("kto").needs
    lower = pairs.replace(extras=pairs.extras | {"mismatched_ratio": np.full(12, -0.5, np.float32)})
    found = gradient_of(methods.get("kto"), lower, params)
    assert_close(found, gradient_of(methods.get("apo_zero_unpaired"), pairs, params))


@pytest.mark.reduction("dpo_norm", "dpo")
def test_means_of_answers_of_one_token_are_sums(pairs, params):
    one = pairs.replace(mask=(np.arange(pairs.mask.shape[1]) == pairs.length[:, None] - 1).astype(np.float32))
    assert_close(gradient_of(methods.get("dpo_norm", beta=0.1), one, params), gradient_of(methods.get("dpo"), one, params))


def test_labelled_answers_that_are_pairs_are_measured_as_such(pairs, params):
    found = [tiny_steps.value_of(methods.get(name), pairs, params)[3]["pair_accuracy"] for name in ("kto", "dpo")]
    np.testing.assert_allclose(*found)
    assert 0 < found[0] < 1


def test_the_shift_of_bco_is_an_average_without_bias():
    name, controller = methods.get("bco", decay=0.9).controllers[0]
    state = controller.init()
    assert name == "reward_shift" and controller.value(state, 0) == 0
    state = controller.update(state, {"reward_center": 3.0})
    np.testing.assert_allclose(controller.value(state, 1), 3.0, rtol=1e-6)
    state = controller.update(state, {"reward_center": 5.0})
    np.testing.assert_allclose(controller.value(state, 2), (0.9 * 3 + 5) / 1.9, rtol=1e-6)


def test_the_mean_of_bco_may_hold_the_batch_itself(pairs, params):
    """Before anything was seen it is that of the batch: rewards against their own mean; later all of both batches."""
    method = methods.get("bco", decay=None)
    _, _, _, found = tiny_steps.value_of(method, pairs, params)
    mean = found["labelled/reward"] / found["labelled/count"]
    np.testing.assert_allclose(found["reward_reference_point"], mean, rtol=1e-5)
    totals = dict(method.controllers)
    state = {name: one.update(one.init(), {"labelled/reward": 6.0, "labelled/count": 4.0}) for name, one in totals.items()}
    values = {name: float(one.value(state[name], 1)) for name, one in totals.items()}
    assert values == {"reward_total": 6.0, "reward_count": 4.0}


def test_ipo_of_trl_takes_means(pairs, params):
    """The two conventions agree where every answer has one token, and only there."""
    one = pairs.replace(mask=(np.arange(pairs.mask.shape[1]) == pairs.length[:, None] - 1).astype(np.float32))
    paper, trl = methods.get("ipo"), methods.get("ipo", convention="trl-1.16")
    assert_close(gradient_of(trl, one, params), gradient_of(paper, one, params))
    with pytest.raises(AssertionError):
        assert_close(gradient_of(trl, pairs, params), gradient_of(paper, pairs, params))


def test_orpo_by_its_formula(pairs, params):
    """-mean over all tokens of log p_w, and -lambda log s(log odds_w - log odds_l), a mean over pairs, by hand."""
    method = methods.get("orpo", coefficient=0.3)
    batch, logp, loss, _ = tiny_steps.value_of(method, pairs, params)
    groups = np.unique(pairs.group)
    expected = -logp[(batch.mask > 0) & (batch.extras["preference"] == 1)].mean()
    for g in groups:
        means = {}
        for sign in (1, -1):
            here = (batch.group == g) & (batch.mask > 0) & (batch.extras["preference"] == sign)
            means[sign] = logp[here].mean()
        odds = {sign: np.log(np.exp(x) / (1 - np.exp(x))) for sign, x in means.items()}
        expected += 0.3 * np.log1p(np.exp(odds[-1] - odds[1])) / len(groups)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_nash_by_hand(params):
    """Of two samples the winner's log-likelihood has the factor 1/2, the loser's -1/2."""
    step = tiny_steps.rollouts(params).replace(extras={"reference_logp": np.zeros((12, 10), np.float32)})
    method = methods.get("nash_md")
    found = tiny_steps.estimated(method, step)
    total = step.rewards.sum(axis=1)
    for n, g in enumerate(step.group):
        won = total[n] == total[step.group == g].max()
        np.testing.assert_allclose(0.5 * found.advantage[n][step.mask[n] > 0], 0.5 if won else -0.5, rtol=1e-4)


@pytest.mark.parametrize(("name", "members", "roles", "sources"), [
    ("tpo", 3, ((1, 0), (-1, 0), (0, 0)), (0, 0, 1)),
    ("srpo", 6, REVISED, (0,)),
    ("xpo", 2, ALONE, (0, 1)),
    ("kto", 1, ALONE, (0,)),
])  # fmt: skip
def test_methods_on_other_groups_than_pairs_learn(name, members, roles, sources, params):
    step = tiny_steps.rollouts(params, members=members, roles=roles, sources=sources)
    step = step.replace(extras=step.extras | {"preference": np.where(np.arange(12) % 3, 1.0, -1.0)}) if members == 1 else step
    gradient = gradient_of(methods.get(name), step, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 1e-4


@pytest.mark.parametrize("name", ["cpo", "orpo"])
def test_imitation_is_a_mean_over_all_chosen_tokens(name):
    """Preferred answers of one token at -3 and of three at -1: 6 / 4, not the mean 2 of their means."""
    method = methods.get(name, **({"beta": 0.0} if name == "cpo" else {"coefficient": 0.0}))
    mask = np.array([[0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1], [0, 1, 0, 0]], np.float32)
    rollouts = Rollouts(
        tokens=np.zeros((4, 4), np.int32), length=np.full(4, 4), mask=mask, rewards=np.zeros((4, 1), np.float32),
        group=np.array([0, 0, 1, 1]), extras={"preference": np.array([1.0, -1.0, 1.0, -1.0], np.float32)},
    )  # fmt: skip
    found = method.estimator.update(rollouts, method.estimator.init(), jax.random.key(0))[0]
    logp = mask * np.array([[-3.0], [-0.5], [-1.0], [-0.5]], np.float32)
    batch = pack(jax.tree.map(np.asarray, found), 4, rows=4)
    imitation = method.objective(Scores(logp=logp[batch.rollout[:, 0]]), batch)[1]["loss/chosen_token_likelihood"]
    np.testing.assert_allclose(imitation, 1.5, rtol=1e-6)


def test_what_other_rows_than_samples_are_is_a_need():
    assert "rows_of_reference" in methods.get("xpo").needs and "rows_of_gold_texts" in methods.get("tpo").needs
    for name in ("chord", "chord_phi", "luffy", "rl_plus"):
        assert not any(need.startswith("rows_of") for need in methods.get(name).needs), "its strategy brings them"


def test_tpo_is_a_mean_over_prompts(params):
    """The contrast is the mean over the pairs, the imitation that over the tokens of gold answers."""
    step = tiny_steps.rollouts(params, members=3, roles=((1, 0), (-1, 0), (0, 0)), sources=(0, 0, 1))
    contrast = gradient_of(methods.get("tpo", imitation=0.0, beta=0.1), step, params)
    assert_close(contrast, gradient_of(methods.get("cpo", imitation=0.0), step, params))
    imitation = gradient_of(methods.get("tpo", beta=0.0), step, params)
    gold = step.replace(valid=(step.source == 1).astype(np.float32))
    assert_close(imitation, gradient_of(methods.get("sft"), gold, params))


@pytest.mark.parametrize(("name", "options", "message"), [
    ("rpo", {"eta": 0.0, "average": True}, "average.*would change nothing"),
])  # fmt: skip
def test_inert_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        methods.get(name, **options)


@pytest.mark.parametrize(("name", "option"), [
    ("length_regularised_dpo", "beta"), ("dppo_pbrl", "temperature"), ("rebel", "eta"),
])  # fmt: skip
def test_divisors_are_above_0(name, option):
    with pytest.raises(ValueError, match=f"{option} is 0.0"):
        methods.get(name, **{option: 0.0})


def test_methods_on_pairs_say_so():
    for name in ("dpo", "simpo", "orpo", "kto", "srpo", "inpo", "aot"):
        assert methods.get(name).learns_from == "pairs"
    assert methods.get("online_dpo").learns_from == "samples" and not methods.get("simpo").needs_reference
    assert methods.get("tgdpo").needs_teacher and methods.get("dpo").objective.coupled
