import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import tiny_huggingface
import torch
import transformers
from networks.stepwise import stepwise_logits

from jaxrl_llm.networks import DecoderConfig, decoder, families, huggingface_config, load_huggingface, save_huggingface

LENGTHS = np.asarray([23, 40, 9])
TOKENS = np.random.default_rng(0).integers(0, tiny_huggingface.VOCABULARY, (3, 40))
TOLERANCE = 2e-4
HALF_TURNED = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"partial_rotary_factor": 0.5}}
LOCALLY_SCALED = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}}
QWEN3_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}


@pytest.fixture(scope="module", params=tiny_huggingface.PARAMETERS)
def pair(request, tmp_path_factory):
    """A model of `transformers` and the network read from its checkpoint."""
    directory = tmp_path_factory.mktemp(request.param)
    model = tiny_huggingface.save_model(request.param, directory)
    return model, load_huggingface(directory)


def their_logits(model, tokens, mask=None):
    mask = None if mask is None else torch.tensor(mask)
    with torch.no_grad():
        return model(torch.tensor(tokens), attention_mask=mask).logits.float().numpy()


@functools.partial(jax.jit, static_argnums=0)
def our_logits(network, params, tokens, positions, segments):
    return network.apply(params, tokens, positions, segments)


def logits_of(network, tokens, positions=None, segments=None):
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
    segments = np.ones_like(tokens) if segments is None else segments
    return our_logits(network.without_params(), network.params, tokens, positions, segments)


def test_right_padded_rows_match_transformers(pair):
    model, network = pair
    real = (np.arange(TOKENS.shape[1]) < LENGTHS[:, None]).astype(int)
    expected, found = their_logits(model, TOKENS, real), logits_of(network, TOKENS, None, real)
    assert found.dtype == jnp.float32 and expected.std() > 0.5
    assert np.abs(found - expected)[real == 1].max() <= TOLERANCE


def test_packed_rows_match_transformers_on_each_sequence(pair):
    model, network = pair
    bounds = [(0, 17), (17, 30), (30, 37)]
    positions, segments = np.zeros((2, *TOKENS.shape), int)
    for number, (start, end) in enumerate(bounds, start=1):
        positions[:, start:end], segments[:, start:end] = np.arange(end - start), number
    found = logits_of(network, TOKENS, positions, segments)
    for start, end in bounds:
        expected = their_logits(model, TOKENS[:, start:end])
        assert np.abs(found[:, start:end] - expected).max() <= TOLERANCE


def test_greedy_continuation_is_the_one_of_transformers(pair):
    model, network = pair
    found = stepwise_logits(network, network.params, TOKENS, LENGTHS, 24, greedy=True).argmax(-1)
    for row, length in enumerate(LENGTHS):
        prompt = torch.tensor(TOKENS[row : row + 1, :length])
        expected = model.generate(prompt, max_new_tokens=24, do_sample=False, attention_mask=torch.ones_like(prompt))
        np.testing.assert_array_equal(found[row], expected[0, length:])


def test_export_loads_in_transformers_and_in_ours(pair, tmp_path):
    model, network = pair
    changed = jax.tree.map(lambda x: x * 1.25, network.params)
    save_huggingface(network, changed, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs) is type(model) and theirs.dtype == torch.float32
    found = logits_of(network.with_params(changed), TOKENS)
    assert np.abs(their_logits(theirs, TOKENS) - found).max() <= TOLERANCE
    again = load_huggingface(tmp_path)
    assert again == network
    chex.assert_trees_all_equal(again.params, changed)


ONE_OF_EACH = [*tiny_huggingface.FIRST, "qwen3_next"]
ONE_OF_EACH += [
    pytest.param(name, marks=pytest.mark.slow)
    for name in (
        "olmo2",
        "olmo3",
        "smollm3",
        "ministral3",
        "seed_oss",
        "granite",
        "glm4",
        "hunyuan",
        "gemma4_experts",
        "qwen3_5_moe",
    )
]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_bfloat16_is_bit_equal_to_the_stored_weights(name, tmp_path):
    tiny_huggingface.save_model(name, tmp_path / "theirs", dtype=torch.bfloat16)
    network = load_huggingface(tmp_path / "theirs", dtype="bfloat16")
    bias = "selection_bias"  # As published, float32 whatever the rest is; `transformers` narrows it.
    dtypes = {path[-1].key: leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(network.params)}
    assert all(dtype == (jnp.float32 if name == bias else jnp.bfloat16) for name, dtype in dtypes.items())
    save_huggingface(network, network.params, tmp_path / "ours")
    stored = safetensors.torch.load_file(tmp_path / "theirs" / "model.safetensors")
    written = safetensors.torch.load_file(tmp_path / "ours" / "model.safetensors")
    assert stored.keys() == written.keys()
    assert all(torch.equal(written[key], stored[key]) for key in stored)
    assert all(written[key].dtype == torch.bfloat16 for key in stored if not key.endswith("correction_bias"))
    wide = load_huggingface(tmp_path / "theirs", compute_dtype="bfloat16")
    assert (wide.config.dtype, wide.config.param_dtype) == ("bfloat16", "float32")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float32)), wide.params, network.params)


def test_shards_with_an_index_are_read_and_written(tmp_path):
    model = tiny_huggingface.save_model("qwen3", tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    network = load_huggingface(tmp_path)
    save_huggingface(network, network.params, tmp_path / "ours", max_shard_bytes=30_000)
    files = sorted((tmp_path / "ours").glob("model-*.safetensors"))
    assert len(files) > 2 and all(file.stat().st_size < 34_000 for file in files)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), model.parameters(), strict=True))
    save_huggingface(network, network.params, tmp_path / "ours")
    assert sorted(file.name for file in (tmp_path / "ours").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["llama3_tied", "qwen2_tied", "qwen3"])
def test_old_and_new_spellings_of_rotary_settings_mean_the_same(name, tmp_path):
    tiny_huggingface.save_model(name, tmp_path)
    new = load_huggingface(tmp_path)
    theirs = json.loads((tmp_path / "config.json").read_text())
    options = theirs.pop("rope_parameters")
    theirs["rope_theta"] = options.pop("rope_theta")
    options["type"] = options.pop("rope_type")
    theirs["rope_scaling"] = None if options["type"] == "default" else options
    assert families.from_huggingface(theirs) == dataclasses.replace(new.config, dtype="float32")
    assert new.config.rope_theta == {"llama3_tied": 5e5, "qwen2_tied": 1e4, "qwen3": 5e6}[name]


def test_a_network_made_from_scratch_is_exported(tmp_path):
    sizes = {"vocab_size": 67, "hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 2}
    config = DecoderConfig(**sizes, family="qwen3", head_dim=6, qk_norm="head", tie_embeddings=True, eos_ids=(3, 5), bos_id=1)
    network = decoder(config)
    params = network.init(jax.random.key(0))
    save_huggingface(network, params, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id, theirs.config.pad_token_id) == (1, [3, 5], None)
    assert np.abs(their_logits(theirs, TOKENS) - network.apply(params, TOKENS)).max() <= TOLERANCE
    assert load_huggingface(tmp_path).config == config


def test_a_value_head_is_zero_at_first_and_comes_back_after_an_export(tmp_path):
    tiny_huggingface.save_model("llama2", tmp_path)
    network = load_huggingface(tmp_path, value_head=1)
    np.testing.assert_array_equal(network.value(network.params, np.ones((2, 3, 32))), np.zeros((2, 3)))
    trained = network.params | {"value_head": jnp.arange(32.0)[None]}
    save_huggingface(network, trained, tmp_path)
    again = load_huggingface(tmp_path, value_head=1)
    np.testing.assert_array_equal(again.params["value_head"], trained["value_head"])
    assert load_huggingface(tmp_path).value is None
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path).config.model_type == "llama"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2' is not supported; the families are llama, mistral, qwen2"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not supported"),
        ({"hidden_act": "gelu"}, "the activation 'gelu' is not supported; it must be 'silu'"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types has .'linear_attention'.; the supported types"),
        ({"hidden_size": None}, "hidden_size is missing"),
        (
            {"rope_parameters": {"rope_type": "longrope", "factor": 4.0}},
            "rope_parameters.rope_type='longrope' .* not supported",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "slope": 1.0}}, "type 'yarn' has .'slope'., which"),
        ({"rope_scaling": {"rope_type": "dynamic", "alpha": 9.0}}, "rope_scaling has .'alpha'., not supported with model_type"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling.rope_type='dynamic' .* is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported with model_type='qwen3'; remove it"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, "partial_rotary_factor=0.25 is not"),
        ({"model_type": "gemma3_text", "rope_parameters": HALF_TURNED}, "partial_rotary_factor=0.5 is not supported with"),
        ({"model_type": "gemma3_text", "rope_parameters": LOCALLY_SCALED}, "rope_parameters.sliding_attention={.* is not supp"),
        ({"mlp_bias": True, "model_type": "llama"}, "mlp_bias=True is not supported; it must be False or absent"),
        ({"architectures": ["Qwen3ForQuestionAnswering"]}, "architectures=.'Qwen3ForQuestionAnswering'. is not supported"),
        ({"model_type": "gemma", "use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ({"model_type": "gemma3"}, "config.json: text_config is missing; a gemma3 checkpoint must have it"),
        ({"model_type": "mixtral"}, "num_local_experts is missing"),
        ({"model_type": "olmoe", "clip_qkv": 8.0}, "clip_qkv=8.0 is not supported"),
        ({"model_type": "qwen3_moe", **QWEN3_EXPERTS, "decoder_sparse_step": 2}, "decoder_sparse_step=2 is not supported"),
        ({"model_type": "qwen3_moe", **QWEN3_EXPERTS, "mlp_only_layers": [1]}, "mlp_only_layers=.1. is not supported"),
        ({"hidden_size": "x"}, "config.json: hidden_size is 'x'; it must be a whole number from 1 to 10000000"),
        ({"vocab_size": 1.5}, "vocab_size is 1.5; it must be a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it must be a whole number from 1"),
        ({"num_attention_heads": True}, "num_attention_heads is True; it must be a whole number"),
        ({"num_key_value_heads": 3}, "config.json: num_attention_heads=2 must be a multiple of num_key_value_heads=3"),
        ({"rope_theta": float("nan")}, "rope_theta is nan; it must be a number above 1"),
        ({"eos_token_id": [1, -1]}, r"eos_token_id\[1\] is -1; it must be a whole number from 0"),
        ({"eos_token_id": 67}, "eos_token_id=.67,. has a token outside of vocab_size=67"),
        ({"num_hidden_layers": 2 * 10**9}, "num_hidden_layers is 2000000000; it must be a whole number from 1 to 10000"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters of type 'yarn' has no factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "x"}}, "rope_scaling.factor is 'x'; it must be a number above 0"),
        ({"model_type": None}, "model_type=None is not supported"),
        ({"model_type": ["qwen3"]}, r"model_type is \['qwen3'\]; it must be a string"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; it must be true or false"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
    theirs = {"model_type": "qwen3", "vocab_size": 67, "hidden_size": 16, "intermediate_size": 24}
    theirs |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    assert families.from_huggingface(theirs).head_dim == 128
    with pytest.raises(ValueError, match=message):
        families.from_huggingface(theirs | change)


def rewrite(directory, change):
    """Changes the dict of tensors of a checkpoint in place."""
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"1 missing \['model.norm.weight'\], 0 unexpected"),
        (lambda t: t.update(extra=np.zeros(2, np.float32)), r"0 missing \[\], 1 unexpected \['extra'\]"),
        (lambda t: t.update({"model.norm.weight": np.zeros(31, np.float32)}), r"norm.weight has shape \(31,\); .* \(32,\)"),
        (lambda t: t.update({"model.norm.weight": np.zeros(32, np.int8)}), "model.norm.weight is stored as I8; only F32"),
        (lambda t: t.update({"lm_head.weight": np.zeros((67, 32), np.float32)}), "lm_head.weight differs from the embedding"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message, tmp_path):
    tiny_huggingface.save_model("qwen3_tied", tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_huggingface(tmp_path)


def test_a_tied_checkpoint_may_store_its_head_and_old_buffers(tmp_path):
    tiny_huggingface.save_model("qwen2_tied", tmp_path)
    expected = load_huggingface(tmp_path).params

    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)

    rewrite(tmp_path, add)
    chex.assert_trees_all_equal(load_huggingface(tmp_path).params, expected)


def test_a_directory_without_safetensors_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json is not there .*found: no such directory"):
        load_huggingface(tmp_path / "nowhere")
    tiny_huggingface.save_model("llama2", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="model.safetensors is not there .*pytorch_model.bin"):
        load_huggingface(tmp_path)


def test_parameters_of_another_structure_are_not_exported(tmp_path):
    network = decoder(DecoderConfig(vocab_size=9, hidden_size=4, intermediate_size=4, num_layers=1, num_heads=1))
    with pytest.raises(ValueError, match="config.family of this network is None"):
        save_huggingface(network, {}, tmp_path)
    with pytest.raises(ValueError, match="rope_fraction=0.5 does not fit family='llama'; set rope_fraction=1.0"):
        decoder(dataclasses.replace(network.config, family="llama", rope_fraction=0.5))
    network = decoder(dataclasses.replace(network.config, family="llama"))
    with pytest.raises(ValueError, match=r"params\[embedding\] has shape None; the network's has \(9, 4\) \(12 such"):
        save_huggingface(network, {}, tmp_path)


WHOLE_TEXT = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
WHOLE_TEXT |= {"num_key_value_heads": 2, "head_dim": 16, "eos_token_id": 66, "bos_token_id": 1, "pad_token_id": 0}
_SEES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_STATES = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 6}
_STATES |= {"layer_types": ["linear_attention", "full_attention"]}
_OWN = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}


@pytest.mark.parametrize(
    ("name", "text", "seeing"),
    [
        pytest.param("Gemma3", {"sliding_window": 7}, _SEES | {"image_size": 28, "patch_size": 14}, marks=pytest.mark.slow),
        pytest.param(
            "Gemma4",
            {"global_head_dim": 8, "hidden_size_per_layer_input": 0, "layer_types": ["sliding_attention", "full_attention"]},
            _SEES | {"num_key_value_heads": 2, "head_dim": 8},
            marks=pytest.mark.slow,
        ),
        ("Qwen3_5", _STATES, _OWN | {"num_position_embeddings": 16}),
    ],
)
def test_the_text_part_of_a_model_that_sees_comes_and_goes_with_the_whole(name, text, seeing, tmp_path, caplog):
    options = {"audio_config": None} if name == "Gemma4" else {}
    config = getattr(transformers, f"{name}Config")(text_config=WHOLE_TEXT | text, vision_config=seeing, **options)
    kind = getattr(transformers, f"{name}ForConditionalGeneration")
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    model.save_pretrained(tmp_path / "theirs")
    with caplog.at_level("INFO"):
        network = load_huggingface(tmp_path / "theirs")
    assert "tensors beside the text part are kept for exports: " in caplog.text
    assert huggingface_config(tmp_path / "theirs") == network.config
    assert np.abs(logits_of(network, TOKENS) - their_logits(model, TOKENS)).max() <= TOLERANCE
    changed = jax.tree.map(lambda x: x * 1.25, network.params)
    save_huggingface(network, changed, tmp_path / "ours")
    again = kind.from_pretrained(tmp_path / "ours").eval()
    assert np.abs(logits_of(network.with_params(changed), TOKENS) - their_logits(again, TOKENS)).max() <= 2 * TOLERANCE
    stored, written = (safetensors.torch.load_file(tmp_path / who / "model.safetensors") for who in ("theirs", "ours"))
    assert stored.keys() == written.keys()
    assert any(torch.equal(stored[key], written[key]) for key in stored if "vision" in key or "visual" in key)
    (tmp_path / "theirs" / "config.json").unlink()
    with pytest.raises(ValueError, match="other_parts=.* is not there any more"):
        save_huggingface(network, changed, tmp_path / "ours")
