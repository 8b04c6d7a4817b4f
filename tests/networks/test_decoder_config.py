import dataclasses

import jax.numpy as jnp
import pytest

from jaxrl_llm.networks import DecoderConfig, DeltaConfig, ExpertsConfig, LatentConfig, decoder, layers

SIZES = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_layers": 1, "num_heads": 2}


def experts(**change):
    return ExpertsConfig(**{"count": 4, "per_token": 2, "width": 6} | change)


def test_defaults_follow_from_sizes():
    config = DecoderConfig(**SIZES)
    assert (config.num_kv_heads, config.head_dim) == (2, 4)


def test_equal_configurations_hash_alike_and_give_the_same_network():
    scaling = {"rope_type": "linear", "factor": 2.0}
    first, second = (DecoderConfig(**SIZES, rope_scaling=scaling, dtype=dtype) for dtype in ("bfloat16", jnp.bfloat16))
    assert first == second and hash(first) == hash(second)
    assert decoder(first) == decoder(second) and hash(decoder(first)) == hash(decoder(second))
    assert decoder(first) != decoder(dataclasses.replace(first, qk_norm="head"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "num_heads=2 must be a multiple of num_kv_heads=3"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"head_dim": 3}, "head_dim=3 times rope_fraction=1.0 is 3; it must be an even number"),
        ({"dtype": "int8"}, "dtype='int8' is unknown; choose one of float32"),
        ({"remat": "some"}, "remat='some' is unknown; choose one of none, dots, full"),
        ({"attention": "flash"}, "attention='flash' is unknown; choose one of auto, reference, xla, pallas"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_scaling.rope_type='longrope' is unknown"),
        ({"rope_fraction": 1.5}, "rope_fraction=1.5 is 6; it must be an even number from 2 to 4"),
        ({"qk_norm": "both"}, "qk_norm='both' is unknown; choose one of none, head, width"),
        ({"layer_types": ("sliding", "full")}, "layer_types has 2 entries; num_layers=1 need as many"),
        ({"layer_types": ("local",)}, "layer_types='local' is unknown; choose one of full, sliding"),
        ({"layer_types": ("sliding",)}, "sliding_window=None must be at least 1 where layers are sliding"),
        ({"sliding_window": 0}, "sliding_window=0 must be at least 1"),
        ({"layer_types": ("full",), "sliding_window": 4}, "would change nothing: no layer is sliding"),
        ({"sliding_rope_theta": 1e4}, "would change nothing: no layer is sliding"),
        ({"experts": experts(dense_layers=1)}, "experts.dense_layers=1 must be less than num_layers=1"),
        ({"unrotated_layers": (1,)}, "unrotated_layers=.1,. must be numbers below num_layers=1"),
        ({"activation": "clipped_swiglu"}, "swiglu_limit=None belongs to activation='clipped_swiglu'"),
        ({"layer_types": ("delta",)}, "delta=None is of layers of type 'delta'"),
        ({"reusing_layers": 1}, "reusing_layers=1 need layers of each of their types below them"),
        ({"num_heads": 0}, "hidden_size=8 must be a multiple of num_heads=0, or give head_dim"),
        ({"num_heads": 3}, "hidden_size=8 must be a multiple of num_heads=3, or give head_dim"),
        ({"num_layers": 2 * 10**9}, "num_layers=2000000000 must be at most 10000"),
        ({"vocab_size": 10**8, "hidden_size": 10**7, "head_dim": 2}, "the sizes are those of about 2e.15 parameters"),
        ({"rope_theta": float("nan")}, "rope_theta is nan; it must be a number above 1"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rope_scaling.factor is 0; it must be a number above 0"),
        ({"rope_scaling": {"rope_type": "linear"}}, r"takes \['factor'\]; got \[\]"),
    ],
)
def test_wrong_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**SIZES | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "gpt"}, "family='gpt' is unknown; choose one of llama, mistral, qwen2, qwen3, gemma"),
        ({"family": "qwen3"}, "qk_norm='none' does not fit family='qwen3'; set qk_norm='head'"),
        ({"family": "qwen2"}, "attention_bias=False does not fit family='qwen2'; set attention_bias=True"),
        ({"family": "mixtral"}, "experts=None does not fit family='mixtral'"),
        ({"family": "llama", "experts": experts()}, "does not fit family='llama'"),
        ({"family": "mixtral", "experts": experts()}, "normalize=False does not fit family='mixtral'; set normalize=True"),
    ],
)
def test_a_network_that_could_never_be_exported_as_its_family_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        decoder(DecoderConfig(**SIZES | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "relu"}, "experts.score='relu' is unknown; choose one of softmax, sigmoid"),
        ({"per_token": 0}, "experts.per_token=0 must be at least 1"),
        ({"groups": 3}, "experts.groups=3 must divide experts.count=4"),
        ({"groups": 2, "top_groups": 3}, "at least experts.top_groups=3"),
        ({"per_token": 3, "groups": 2}, "experts.per_token=3 are more experts than a token can choose from"),
    ],
)
def test_wrong_experts_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        experts(**change)


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        (DeltaConfig, {"key_heads": 2, "value_heads": 3}, "delta.value_heads=3 must be a multiple of key_heads=2"),
        (DeltaConfig, {"key_heads": 0, "value_heads": 3}, "delta.key_heads=0 must be from 1"),
        (LatentConfig, {"rank": 0, "plain_dim": 2, "rotary_dim": 2}, "latent.rank=0 must be from 1"),
    ],
)
def test_wrong_sizes_of_states_and_latents_are_named(kind, sizes, message):
    with pytest.raises(ValueError, match=message):
        kind(**sizes, value_dim=2, **({"key_dim": 2} if kind is DeltaConfig else {}))


def test_layers_are_planned_as_periods_of_runs():
    types = (("delta",) * 3 + ("full",)) * 3 + ("delta",)
    delta = DeltaConfig(key_heads=1, value_heads=1, key_dim=2, value_dim=2)
    config = DecoderConfig(**SIZES | {"num_layers": 13}, layer_types=types, delta=delta)
    runs = [[run.layers.tolist() for run in period] for period in layers.plan(config)]
    assert runs == [[[[0, 1, 2], [4, 5, 6], [8, 9, 10]], [[3], [7], [11]]], [[[12]]]]
    assert {shape.stack: own for shape, own in config.stacks.items()}["layers"] == (3, 7, 11)


def test_layers_of_unlike_kinds_are_numbered():
    types = ("sliding", "full", "sliding")
    config = DecoderConfig(**SIZES | {"num_layers": 3}, layer_types=types, sliding_window=4, sliding_rope_theta=7.0)
    assert [kind.window for kind in config.kinds] == [4, None] and config.kind_of_layer == (0, 1, 0)
    assert [kind.rope_theta for kind in config.kinds] == [7.0, 10000.0]
    assert DecoderConfig(**SIZES, sliding_window=4).kind_of_layer == (0,)
