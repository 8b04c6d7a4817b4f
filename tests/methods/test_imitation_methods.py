"""Supervised methods and their mixtures with a policy gradient, in their limits."""

import numpy as np
import pytest
from oracles import tiny_policy, tiny_steps
from oracles.tiny_steps import assert_close, gradient_of

from jaxrl_llm import methods
from jaxrl_llm.estimators import sequence_mean
from jaxrl_llm.methods.imitation import warm_cosine


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
    plain = methods.Method("plain", "-", "-", None, sequence_mean(), methods.get("sft").objective)
    assert_close(gradient_of(chord, mixed, params), gradient_of(plain, only(mixed, 1), params))


@pytest.mark.reduction("chord", "grpo")
@pytest.mark.parametrize("name", ["chord", "chord_phi"])
def test_chord_without_imitation_is_grpo_on_the_samples(name, mixed, params):
    chord = methods.get(name, **({"share": 0.0} if name == "chord_phi" else {"peak": 0.0, "valley": 0.0}))
    grpo = methods.get("grpo", kl_coefficient=0.0)
    advantage = tiny_steps.estimated(grpo, mixed).advantage
    plain = methods.Method("plain", "-", "-", None, sequence_mean(), grpo.objective)
    samples = only(mixed, 0).replace(advantage=advantage)
    assert_close(gradient_of(chord, mixed, params), gradient_of(plain, samples, params))


def test_the_share_of_imitation_rises_and_decays():
    schedule = warm_cosine(warmup=10, decay=20, peak=0.6, valley=0.1)
    found = [float(schedule(step)) for step in (0, 5, 10, 20, 30, 100)]
    np.testing.assert_allclose(found, [0.0, 0.3, 0.6, 0.35, 0.1, 0.1], atol=1e-6)
    name, controller = methods.get("chord", warmup=10).controllers[0]
    assert name == "imitation" and float(controller.value(controller.init(), 5)) == pytest.approx(0.25)
