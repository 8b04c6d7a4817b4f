"""What libraries mean by a name, pinned by numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import methods
from jaxrl_llm.types import Batch, Rollouts, Scores

# Two prompts with four answers of 1, 2, 3 and 4 tokens.
REWARDS = np.array([1, 0, 0, 0, 1, 1, 1, 0], np.float32)
LENGTHS = np.array([1, 2, 3, 4] * 2, np.int32)
MASK = (np.arange(4) < LENGTHS[:, None]).astype(np.float32)


def estimated(name, convention, **options):
    method = methods.get(name, convention=convention, **options)
    rollouts = Rollouts(
        tokens=np.zeros((8, 4), np.int32),
        length=LENGTHS,
        mask=MASK,
        rewards=REWARDS[:, None],
        group=np.arange(8, dtype=np.int32) // 4,
        behavior_logp=-MASK,
        extras={"reference_logp": -MASK},
    )
    return method.estimator.update(rollouts, method.estimator.init(), jax.random.key(0))[0]


def slope(name, convention, ratio, advantage, **options):
    """d loss / d logp of one token with that ratio and advantage."""
    objective = methods.get(name, convention=convention, **options).objective
    batch = Batch(
        tokens=jnp.zeros((1, 2), jnp.int32), mask=jnp.array([[0.0, 1.0]]), behavior_logp=jnp.array([[0.0, -2.0]]),
        reference_logp=jnp.array([[0.0, -1.5]]), advantage=jnp.array([[0.0, advantage]]),
    )  # fmt: skip
    logp = jnp.array([[0.0, -2.0 + np.log(ratio)]])
    return float(jax.grad(lambda logp: objective(Scores(logp=logp), batch)[0])(logp)[0, 1])


POPULATION, BESSEL = np.sqrt(3) / 4, 0.5  # of the rewards 1 0 0 0


@pytest.mark.parametrize(("convention", "first"), [
    ("paper", 0.75 / (POPULATION + 1e-6)), ("trl-1.16", 0.75 / (BESSEL + 1e-4)), ("verl-0.10", 0.75 / (BESSEL + 1e-6)),
    ("openrlhf", 0.75 / (BESSEL + 1e-9)), ("oat", 0.75 / (BESSEL + 1e-8)), ("nemo-rl", 1.0 / (BESSEL + 1e-6)),
    ("pipeline-rl", 1.0 / (BESSEL + 1e-4)), ("areal", 0.5 / (0.5 + 1e-6)), ("prime-rl", 0.75),
])  # fmt: skip
def test_advantages_of_grpo(convention, first):
    found = estimated("grpo", convention).advantage
    np.testing.assert_allclose(found[0, 0], first, rtol=1e-6)
    assert not found[MASK == 0].any()


@pytest.mark.parametrize("convention", methods.conventions_of("grpo"))
def test_shares_of_grpo(convention):
    weight = np.asarray(estimated("grpo", convention).weight)
    by_token = convention in ("trl-1.16", "verl-0.10")
    expected = MASK / MASK.sum() if by_token else MASK / LENGTHS[:, None] / 8
    np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_only_verl_bounds_the_loss_of_negative_advantages():
    """A token of ratio 5 and advantage -1: its gradient is 5, and 0 beyond three times the advantage."""
    assert slope("grpo", "trl-1.16", 5.0, -1.0) == pytest.approx(5.0, rel=1e-5)
    assert slope("grpo", "verl-0.10", 5.0, -1.0) == 0.0
    assert slope("grpo", "verl-0.10", 2.0, -1.0) == pytest.approx(2.0, rel=1e-5)


def test_the_kl_of_trl_carries_the_ratio():
    """k3 = e^x - 1 - x with x = 0.5 - log r; TRL multiplies it by the ratio r, which is differentiated too."""
    plain = slope("grpo", "trl-1.16", 1.0, 0.0, kl_coefficient=1.0)
    weighted = slope("grpo", "trl-1.16", 1.0, 0.0, kl_coefficient=1.0, kl_unbiased=True)
    assert plain == pytest.approx(1 - np.exp(0.5), rel=1e-5)
    assert weighted == pytest.approx(-0.5, rel=1e-5)  # the gradient of the KL: log(pi / reference)


@pytest.mark.parametrize(("convention", "weights"), [
    # The detached weight of log pi at ratios 0.5, 1, 1.5 and 6.
    ("paper", (0.5, 1, 1.5, 5)), ("trl-1.16", (0.2, 0.2, 0.2, 0.2)), ("verl-0.10", (0.8, 1, 1.2, 1.2)),
    ("skyrl", (0.5, 1, 1.5, 5)), ("open-instruct", (0.5, 1, 1.2, 1.2)),
])  # fmt: skip
def test_weights_of_cispo(convention, weights):
    found = [-slope("cispo", convention, ratio, 1.0) for ratio in (0.5, 1.0, 1.5, 6.0)]
    np.testing.assert_allclose(found, weights, rtol=1e-5)


def test_gspo_of_trl_weighs_long_sequences_more():
    trl, paper = (np.asarray(estimated("gspo", convention).weight) for convention in ("trl-1.16", "paper"))
    np.testing.assert_allclose(paper.sum(axis=1), 1 / 8, rtol=1e-6)
    np.testing.assert_allclose(trl.sum(axis=1), LENGTHS / 20, rtol=1e-6)


def test_rloo_of_trl_clips_the_ratio_of_whole_sequences():
    assert slope("rloo", "paper", 3.0, 2.0) == pytest.approx(-2.0)
    assert slope("rloo", "trl-1.16", 3.0, 2.0) == 0.0
    assert slope("rloo", "trl-1.16", 1.1, 2.0) == pytest.approx(-2.2, rel=1e-5)


def test_dapo_of_trl_keeps_groups_without_signal():
    method = methods.get("dapo", convention="trl-1.16")
    assert "drop_uniform_groups" not in repr(method.estimator) and method.strategy == methods.get("grpo", samples=16).strategy
    assert slope("dapo", "trl-1.16", 1.27, 1.0) == pytest.approx(-1.27, rel=1e-5) and slope("dapo", "trl-1.16", 1.29, 1.0) == 0


@pytest.mark.parametrize("name", methods.names())
def test_each_convention_is_another_composition_or_option(name):
    plain = methods.get(name)
    assert methods.conventions_of(name)["paper"] == {} and methods.get(name, convention="paper") == plain
    for convention, options in methods.conventions_of(name).items():
        chosen = methods.get(name, convention=convention)
        assert dict(chosen.options) == methods.options_of(name) | options
        assert (chosen.composition() == plain.composition()) == (convention == "paper"), convention


def test_options_come_on_top_of_a_convention():
    method = methods.get("grpo", convention="trl-1.16", samples=3, epsilon=1e-3)
    assert dict(method.options)["samples"] == 3 and dict(method.options)["epsilon"] == 1e-3
    assert dict(method.options)["aggregation"] == "token_mean"


def test_unknown_conventions_name_the_known_ones():
    with pytest.raises(ValueError, match="'grpo' has no convention 'trl'; it has 'paper', 'trl-1.16', 'verl-0.10'"):
        methods.get("grpo", convention="trl")
