"""Every named method: built, printed, refused where an option is unknown or inert, trained for one step; and reductions."""

import contextlib
import re

import jax
import numpy as np
import optax
import pytest
from oracles import tiny_policy
from oracles.tiny_policy import jit

from jaxrl_llm import methods
from jaxrl_llm.data.packing import pack
from jaxrl_llm.estimators import chain, group_advantage, token_mean
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.training import TrainState, make_gradient, make_update
from jaxrl_llm.training.metrics import defined
from jaxrl_llm.types import Rollouts

# Those that the default tests look at whole; for all of them it is slow.
NAMES = ("cispo", "dapo", "dr_grpo", "gspo", "grpo", "ppo", "reinforce", "reinforce_plus_plus", "reward_model", "rloo", "sft")


@pytest.fixture(scope="module")
def params():
    return tiny_policy.init()


@pytest.fixture(scope="module")
def rollouts(params):
    return tiny_policy.random_rollouts(params)


def gradient_of(method, rollouts, params):
    """Gradient of one step; the loss is the same function for equal inputs."""
    scorer = make_scorer(tiny_policy.policy, method.objective.needs)
    batch = pack(tiny_policy.estimated(method, rollouts), 12, coefficients=tiny_policy.coefficients(method))
    return jit(make_gradient(scorer, method.objective))(params, batch)[1]


def assert_close(actual, expected, rtol=2e-5):
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert largest > 1e-4, "nothing to compare"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=2e-6 * largest), actual, expected)


def test_the_catalogue_holds_the_named_methods():
    assert set(NAMES) <= set(methods.names())
    assert list(methods.names()) == sorted(methods.names())


@pytest.mark.parametrize("name", methods.names())
def test_builds_prints_and_compares(name):
    method = methods.get(name)
    text = method.composition()
    assert repr(method.estimator) in text and repr(method.objective) in text and repr(method.strategy) in text
    assert method.name == name and method.paper and method.url.startswith("https://")
    assert method == methods.get(name) and hash(method.objective) == hash(methods.get(name).objective)
    assert dict(method.options) == methods.options_of(name)


@pytest.mark.parametrize("name", methods.names())
def test_unknown_options_name_the_known_ones(name):
    with pytest.raises(ValueError) as error:
        methods.get(name, learning_rat=1.0)
    known = methods.options_of(name)
    assert "learning_rat" in str(error.value) and all(option in str(error.value) for option in known)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="'gpro'.*grpo.*sft"):
        methods.get("gpro")


@pytest.mark.parametrize(("name", "options", "inert"), [
    ("grpo", {"kl_coefficient": 0.0, "kl_kind": "k1"}, "kl_kind"),
    ("ppo", {"kl_coefficient": 0.0, "kl_kind": "k1"}, "kl_kind"),
    ("rloo", {"kl_coefficient": 0.0, "kl_kind": "k3"}, "kl_kind"),
    ("reinforce", {"kl_kind": "k3"}, "kl_kind"),
    ("reinforce_plus_plus", {"kl_coefficient": 0.0, "kl_kind": "k1"}, "kl_kind"),
    ("grpo", {"scale": "none", "degrees_of_freedom": 1}, "degrees_of_freedom"),
    ("grpo", {"scale": "none", "epsilon": 1e-4}, "epsilon"),
    ("spo", {"forgetting_high": 0.9}, "forgetting_high"),
    ("dapo", {"overlong_size": 0.0, "overlong_buffer": 8}, "overlong_buffer"),
    ("grpo", {"kl_coefficient": 0.0, "kl_place": "advantage"}, "kl_place"),
    ("grpo", {"kl_place": "advantage", "kl_unbiased": True}, "kl_unbiased"),
    ("grpo", {"kl_coefficient": 0.0, "kl_unbiased": True}, "kl_unbiased"),
    ("gdpo", {"kl_bound": 10.0}, "kl_bound"),
    ("rloo", {"clip_level": "token"}, "clip_level"),
    ("rloo", {"clip_dual": 3.0}, "clip_dual"),
    ("opo", {"clip_dual": 3.0}, "clip_dual"),
    ("gpg", {"alone": "none"}, "alone"),
    ("vespo", {"weight_outside": "mask"}, "weight_outside"),
])  # fmt: skip
def test_inert_options_are_refused(name, options, inert):
    with pytest.raises(ValueError, match=f"{inert}.*would change nothing"):
        methods.get(name, **options)


def test_ppo_needs_a_critic_that_learns():
    with pytest.raises(ValueError, match="value_coefficient is 0"):
        methods.get("ppo", value_coefficient=0)


def alternatives(name, option, value):
    """Other values of an option; those of a string are the ones that a refusal of nonsense names."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 2, value + 1, value / 2 + 0.03, 0.5]
    if isinstance(value, tuple):
        return [value[:-1] + value[-1:] * 2 if isinstance(value[0], tuple) else tuple(0.9 * each for each in value)]
    try:
        methods.get(name, **{option: "nonsense"})
    except (ValueError, TypeError, ArithmeticError) as error:
        return [*re.findall(r"'([\w.+-]+)'", str(error)), 0.3, 1, True, 3]
    return ["k2", "none"]


@pytest.mark.parametrize("name", methods.names())
def test_every_option_changes_the_composition(name):
    """An option that can be set without effect would be silence."""
    plain = methods.get(name)
    for option, value in methods.options_of(name).items():
        accepted = []
        for other in alternatives(name, option, value):
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                accepted += [methods.get(name, **{option: other})] if other != value else []
        for method in accepted:
            assert method.composition() != plain.composition() or method.controllers != plain.controllers, (
                option,
                method.options,
            )


def test_table_is_complete():
    rows = methods.table()
    assert [row["name"] for row in rows] == list(methods.names())
    for row in rows:
        assert row["summary"].endswith(".") and row["paper"] and 1950 < row["year"] < 2100
        assert row["composition"].startswith("strategy") and "objective(" in row["composition"]
        assert row["certainty"] == "exact" or row["unconfirmed"], "say what could not be confirmed"
        assert row["defaults"] or not row["options"], "say where the defaults come from"
        assert row["needs"] == sorted(methods.get(row["name"]).needs)


def test_options_reach_the_composition():
    assert "clip(high=0.3)" in repr(methods.get("dapo", clip_high=0.3).objective)
    assert "samples=5" in repr(methods.get("grpo", samples=5).strategy)
    assert "kind='k2'" in repr(methods.get("grpo", kl_kind="k2").objective)
    assert not methods.get("grpo", kl_coefficient=0.0).needs_reference and methods.get("grpo").needs_reference
    assert methods.get("ppo").needs_critic and not methods.get("grpo").needs_critic
    assert methods.get("sft").strategy is None
    assert [methods.get(name).learns_from for name in ("sft", "reward_model", "ppo")] == ["completions", "pairs", "samples"]
    assert [methods.get(name).needs_value_head for name in ("sft", "reward_model", "ppo")] == [False, True, False]


@pytest.mark.parametrize("name", ["grpo", "ppo", "reward_model"])
def test_one_step_moves_parameters(name, params, rollouts):
    method = methods.get(name)
    scorer = make_scorer(tiny_policy.policy, method.objective.needs)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    update = jit(make_update(tiny_policy.apply, method.objective, optimizer, scorer=scorer))
    batch = pack(tiny_policy.estimated(method, rollouts), 12, coefficients=tiny_policy.coefficients(method))
    state, metrics = update(TrainState.create(params, optimizer), batch)
    assert float(metrics["skipped"]) == 0 and float(metrics["gradient_norm"]) > 0
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(defined(metric) for metric in metrics)
    moved = jax.tree.map(lambda new, old: float(np.abs(new - old).max()), state.params, params)
    assert moved["mix"] > 0 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_gspo_of_one_token_is_grpo(rollouts, params):
    """Completions of length one: the sequence's ratio is the token's."""
    width = rollouts.mask.shape[1]
    single = (np.arange(width) == rollouts.length[:, None] - 1).astype(np.float32)
    rollouts = rollouts.replace(mask=single)
    gspo = methods.get("gspo", clip_low=0.2, clip_high=0.2)
    assert_close(gradient_of(gspo, rollouts, params), gradient_of(methods.get("grpo", kl_coefficient=0.0), rollouts, params))


def test_dapo_with_equal_clips_is_grpo_with_token_mean(rollouts, params):
    dapo = methods.get("dapo", clip_low=0.2, clip_high=0.2)
    grpo = methods.get("grpo", kl_coefficient=0.0)
    assert dapo.objective == grpo.objective
    plain = chain(group_advantage(), token_mean())
    assert_close(gradient_of(dapo, rollouts, params), gradient_of(_with(grpo, plain), rollouts, params))


def test_ppo_without_a_critic_is_whitened_reward_to_go(rollouts):
    """trace_decay 1, values 0 and no penalty: the advantages of REINFORCE++."""
    zeros = np.zeros_like(rollouts.mask)
    rollouts = rollouts.replace(extras={"behavior_value": zeros})
    ppo = tiny_policy.estimated(methods.get("ppo", trace_decay=1.0, kl_coefficient=0.0), rollouts)
    plus = tiny_policy.estimated(methods.get("reinforce_plus_plus", kl_coefficient=0.0), rollouts)
    assert np.abs(ppo.advantage).max() > 0.1
    np.testing.assert_allclose(ppo.advantage, plus.advantage, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ppo.weight, plus.weight)


def test_rloo_is_a_scaled_deviation_from_the_mean():
    """r_i - mean of the others = G / (G - 1) (r_i - mean of all)."""
    rewards = np.array([1.0, 4.0, 2.0, 0.0, 3.0, 5.0], np.float32)
    group = np.array([0, 0, 0, 0, 1, 1], np.int32)
    mask = np.ones((6, 1), np.float32)
    rollouts = Rollouts(
        tokens=np.zeros((6, 1), np.int32), length=np.ones(6, np.int32), mask=mask, rewards=rewards[:, None], group=group
    )
    found = tiny_policy.estimated(methods.get("rloo", kl_coefficient=0.0), rollouts).advantage[:, 0]
    expected = np.concatenate([4 / 3 * (rewards[:4] - rewards[:4].mean()), 2 * (rewards[4:] - rewards[4:].mean())])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_rloo_of_one_sample_learns_nothing_and_reinforce_of_one_does(rollouts, params):
    """One sample has no others to compare with: its advantage is 0, where REINFORCE takes the reward itself."""
    alone = rollouts.replace(group=np.arange(len(rollouts.group), dtype=np.int32))
    assert not tiny_policy.estimated(methods.get("rloo", kl_coefficient=0.0), alone).advantage.any()
    assert tiny_policy.estimated(methods.get("reinforce"), alone).advantage.any()


def test_dr_grpo_is_grpo_without_scale_and_length(rollouts):
    found = tiny_policy.estimated(methods.get("dr_grpo", max_length=50), rollouts)
    plain = tiny_policy.estimated(methods.get("grpo", scale="none", kl_coefficient=0.0), rollouts)
    np.testing.assert_allclose(found.advantage, plain.advantage, rtol=1e-6)
    np.testing.assert_allclose(found.weight, rollouts.mask / 50 / len(rollouts.mask), rtol=1e-6)


def test_cispo_on_policy_is_reinforce_with_group_advantages(rollouts, params):
    """At ratio 1 the bounded weight is 1: the gradients of CISPO, DAPO's objective and the score function agree."""
    batch = pack(tiny_policy.estimated(methods.get("cispo"), rollouts), 12)
    scorer = make_scorer(tiny_policy.policy)
    batch = batch.replace(behavior_logp=np.asarray(scorer(params, batch).logp))
    found = [
        jit(make_gradient(scorer, methods.get(name).objective))(params, batch)[1] for name in ("cispo", "dapo", "reinforce")
    ]
    assert_close(found[0], found[1])
    assert_close(found[0], found[2])


def _with(method, estimator):
    return methods.Method(method.name, method.paper, method.url, method.strategy, estimator, method.objective)
