"""Supervised methods and their mixtures with a policy gradient, in their limits."""

import numpy as np
import pytest
from oracles import tiny_policy, tiny_steps
from oracles.tiny_steps import assert_close, gradient_of

from jaxrl_llm import methods
from jaxrl_llm.methods.imitation import warm_cosine
from jaxrl_llm.types import Rollouts


@pytest.fixture(scope="module")
def params():
    return tiny_policy.init()


@pytest.fixture(scope="module")
def mixed(params):
    """Groups of three samples and a demonstration."""
    return tiny_steps.rollouts(params, members=4, sources=(0, 0, 0, 1))


def only(step, source):
    return step.replace(valid=(step.source == source).astype(np.float32))


@pytest.mark.reduction("smoothed_sft", "sft")
def test_no_smoothing_is_sft(mixed, params):
    found = gradient_of(methods.get("smoothed_sft", smoothing=0.0), mixed, params)
    assert_close(found, gradient_of(methods.get("sft"), mixed, params))


def test_dft_by_its_formula(mixed, params):
    batch, logp, loss, _ = tiny_steps.value_of(methods.get("dft"), mixed, params)
    chosen = logp[batch.mask > 0]
    np.testing.assert_allclose(loss, -np.mean(np.exp(chosen) * chosen), rtol=1e-5)


@pytest.mark.reduction("chord", "sft")
def test_chord_that_only_imitates_is_sft_on_the_demonstrations(mixed, params):
    chord = methods.get("chord", warmup=0, peak=1.0, valley=1.0)
    assert_close(gradient_of(chord, mixed, params), gradient_of(methods.get("sft"), only(mixed, 1), params))


@pytest.mark.reduction("chord", "grpo")
@pytest.mark.parametrize("name", ["chord", "chord_phi"])
def test_chord_without_imitation_is_grpo_on_the_samples(name, mixed, params):
    chord = methods.get(name, **({"share": 0.0} if name == "chord_phi" else {"peak": 0.0, "valley": 0.0}))
    grpo = methods.get("grpo", kl_coefficient=0.0)
    assert_close(gradient_of(chord, mixed, params), gradient_of(grpo, only(mixed, 0), params))


def test_a_demonstration_does_not_move_the_baseline_of_samples(mixed):
    """Four wrong samples and one right demonstration: nobody is worse than the others."""
    rows = Rollouts(
        tokens=np.zeros((5, 2), np.int32), length=np.full(5, 2), mask=np.ones((5, 2), np.float32),
        rewards=np.array([[0], [0], [0], [0], [1]], np.float32), group=np.zeros(5, np.int32),
        source=np.array([0, 0, 0, 0, 1]), behavior_logp=np.zeros((5, 2), np.float32),
    )  # fmt: skip
    found = tiny_steps.estimated(methods.get("chord"), rows)
    assert not found.advantage[:4].any()
    np.testing.assert_allclose(found.weight, np.array([[1 / 8]] * 4 + [[1 / 2]]) * np.ones((5, 2)))
    luffy = tiny_steps.estimated(methods.get("luffy"), rows)
    np.testing.assert_allclose(luffy.advantage[:4], -0.2, rtol=1e-6)


def test_the_share_of_imitation_rises_and_decays():
    schedule = warm_cosine(warmup=10, decay=20, peak=0.6, valley=0.1)
    found = [float(schedule(step)) for step in (0, 5, 10, 20, 30, 100)]
    np.testing.assert_allclose(found, [0.0, 0.3, 0.6, 0.35, 0.1, 0.1], atol=1e-6)
    name, controller = methods.get("chord", warmup=10).controllers[0]
    assert name == "imitation" and float(controller.value(controller.init(), 5)) == pytest.approx(0.25)
