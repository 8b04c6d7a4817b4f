import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.networks import DecoderConfig, rotary


def kind_of(config):
    return config.kinds[0], config.rotary_dim


SIZES = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_layers": 1, "num_heads": 1}


def test_frequencies_follow_theta():
    found = rotary.frequencies(*kind_of(DecoderConfig(**SIZES, rope_theta=81.0)))[0]
    np.testing.assert_allclose(found, [1, 1 / 3, 1 / 9, 1 / 27], rtol=1e-6)


def test_linear_scaling_divides():
    scaling = {"rope_type": "linear", "factor": 4.0}
    found = rotary.frequencies(*kind_of(DecoderConfig(**SIZES, rope_theta=81.0, rope_scaling=scaling)))[0]
    np.testing.assert_allclose(found, [1 / 4, 1 / 12, 1 / 36, 1 / 108], rtol=1e-6)


def test_llama3_scaling_keeps_fast_pairs_and_slows_slow_ones():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 64}
    config = DecoderConfig(**SIZES | {"hidden_size": 32}, rope_theta=10000.0, rope_scaling=scaling)
    expected = []
    for pair in range(16):
        frequency = 10000.0 ** (-2 * pair / 32)
        wavelength = 2 * math.pi / frequency
        if wavelength < 64 / 4:
            expected.append(frequency)
        elif wavelength > 64 / 1:
            expected.append(frequency / 8)
        else:
            smooth = (64 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    np.testing.assert_allclose(rotary.frequencies(*kind_of(config))[0], expected, rtol=2e-6)


def test_rotation_turns_halves_as_pairs():
    config = DecoderConfig(**SIZES | {"hidden_size": 4}, rope_theta=100.0)
    x = jnp.asarray([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    found = rotary.rotate(x, *rotary.angles(*kind_of(config), jnp.asarray([[5]])))[0, 0, 0]
    for pair, frequency in enumerate((1.0, 0.1)):
        turned = complex(x[0, 0, 0, pair], x[0, 0, 0, pair + 2]) * np.exp(5j * frequency)
        assert (found[pair], found[pair + 2]) == pytest.approx((turned.real, turned.imag), rel=1e-5)
