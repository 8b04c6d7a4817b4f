"""Sampling with all that decoding may keep: states of fixed size, latents, and keys and values lent to other layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.networks import DecoderConfig, DeltaConfig, LatentConfig, decoder
from jaxrl_llm.sampling import generate, harvest

VOCAB, PROMPTS = 61, [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
SIZES = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_heads": 4}
STATES = DecoderConfig(
    **SIZES, num_layers=5, num_kv_heads=2, layer_types=("delta", "sliding", "full", "sliding", "full"), sliding_window=4,
    delta=DeltaConfig(key_heads=1, value_heads=2, key_dim=4, value_dim=6), reusing_layers=2, full_head_dim=6, sinks=True,
)  # fmt: skip
LATENTS = DecoderConfig(**SIZES, num_layers=2, latent=LatentConfig(rank=8, plain_dim=4, rotary_dim=2, value_dim=3))


@pytest.mark.parametrize("config", [STATES, LATENTS], ids=["states", "latents"])
def test_what_slots_keep_is_that_of_their_own_sequence(config, monkeypatch):
    """More samples than slots, which begin at several columns of tails that grow and move."""
    monkeypatch.setattr(harvest, "FIRST_WIDTH", 8)
    network = decoder(config)
    params = network.init(jax.random.key(0))
    params["head"] = 20 * params["head"]
    samples = generate(network, params, PROMPTS, max_new_tokens=25, num_samples=3, slots=4, stop_ids=list(range(8)))
    texts = np.zeros((12, 32), np.int32)
    for row, tokens in enumerate(samples.tokens):
        text = [*PROMPTS[row // 3], *tokens[: samples.length[row]]]
        texts[row, : len(text)] = text
    logp = np.asarray(jax.nn.log_softmax(jax.jit(network.apply)(params, jnp.asarray(texts))))
    assert len({int(length) for length in samples.length}) > 3
    for row, length in enumerate(samples.length):
        begin = len(PROMPTS[row // 3])
        expected = logp[row, np.arange(begin, begin + length) - 1, texts[row, begin : begin + length]]
        np.testing.assert_allclose(samples.logp[row, :length], expected, atol=1e-4)
