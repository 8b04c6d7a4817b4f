"""A small decoder with sharp predictions, shared by the tests of sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.networks import DecoderConfig, decoder

VOCAB = 61


@pytest.fixture(scope="session")
def network():
    return decoder(
        DecoderConfig(vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2)
    )


@pytest.fixture(scope="session")
def params(network):
    # Initial logits are nearly uniform; a larger output table makes greedy choices and truncations clear-cut.
    params = network.init(jax.random.key(0))
    return {**params, "head": 20 * params["head"]}


@pytest.fixture(scope="session")
def next_logits(network, params):
    """Logits after a whole text, float64 [V], by one forward pass over the text without cache."""
    apply = jax.jit(network.apply)

    def logits(text):
        padded = jnp.asarray([list(text) + [0] * (48 - len(text))])
        return np.asarray(apply(params, padded)[0, len(text) - 1], np.float64)

    return logits
