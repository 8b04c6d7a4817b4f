import dataclasses

import jax.numpy as jnp
import pytest

from jaxrl_llm.networks import DecoderConfig, decoder

SIZES = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_layers": 1, "num_heads": 2}


def test_defaults_follow_from_sizes():
    config = DecoderConfig(**SIZES)
    assert (config.num_kv_heads, config.head_dim) == (2, 4)


def test_equal_configurations_hash_alike_and_give_the_same_network():
    scaling = {"rope_type": "linear", "factor": 2.0}
    first, second = (DecoderConfig(**SIZES, rope_scaling=scaling, dtype=dtype) for dtype in ("bfloat16", jnp.bfloat16))
    assert first == second and hash(first) == hash(second)
    assert decoder(first) == decoder(second) and hash(decoder(first)) == hash(decoder(second))
    assert decoder(first) != decoder(dataclasses.replace(first, qk_norm=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "num_heads=2 must be a multiple of num_kv_heads=3"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"head_dim": 3}, "head_dim=3 must be even"),
        ({"dtype": "int8"}, "dtype='int8' is unknown; choose one of float32"),
        ({"remat": "some"}, "remat='some' is unknown; choose one of none, dots, full"),
        ({"attention": "flash"}, "attention='flash' is unknown; choose one of auto, reference, xla, splash"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling.rope_type='yarn' is unknown"),
        ({"rope_scaling": {"rope_type": "linear"}}, r"takes \['factor'\]; got \[\]"),
    ],
)
def test_wrong_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**SIZES | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "gpt"}, "family='gpt' is unknown; choose one of llama, qwen2, qwen3"),
        ({"family": "qwen3"}, "qk_norm=False does not fit family='qwen3'; set qk_norm=True"),
        ({"family": "llama", "attention_bias": True}, "attention_bias=True does not fit family='llama'"),
    ],
)
def test_a_network_that_could_never_be_exported_as_its_family_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        decoder(DecoderConfig(**SIZES | change))
