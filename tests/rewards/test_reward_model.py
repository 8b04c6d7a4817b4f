"""A network as a reward: the value at the last token of every text, whatever is scored beside it."""

import logging

import jax
import numpy as np
import pytest

from jaxrl_llm import rewards
from jaxrl_llm.networks import DecoderConfig, decoder

SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}


@pytest.fixture(scope="module")
def network():
    network = decoder(DecoderConfig(value_head=1, **SIZES))
    params = dict(network.init(jax.random.key(0)))
    params["value_head"] = jax.random.normal(jax.random.key(1), params["value_head"].shape)
    return network.with_params(params)


def encode(prompt, completion):
    """Texts are numbers; chat messages are those of their contents."""
    text = prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)
    return [int(digit) for digit in text + completion] + [31]


def expected(network, ids):
    value = network.value(network.params, network.hidden(network.params, np.array([ids])))
    return float(value[0, -1])


PROMPTS = ["12", "3", "45678901234567", "2"]
COMPLETIONS = ["3", "", "8901234", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_reward_is_the_value_at_the_last_token(batch, network):
    found = rewards.reward_model(network, encode, batch=batch)(PROMPTS, COMPLETIONS)
    by_hand = [expected(network, encode(*texts)) for texts in zip(PROMPTS, COMPLETIONS, strict=True)]
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-5)
    assert np.std(found) > 0.1 and all(isinstance(value, float) for value in found)


def test_conversations_replace_the_text_of_their_last_message(network):
    talk = [{"role": "user", "content": "9"}, {"role": "assistant", "content": "8"}, {"role": "user", "content": "7"}]
    found = rewards.reward_model(network, encode)(["7", "7"], ["1", "1"], conversation=[talk, None], answer=["x", "y"])
    np.testing.assert_allclose(found, [expected(network, [9, 8, 7, 1, 31]), expected(network, [7, 1, 31])], rtol=1e-4)


def test_in_the_pool_it_stays_in_this_process(network, caplog):
    reward = rewards.reward_model(network, encode)
    with rewards.RewardPool(1) as pool, caplog.at_level(logging.WARNING):
        both = {"model": reward, "exact": rewards.exact_match}
        values, failures = pool.score(both, PROMPTS, COMPLETIONS, {"answer": COMPLETIONS})
    np.testing.assert_allclose(values[:, 0], reward(PROMPTS, COMPLETIONS), rtol=1e-6)
    assert values[:, 1].sum() >= 3 and not failures and not caplog.records


def test_a_text_that_cannot_be_encoded_is_missing_alone(network):
    reward = rewards.reward_model(network, encode)
    with rewards.RewardPool(1) as pool:
        values, failures = pool.score({"model": reward}, PROMPTS, ["3", "", "bad", "1"])
    assert np.isnan(values[:, 0]).tolist() == [False, False, True, False]
    assert [(failure.name, failure.row) for failure in failures] == [("model", 2)] and "ValueError" in failures[0].reason
    np.testing.assert_allclose(values[0, 0], expected(network, [1, 2, 3, 31]), rtol=1e-4)


def test_networks_that_are_no_reward_models(network):
    with pytest.raises(ValueError, match=r"network\.params is None; give a network with parameters"):
        rewards.reward_model(network.without_params(), encode)
    policy = decoder(DecoderConfig(**SIZES))
    with pytest.raises(ValueError, match="value_head is 0; a reward model has a head of 1 output"):
        rewards.reward_model(policy.with_params({}), encode)
