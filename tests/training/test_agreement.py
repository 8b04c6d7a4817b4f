"""Sampler against learner on held-out samples: what is counted, and that a sampler of its own is found out."""

import logging

import jax
import numpy as np
import pytest

from jaxrl_llm.networks import DecoderConfig, decoder
from jaxrl_llm.rollouts import Collection, make_rollouts
from jaxrl_llm.sampling import generate
from jaxrl_llm.training.evaluation import Agreement, evaluate, make_agree, warn_of_gap

VOCABULARY, WIDTH, NEW = 61, 16, 8
NETWORK = decoder(
    DecoderConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=4, num_kv_heads=2,
        logit_softcap=5.0,
    )
)  # fmt: skip
PROMPTS = [[5, 6, 7], [9], [11, 3, 2, 1, 8]]


@pytest.fixture(scope="module")
def params():
    params = NETWORK.init(jax.random.key(0))
    return {**params, "head": 20 * params["head"]}


def rollouts_of(samples):
    return make_rollouts(PROMPTS, samples, np.ones((len(PROMPTS), 1)), range(len(PROMPTS)), width=WIDTH)


def agree_of(params, temperature=0.0, bound=1e-4, parts=1):
    return make_agree(NETWORK, params, temperature=temperature, bound=bound, width=WIDTH, parts=parts)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_one_policy_agrees_with_itself(params, temperature):
    samples = generate(NETWORK, params, PROMPTS, max_new_tokens=NEW, temperature=temperature)
    found = agree_of(params, temperature)(rollouts_of(samples), 3)
    assert found.gap < 1e-4 and found.tokens == 3 * NEW
    assert found.short == 0 if temperature == 0 else found.short > 0
    in_parts = agree_of(params, temperature, parts=2)(rollouts_of(samples), 3)
    assert in_parts[1:] == found[1:] and in_parts.gap == pytest.approx(found.gap, abs=1e-6)


def test_other_tokens_and_other_probabilities_are_found(params):
    samples = generate(NETWORK, params, PROMPTS, max_new_tokens=NEW, temperature=0.0)
    tokens, logp = samples.tokens.copy(), samples.tempered_logp.copy()
    tokens[1, NEW - 1] = (tokens[1, NEW - 1] + 1) % VOCABULARY
    logp[0, 2] -= 0.25
    wrong = rollouts_of(samples.replace(tokens=tokens, tempered_logp=logp))
    found = agree_of(params)(wrong, 3)
    assert found.short == 1 and found.gap >= 0.25 - 1e-4
    assert agree_of(params)(wrong, 1).short == 0  # rows beyond the count are not looked at
    assert agree_of(params, bound=100.0)(wrong, 3).short == 0


def test_what_parts_found_is_added_up():
    assert Agreement(0.1, 3, 1) + Agreement(0.3, 2, 0) == Agreement(0.3, 5, 1)


def test_an_evaluation_reports_and_warns(caplog):
    def sample(requests):
        record = {"rewards": [1.0], "length": 2, "completion": ""}
        return Collection(None, [record] * sum(request.samples for request in requests), requests, None)

    counts = []

    def agree(rollouts, count):
        counts.append(count)
        return Agreement(0.5 * count, 10 * count, 1)

    measured, _ = evaluate(sample, [{"prompt": ""}] * 3, samples=1, batch=2, agree=agree, greedy=True)
    assert counts == [2, 1]  # the filling has no part
    assert measured["evaluation/logp_gap"] == 1.0
    assert measured["evaluation/greedy_mismatch"] == pytest.approx(2 / 30)
    sampled, _ = evaluate(sample, [{"prompt": ""}] * 3, samples=2, batch=2, agree=agree)
    assert "evaluation/logp_gap" in sampled and "evaluation/greedy_mismatch" not in sampled
    with caplog.at_level(logging.WARNING):
        warn_of_gap({"evaluation/logp_gap": 1e-5, "evaluation/greedy_mismatch": 0.0}, 1e-4, 3)
        assert not caplog.text
        warn_of_gap(measured, 1e-4, 3)
    assert "differ by 1 nat on the evaluation's samples at step 3" in caplog.text
    assert "0.0667 of the evaluation's greedy tokens are not the learner's best" in caplog.text
