"""Methods that contrast the samples of a group: what they become on policy, for labels, and in one another's limits."""

import jax
import numpy as np
import pytest
from oracles import tiny_policy, tiny_steps
from oracles.tiny_steps import assert_close, gradient_of

from jaxrl_llm import methods
from jaxrl_llm.estimators import sequence_mean_token_sum


@pytest.fixture(scope="module")
def params():
    return tiny_policy.init()


@pytest.fixture(scope="module")
def threes(params):
    return tiny_steps.rollouts(params, members=3)


@pytest.fixture(scope="module")
def twos(params):
    return tiny_steps.rollouts(params)


@pytest.fixture(scope="module")
def fresh(threes, params):
    """Groups of three that the policy itself has sampled."""
    return on_policy(threes, params)


def on_policy(step, params):
    """The sampler and the reference are the policy itself."""
    batch, scores, _, _ = tiny_steps.value_of(methods.get("copg"), step, params)
    logp = np.zeros(step.mask.shape, np.float32)
    for n in range(len(logp)):
        here = batch.rollout == n
        logp[n, batch.positions[here]] = scores[here]
    return step.replace(behavior_logp=logp, extras=step.extras | {"reference_logp": logp})


def rloo():
    """REINFORCE with leave-one-out baselines, a mean over rows."""
    return methods.get("rloo", kl_coefficient=0.0)


@pytest.mark.reduction("copg", "gvpo")
@pytest.mark.parametrize(("name", "factor"), [("copg", 1.0), ("gvpo", 0.1)])
def test_a_contrast_on_policy_is_leave_one_out(name, factor, fresh, params):
    assert_close(gradient_of(methods.get(name), fresh, params), gradient_of(rloo(), fresh, params), factor, rtol=1e-4)


@pytest.mark.reduction("p3o_joint", "p3o")
def test_a_pair_on_policy_is_leave_one_out(twos, params):
    """P3O's advantage is half the difference of two rewards, so that each answer by itself has half of RLOO's gradient."""
    step = on_policy(twos, params)
    leave_one_out = gradient_of(rloo(), step, params)
    assert_close(gradient_of(methods.get("p3o_joint", kl_coefficient=0.0), step, params), leave_one_out, rtol=1e-4)
    assert_close(gradient_of(methods.get("p3o", kl_coefficient=0.0), step, params), leave_one_out, 0.5, rtol=1e-4)


@pytest.mark.reduction("gvpo", "copg")
def test_a_contrast_with_the_sampler_as_reference(threes, params):
    same = threes.replace(extras=threes.extras | {"reference_logp": threes.behavior_logp})
    assert_close(gradient_of(methods.get("gvpo"), same, params), gradient_of(methods.get("copg"), same, params), 0.1)


def test_gvpo_by_its_formula(threes, params):
    """1/2 the squared difference of centred rewards, over the number of samples less 1; less what no parameter moves."""
    method = methods.get("gvpo", beta=0.3)
    batch, logp, loss, _ = tiny_steps.value_of(method, threes, params)
    ratio, total = (logp - batch.behavior_logp) * batch.mask, threes.rewards.sum(axis=1)
    expected = []
    for g in np.unique(threes.group):
        rows = np.flatnonzero(threes.group == g)
        implied = 0.3 * np.array([ratio[batch.rollout == n].sum() for n in rows])
        given = total[rows] - total[rows].mean()
        expected.append(0.5 * ((implied - implied.mean() - given) ** 2 - given**2).sum() / (len(rows) - 1))
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-4)


@pytest.mark.reduction("rebel")
def test_rebel_by_its_formula(twos, params):
    """((l_1 - l_2) / eta - (r_1 - r_2))^2 but for what no parameter moves, the mean over prompts."""
    method, eta = methods.get("rebel", eta=0.5), 0.5
    batch, logp, loss, _ = tiny_steps.value_of(method, twos, params)
    ratio, total = (logp - batch.behavior_logp) * batch.mask, twos.rewards.sum(axis=1)
    expected = []
    for g in np.unique(twos.group):
        first, second = np.flatnonzero(twos.group == g)
        x, r = (ratio[batch.rollout == first].sum() - ratio[batch.rollout == second].sum()) / eta, total[first] - total[second]
        expected.append((x - r) ** 2 - r**2)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-4)


@pytest.mark.reduction("drpo", "disco")
def test_drpo_at_a_high_temperature_is_disco(threes, params):
    same = {"kl_coefficient": 0.0}
    flat = gradient_of(methods.get("drpo", brevity=1e6, **same), threes, params)
    assert_close(flat, gradient_of(methods.get("disco", **same), threes, params), rtol=1e-3)


@pytest.mark.reduction("disco_ratio", "disco")
def test_disco_on_policy_has_one_gradient_for_both_scores(fresh, params):
    """At ratio 1 the slope of a ratio is that of its logarithm, and all wrong answers of a group score alike."""
    same = {"kl_coefficient": 0.0}
    ratio = gradient_of(methods.get("disco_ratio", **same), fresh, params)
    assert_close(ratio, gradient_of(methods.get("disco", temperature=1e4, **same), fresh, params), rtol=1e-2)


@pytest.mark.reduction("listwise_dpo", "online_dpo")
def test_a_list_of_two_is_a_pair(twos, params):
    listed = gradient_of(methods.get("listwise_dpo", samples=2), twos, params)
    assert_close(listed, gradient_of(methods.get("online_dpo"), twos, params))


@pytest.mark.reduction("tpo_tree", "lipo")
def test_trees_without_weights_of_steps_are_lists(threes, params):
    tree = gradient_of(methods.get("tpo_tree", samples=3, beta=0.05), threes, params)
    assert_close(tree, gradient_of(methods.get("lipo", samples=3), threes, params))


@pytest.mark.reduction("a_star_po")
def test_a_star_po_on_policy_is_reinforce_with_the_optimal_value(fresh, params):
    """At log-ratio 0 the slope of (beta l - A)^2 is -2 beta A."""
    regression = methods.get("a_star_po", beta=0.25)
    advantage = tiny_steps.estimated(regression, fresh).advantage
    reinforce = methods.get("reinforce").objective
    expected = methods.Method("plain", "-", "-", None, sequence_mean_token_sum(), reinforce)
    assert_close(gradient_of(regression, fresh, params), gradient_of(expected, fresh.replace(advantage=advantage), params), 0.5)


@pytest.mark.reduction("gepo", "reinforce_plus_plus")
def test_gepo_without_preferences_is_reinforce_plus_plus(threes, params):
    found = gradient_of(methods.get("gepo", coefficient=0.0, kl_coefficient=0.0), threes, params)
    assert_close(found, gradient_of(methods.get("reinforce_plus_plus", kl_coefficient=0.0), threes, params))


@pytest.mark.parametrize("name", ["copg", "gvpo", "rebel", "p3o_joint", "disco", "drpo", "gepo", "listwise_dpo", "lipo"])
def test_rows_without_rewards_have_no_part(name, threes, params):
    """A missing reward is neither a bad nor a wrong one."""
    gone = np.arange(12) % 4 == 0
    missing = threes.replace(rewards=np.where(gone[:, None], np.nan, threes.rewards))
    other = missing.replace(tokens=np.where(gone[:, None], (threes.tokens + 3) % 32, threes.tokens))
    found = gradient_of(methods.get(name), missing, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert_close(gradient_of(methods.get(name), other, params), found)
