import dataclasses
import importlib.util
import pathlib

import jax
import pytest
import torch
import transformers

from jaxrl_llm import networks
from jaxrl_llm.networks import families, named

# Numbers in the safetensors of each repository, as the Hub counts them.
COUNTS = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    # The Hub counts the head of the two smallest, which is stored beside the embedding that it is tied to, once more.
    "qwen3-0.6b": 751_632_384 - 151_936 * 1024,
    "qwen3-1.7b": 2_031_739_904 - 151_936 * 2048,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "llama-2-7b": 6_738_417_664 - 32 * 64,  # Rotary frequencies are stored in each layer.
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    # Less the part that sees images: 416 866 032 in the tower, then a projection of 1152 numbers and a norm of as many.
    "gemma-3-4b": 4_300_079_472 - 416_866_032 - 1152 * (2560 + 1),
    "gemma-3-12b": 12_187_325_040 - 416_866_032 - 1152 * (3840 + 1),
    "gemma-3-27b": 27_432_406_640 - 416_866_032 - 1152 * (5376 + 1),
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b-v0.1": 46_702_792_704,
    "phi-3-mini-4k": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "olmoe-1b-7b": 6_919_161_856,
    # Less the layer that predicts several tokens at once, with an embedding and a head of its own: that by arithmetic.
    "glm-4.5-air": 110_468_824_832 - 3_616_573_568,
    # As `transformers` counts the text parts.
    "gemma-4-e2b": 4_628_569_379,
    "gemma-4-e4b": 7_463_013_418,
    "gemma-4-26b-a4b": 25_233_141_790,
    "gemma-4-31b": 30_697_345_340,
    "qwen3.5-0.8b": 752_393_024,
    "qwen3.5-2b": 1_881_825_088,
    "qwen3.5-4b": 4_205_751_296,
    "qwen3.5-9b": 8_953_803_264,
    "qwen3.5-27b": 26_895_998_464,
    "qwen3.5-35b-a3b": 34_660_610_688,
    "olmo-3-7b": 7_298_011_136,
    "olmo-3-32b": 32_233_522_176,
    "smollm3-3b": 3_075_098_624,
    # As `transformers` counts them: experts are stored as codes.
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    # As `transformers` counts it, without the layer that predicts several tokens at once.
    "deepseek-v3": 671_026_419_200,
}


def test_every_name_has_a_published_count():
    assert networks.names() == tuple(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_published(name):
    arrays = len(jax.live_arrays())
    assert networks.count_parameters(networks.config(name)) == COUNTS[name]
    assert len(jax.live_arrays()) == arrays


@pytest.mark.parametrize("name", COUNTS)
def test_config_json_comes_back(name):
    config = networks.config(name)
    assert families.from_huggingface(families.to_huggingface(config, "bfloat16")) == config


# One of each family.
@pytest.mark.parametrize(
    "name",
    [
        "qwen2.5-0.5b",
        "qwen3-0.6b",
        "qwen3-30b-a3b",
        "llama-3.2-1b",
        "gemma-2b",
        "gemma-2-2b",
        "gemma-3-4b",
        "mistral-7b-v0.1",
        "mixtral-8x7b-v0.1",
        "phi-3-mini-4k",
        "olmoe-1b-7b",
        "glm-4.5-air",
        "gemma-4-e2b",
        "gemma-4-26b-a4b",
        "qwen3.5-0.8b",
        "qwen3.5-2b",
        "qwen3.5-4b",
        "qwen3.5-27b",
        "qwen3.5-35b-a3b",
        "olmo-3-7b",
        "smollm3-3b",
        "gpt-oss-20b",
        "deepseek-v3",
    ],
)
def test_transformers_counts_as_many_from_the_same_config_json(name):
    fields = families.to_huggingface(networks.config(name), "bfloat16")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**fields))
    assert type(model).__name__ == fields["architectures"][0]
    biases = [buffer for path, buffer in model.named_buffers() if path.endswith(("e_score_correction_bias", "layer_scalar"))]
    assert sum(tensor.numel() for tensor in [*model.parameters(), *biases]) == COUNTS[name]


def test_what_shapes_do_not_show_is_as_published():
    small, large = networks.config("gemma-3-1b"), networks.config("gemma-3-27b")
    assert [kind.window for kind in small.kinds] == [512, None] and small.kind_of_layer[:7] == (0, 0, 0, 0, 0, 1, 0)
    assert [kind.rope_theta for kind in small.kinds] == [1e4, 1e6] and small.rope_scaling is None
    assert dict(large.rope_scaling) == {"rope_type": "linear", "factor": 8.0} and large.query_scale == 168**-0.5
    gemma2 = networks.config("gemma-2-27b")
    assert (gemma2.attention_softcap, gemma2.logit_softcap, gemma2.query_scale) == (50.0, 30.0, 144**-0.5)
    assert gemma2.kind_of_layer[:3] == (0, 1, 0) and gemma2.kinds[0].window == 4096
    assert dict(networks.config("llama-3.2-1b").rope_scaling)["factor"] == 32.0
    assert networks.config("qwen2.5-14b").norm_epsilon == 1e-5 and networks.config("qwen2.5-7b").norm_epsilon == 1e-6
    assert networks.config("mistral-7b-v0.1").sliding_window == 4096
    assert networks.config("mistral-7b-v0.3").sliding_window is None
    assert networks.config("qwen3-8b").eos_ids == (151645,) and networks.config("qwen3-8b").max_length == 40960
    glm = networks.config("glm-4.5-air")
    assert glm.experts.dense_layers == 1 and glm.rope_fraction == 0.5 and glm.attention_bias and glm.qk_norm == "none"


def test_changes_replace_fields():
    config = networks.config("qwen3-0.6b", dtype="bfloat16", remat="full", num_layers=2)
    assert (config.dtype, config.remat, config.num_layers) == ("bfloat16", "full", 2)
    assert dataclasses.replace(config, dtype="float32", remat="dots", num_layers=28) == networks.config("qwen3-0.6b")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen3-7b", {}, "name='qwen3-7b' is no published model .*qwen3-1.7b"),
        ("Qwen3-8B", {}, "choose one of qwen3-8b"),
        ("gpt", {}, "choose one of qwen2.5-0.5b, qwen2.5-1.5b"),
        ("qwen3-8b", {"dtypes": "bfloat16"}, "dtypes='bfloat16' is no field of DecoderConfig; did you mean dtype"),
        ("qwen3-8b", {"num_kv_heads": 7}, "num_heads=32 must be a multiple of num_kv_heads=7"),
    ],
)
def test_wrong_names_and_changes_are_errors(name, changes, message):
    with pytest.raises(ValueError, match=message):
        networks.config(name, **changes)


def test_a_repository_is_known_for_every_name():
    assert all(model.repository.count("/") == 1 for model in named.MODELS.values())


def test_the_tables_of_the_page_on_networks_are_up_to_date():
    folder = pathlib.Path(__file__).parents[2] / "docs"
    spec = importlib.util.spec_from_file_location("generate", folder / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    page = (folder / "networks.md").read_text(encoding="utf-8")
    assert page == generate.networks_page(), "run `python docs/generate.py`"
    assert all(f"\n| `{name}` |" in page for name in [*COUNTS, *families.FAMILIES])
    assert all(f" {count:,} |\n" in page for count in COUNTS.values())
