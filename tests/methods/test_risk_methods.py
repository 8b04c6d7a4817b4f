"""Methods with drifts, risks, constraints, targets and supports: what they become in special cases, and what they refuse."""

import jax
import numpy as np
import pytest
from annotated import annotated_rollouts, estimated
from oracles import tiny_policy, tiny_steps
from oracles.tiny_steps import assert_close, gradient_of

from jaxrl_llm import methods
from jaxrl_llm.estimators import Estimator, chain, group_advantage, sequence_mean_token_sum, token_mean, whiten
from jaxrl_llm.methods.trust_regions import inverse_step_size
from jaxrl_llm.training.methods_of import refuse_missing

MEAN = group_advantage(scale=None)
NAMES = ("ecrm", "counterpol", "cal", "c_morl", "tabnas", "spot", "apo_view", "discovered_po", "mdpo")


@pytest.fixture(scope="module")
def params():
    return tiny_policy.init()


@pytest.fixture(scope="module")
def threes(params):
    return tiny_steps.rollouts(params, members=3)


@pytest.fixture(scope="module")
def fresh(threes, params):
    """Groups of three that the policy itself has sampled, before the step's updates."""
    batch, scores, _, _ = tiny_steps.value_of(methods.get("copg"), threes, params)
    logp = np.zeros(threes.mask.shape, np.float32)
    for n in range(len(logp)):
        here = batch.rollout == n
        logp[n, batch.positions[here]] = scores[here]
    return threes.replace(behavior_logp=logp, extras=threes.extras | {"proximal_logp": logp})


@pytest.fixture(scope="module")
def annotated(params):
    return annotated_rollouts(params)


def reinforce(*parts: Estimator):
    """REINFORCE with other advantages and weights."""
    return methods.Method("plain", "-", "-", None, chain(*parts), methods.get("reinforce").objective)


@pytest.mark.parametrize("name", NAMES)
def test_advantages_are_finite_and_say_something(name, annotated):
    found = estimated(methods.get(name), annotated)
    assert np.isfinite(found.advantage).all() and (found.advantage * found.weight).any()
    assert not found.weight[found.mask == 0].any() and not found.advantage[found.mask == 0].any()


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_rows_does_not_matter(name, annotated):
    order = np.random.default_rng(0).permutation(len(annotated.group))
    moved = jax.tree.map(lambda values: values[order], annotated)
    first, found = (estimated(methods.get(name), each) for each in (annotated, moved))
    np.testing.assert_allclose(found.advantage, first.advantage[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.weight, first.weight[order], rtol=1e-4, atol=1e-6)


@pytest.mark.reduction("discovered_po", "mdpo")
@pytest.mark.parametrize("name", ["discovered_po", "mdpo"])
def test_a_drift_on_policy_is_reinforce(name, fresh, params):
    """Neither drift nor divergence has a slope where policy and sampler agree."""
    expected = gradient_of(reinforce(MEAN, whiten(), token_mean()), fresh, params)
    assert_close(gradient_of(methods.get(name), fresh, params), expected, rtol=1e-4)


@pytest.mark.reduction("grpo_guard", "delay_adapted")
@pytest.mark.parametrize(("name", "rtol"), [("grpo_guard", 1e-2), ("delay_adapted", 1e-4)])
def test_a_correction_on_policy_is_reinforce(name, rtol, fresh, params):
    """GRPO-Guard tells buckets apart by what rounding leaves of the log-ratios, some 1e-7 nats, to 1e-3 that it adds."""
    expected = gradient_of(reinforce(group_advantage(), token_mean()), fresh, params)
    assert_close(gradient_of(methods.get(name), fresh, params), expected, rtol=rtol)


@pytest.mark.reduction("delay_adapted", "tis")
def test_delay_adapted_is_tis_with_the_bound_one():
    assert methods.get("delay_adapted").objective == methods.get("tis", weight_high=1.0).objective


def test_the_step_size_of_mirror_descent_falls_to_nothing():
    schedule = inverse_step_size(steps_total=4)
    np.testing.assert_allclose([schedule(step) for step in (0, 1, 2, 3, 9)], [1, 4 / 3, 2, 4, 4])


def test_far_into_the_run_mirror_descent_is_held_back(threes, params):
    """Off policy, the divergence outweighs the advantages more and more."""
    method = methods.get("mdpo", steps_total=10)
    early, late = (gradient_of(method, threes, params, number=number) for number in (0, 9))
    assert np.abs(late["mix"]).max() > 2 * np.abs(early["mix"]).max()


@pytest.mark.reduction("ecrm")
def test_ecrm_without_risk_is_reinforce_with_the_mean_of_the_group(threes, params):
    plain = gradient_of(reinforce(MEAN, sequence_mean_token_sum()), threes, params)
    assert_close(gradient_of(methods.get("ecrm", share=0.0), threes, params), plain)
    assert_close(gradient_of(methods.get("ecrm", share=1.0, level=1.0), threes, params), plain, rtol=1e-4)


@pytest.mark.reduction("counterpol", "rloo")
def test_counterpol_half_below_its_target_is_rloo(threes, params):
    target = float(threes.rewards.sum(axis=1).mean()) + 0.5
    found = gradient_of(methods.get("counterpol", target=target, kl_coefficient=0.0), threes, params)
    assert_close(found, gradient_of(methods.get("rloo", kl_coefficient=0.0), threes, params), rtol=1e-4)


@pytest.mark.reduction("cal", "dr_grpo")
def test_cal_far_below_its_limit_is_dr_grpo_of_the_reward(annotated):
    found = estimated(methods.get("cal", limit=100.0), annotated).advantage
    alone = annotated.replace(rewards=annotated.rewards[:, :1])
    np.testing.assert_allclose(found, estimated(methods.get("dr_grpo"), alone).advantage, rtol=1e-5, atol=1e-6)


def test_cal_far_above_its_limit_minds_the_cost_alone(annotated):
    """With a large multiplier the dearest answer of each group gets least."""
    found = estimated(methods.get("cal", limit=-100.0), annotated).advantage.sum(axis=1) / annotated.mask.sum(axis=1)
    for number in range(3):
        own = annotated.group == number
        assert np.argmin(found[own]) == np.argmax(annotated.rewards[own, 1])


@pytest.mark.reduction("c_morl", "dr_grpo")
def test_c_morl_far_from_its_bounds_is_dr_grpo_of_one_component(annotated):
    found = estimated(methods.get("c_morl", returns=(-1e6,)), annotated).advantage
    alone = annotated.replace(rewards=annotated.rewards[:, :1])
    np.testing.assert_allclose(found, estimated(methods.get("dr_grpo"), alone).advantage, rtol=1e-5, atol=1e-5)


@pytest.mark.reduction("tabnas")
def test_tabnas_on_policy_has_the_mean_of_what_is_kept_as_baseline(fresh, params):
    """Whatever the moving baseline: sum (r - b) (score - mean score) = sum (r - mean r) score."""
    kept = (np.arange(12) % 4 != 1).astype(np.float32)
    step = fresh.replace(extras=fresh.extras | {"feasible": kept})
    method = methods.get("tabnas")
    found = gradient_of(method, step, params)
    dropped = step.replace(valid=step.valid * kept)
    assert_close(found, gradient_of(reinforce(MEAN, sequence_mean_token_sum()), dropped, params), rtol=1e-4)
    dearer = step.replace(rewards=step.rewards + 7.0)
    assert_close(gradient_of(method, dearer, params), found, rtol=1e-3)


def test_nobody_in_the_program_says_what_is_feasible():
    with pytest.raises(ValueError, match="'tabnas' needs 'feasible' in the rollouts' extras"):
        refuse_missing(methods.get("tabnas"))


@pytest.mark.reduction("spot", "reinforce_plus_plus")
def test_spot_without_support_is_reinforce_plus_plus(threes, params):
    plain = gradient_of(methods.get("reinforce_plus_plus", kl_coefficient=0.0), threes, params)
    assert_close(gradient_of(methods.get("spot", coefficient=0.0), threes, params), plain)
    shortfall = methods.get("spot", kind="shortfall", floor=1e-30, coefficient=9.0)
    assert_close(gradient_of(shortfall, threes, params), plain)


def test_spot_over_the_vocabulary_has_a_loss_of_its_own():
    exact = methods.get("spot", kind="exact")
    assert {"candidates", "candidate_logp", "reference_candidate_logp"} <= exact.needs and exact.needs_reference
    with pytest.raises(ValueError, match="floor=0.1 would change nothing"):
        methods.get("spot", kind="exact", floor=0.1)


@pytest.mark.reduction("apo_view", "grpo")
def test_apo_view_without_its_terms_is_grpo(threes, params):
    found = gradient_of(methods.get("apo_view", base=1 + 1e-12, kl_coefficient=0.0), threes, params)
    plain = methods.get("grpo", degrees_of_freedom=1, epsilon=1e-9, kl_coefficient=0.0)
    assert_close(found, gradient_of(plain, threes, params))


def test_apo_view_blames_long_wrong_answers(annotated):
    long, short = (estimated(methods.get("apo_view", base=base), annotated) for base in (1.5, 1.00001))
    wrong = annotated.rewards.sum(axis=1) <= 0.5
    length = annotated.mask.sum(axis=1)
    for n in range(len(wrong)):
        right = length[~wrong & (annotated.group == annotated.group[n])]
        more = np.abs(long.advantage[n]).max() > 1.1 * np.abs(short.advantage[n]).max()
        assert more == (wrong[n] and len(right) > 0 and length[n] > right.mean())


@pytest.mark.reduction("spot", "reinforce_plus_plus")
def test_spot_over_the_vocabulary_adds_a_cross_entropy_to_reinforce_plus_plus(params):
    step = tiny_policy.random_rollouts(params)
    found, without = (gradient_of(methods.get("spot", kind="exact", coefficient=c), step, params) for c in (0.5, 0.0))
    assert_close(without, gradient_of(methods.get("reinforce_plus_plus", kl_coefficient=0.0), step, params))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert np.abs(found["mix"] - without["mix"]).max() > 1e-3
