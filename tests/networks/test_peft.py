import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import safetensors.torch
import tiny_huggingface
import torch
from oracles.tiny_policy import jit

from jaxrl_llm.networks import (
    ADAPTER,
    AdapterConfig,
    add_adapter,
    decoder,
    join_params,
    load_huggingface,
    load_peft,
    save_peft,
    split_params,
)

pytestmark = pytest.mark.slow

TOKENS = np.random.default_rng(0).integers(0, tiny_huggingface.VOCABULARY, (2, 20))
TOLERANCE = 2e-4
ALL = "attention|mlp|embedding|head"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Makes the network of a tiny checkpoint, once."""

    @functools.cache
    def load(name):
        directory = tmp_path_factory.mktemp(name)
        tiny_huggingface.save_model(name, directory)
        network = load_huggingface(directory)
        return network.without_params(), network.params

    return load


def adapted(base, adapter):
    """The network with an adapter that changes something."""
    network, params = add_adapter(*base, adapter, jax.random.key(0))
    trained, frozen = split_params(params, ADAPTER)
    random = np.random.default_rng(1)
    noisy = jax.tree.map(lambda leaf: np.float32(leaf + 0.2 * random.normal(size=leaf.shape)), trained)
    return network, join_params(jax.tree.map(jnp.asarray, noisy), frozen)


@functools.partial(jit, static_argnums=0)
def our_logits(network, params):
    return network.apply(params, TOKENS)


def their_logits(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.float().numpy()


def their_adapter(name, directory, **options):
    """A model of `name` with a random adapter of PEFT, which is saved; options are those of LoraConfig."""
    wanted = peft.LoraConfig(**{"r": 3, "lora_alpha": 6, "task_type": "CAUSAL_LM"} | options)
    model = peft.get_peft_model(tiny_huggingface.make_model(name), wanted).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "lora_" in path:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(directory)
    return model


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "kind", "pattern"),
    [
        slow("llama2", "lora", r"attention\.(query|value)"),
        ("llama3_tied", "dora", ALL),
        ("qwen2", "lora", ALL),
        slow("qwen2", "rslora", ALL),
        ("qwen2", "dora", ALL),
        ("qwen3", "dora", r"attention\.output|mlp\."),
        slow("deepseek_v3", "lora", r"attention\."),
        slow("qwen3_5", "lora", r"attention\.|mlp\.|delta\.(gate|strength|decay|output)"),
        slow("gemma2", "lora", "attention|mlp"),
        ("gemma2", "dora", ALL),
        ("mistral", "rslora", "attention"),
        slow("phi3", "lora", r"attention\.output|mlp\.down|embedding"),
        slow("glm4_moe", "rslora", "attention|head"),
    ],
)
def test_peft_loads_ours_and_agrees_and_we_load_it_back(base, name, kind, pattern, tmp_path):
    network, params = adapted(base(name), AdapterConfig(pattern, 3, 6.0, kind))
    save_peft(network, params, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_huggingface.make_model(name), tmp_path)
    found = our_logits(network, params)
    assert np.abs(their_logits(theirs) - found).max() <= TOLERANCE
    assert np.abs(found - our_logits(*base(name))).max() > 0.5
    again, restored = load_peft(*base(name), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    assert (again.config.adapter.rank, again.config.adapter.alpha, again.config.adapter.kind) == (3, 6.0, kind)


@pytest.mark.parametrize(("name", "kind"), [("mixtral", "lora"), ("qwen3_moe", "rslora")])
def test_adapters_of_experts_are_loaded_by_peft(base, name, kind, tmp_path):
    network, params = adapted(base(name), AdapterConfig(r"experts|attention\.query", 2, 3.0, kind))
    save_peft(network, params, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_huggingface.make_model(name), tmp_path)
    found = our_logits(network, params)
    assert np.abs(their_logits(theirs) - found).max() <= TOLERANCE
    np.testing.assert_allclose(our_logits(*load_peft(*base(name), tmp_path)), found, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama2", {"target_modules": ["q_proj", "v_proj"]}),
        ("qwen2", {"target_modules": "all-linear", "use_rslora": True}),
        ("qwen3", {"target_modules": r".*\.(q_proj|down_proj)", "use_dora": True}),
        ("qwen3_tied", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True, "use_rslora": True}),
        ("gemma2", {"target_modules": ["embed_tokens", "lm_head", "o_proj"], "lora_dropout": 0.5}),
        ("mistral", {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 5}, "alpha_pattern": {"q_proj": 1}}),
        (
            "qwen2",
            {
                "target_modules": ["k_proj", "gate_proj"],
                "use_rslora": True,
                "init_lora_weights": "gaussian",
                "rank_pattern": {"layers.1.self_attn.k_proj": 7},
                "alpha_pattern": {"gate_proj": 2.5},
            },
        ),
        ("llama2", {"target_modules": ["o_proj"], "layers_to_transform": [1]}),
        ("glm4_moe", {"target_modules": ["q_proj"], "layers_to_transform": [2]}),
    ],
)
def test_we_load_theirs_and_agree(base, name, options, tmp_path):
    model = their_adapter(name, tmp_path, **options)
    network, params = load_peft(*base(name), tmp_path)
    found = our_logits(network, params)
    assert np.abs(their_logits(model) - found).max() <= TOLERANCE
    assert np.abs(found - our_logits(*base(name))).max() > 1e-2
    assert params["final_norm"]["scale"] is base(name)[1]["final_norm"]["scale"]


def test_layers_that_were_left_out_never_train(base, tmp_path):
    their_adapter("llama2", tmp_path, target_modules=["o_proj"], layers_to_transform=[1])
    network, params = load_peft(*base("llama2"), tmp_path)
    trained, frozen = split_params(params, ADAPTER)
    gradient = jit(jax.grad(lambda trained: network.apply(join_params(trained, frozen), TOKENS)[..., 0].sum()))(trained)
    for leaf in jax.tree.leaves(gradient):
        assert not leaf[0].any() and leaf[1].any()


def test_tensors_of_bfloat16_are_read(base, tmp_path):
    their_adapter("llama2", tmp_path, target_modules=["q_proj"])
    _, exact = load_peft(*base("llama2"), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(tensors, file)
    _, params = load_peft(*base("llama2"), tmp_path)
    found, expected = (tree["layers"]["attention"]["query"]["lora_a"] for tree in (params, exact))
    np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA' is not supported; it must be 'LORA'"),
        ({"bias": "lora_only"}, "bias='lora_only' is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported"),
        ({"trainable_token_indices": [1, 2]}, r"trainable_token_indices=\[1, 2\] is not supported"),
        ({"target_parameters": ["w"]}, r"target_parameters=\['w'\] is not supported"),
        ({"lora_bias": True}, "lora_bias=True is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the base; convert the adapter"),
        ({"some_new_field": {"a": 1}}, "some_new_field={'a': 1} is not supported"),
        ({"use_dora": True}, r"q_proj has \['lora_a', 'lora_b'\]; use_dora=True asks for"),
    ],
)
def test_settings_that_are_not_supported_are_refused_by_name(base, change, message, tmp_path):
    network, params = adapted(base("llama2"), AdapterConfig(r"attention\.query", 2, 2.0))
    save_peft(network, params, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_peft(*base("llama2"), tmp_path)


QUERY = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model.model.norm.lora_A.weight": np.zeros((2, 32))}, "norm.lora_A.weight belongs to no matrix that can be"),
        ({f"{QUERY}B.weight": None}, r"layers.0.self_attn.q_proj has \['lora_a'\]; use_dora=False asks for"),
        ({f"{QUERY}A.weight": np.zeros((2, 31))}, r"lora_a of attention.query is \(2, 31\); the network needs \(2, 32\)"),
        ({"base_model.model.lm_head.weight": np.zeros((67, 32))}, "lm_head.weight differs from the network's"),
    ],
)
def test_tensors_that_do_not_fit_are_named(base, change, message, tmp_path):
    save_peft(*adapted(base("llama2"), AdapterConfig(r"attention\.query", 2, 2.0)), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(file) | change
    safetensors.numpy.save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)
    with pytest.raises(ValueError, match=message):
        load_peft(*base("llama2"), tmp_path)


def test_layers_without_dora_are_refused(base, tmp_path):
    their_adapter("llama2", tmp_path, target_modules=["o_proj"], layers_to_transform=[1], use_dora=True)
    with pytest.raises(ValueError, match="use_dora=True with adapters in 1 of 2 modules .* layers_to_transform=null"):
        load_peft(*base("llama2"), tmp_path)


@pytest.mark.parametrize(
    ("name", "pattern", "message"),
    [
        ("phi3", "attention", "adapter of attention.query, which shares the tensor .*qkv_proj.weight with others; export"),
        ("glm4_moe", "shared", "adapter of experts.shared.gate, which PEFT takes for one of the experts"),
        ("glm4_moe", "mlp", "adapter of mlp.gate, which PEFT takes for one of the experts"),
        ("qwen3_5", r"delta\.key", "adapter of delta.key, which shares the tensor .*in_proj_qkv.weight with others"),
        ("gpt_oss", "experts.down", "adapter of experts.down, which shares the tensor .*down_proj.weight with others"),
        ("mixtral", "experts.up", "adapter of experts.up, which PEFT adapts only with experts.down and experts.gate"),
    ],
)
def test_what_peft_has_no_form_for_is_not_saved(base, name, pattern, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_peft(*adapted(base(name), AdapterConfig(pattern, 2, 2.0)), tmp_path)


def test_what_is_not_there_is_neither_saved_nor_loaded(base, tmp_path):
    network, params = base("llama2")
    with pytest.raises(ValueError, match="config.adapter of this network is None"):
        save_peft(network, params, tmp_path)
    nameless = decoder(dataclasses.replace(network.config, family=None))
    with pytest.raises(ValueError, match="config.family of this network is None"):
        save_peft(*adapted((nameless, params), AdapterConfig("mlp", 2, 2.0)), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_peft(*adapted((network, params), AdapterConfig("mlp", 2, 2.0)), tmp_path)
    safetensors.numpy.save_file({}, file)
    with pytest.raises(ValueError, match="adapter_model.safetensors has no tensors of an adapter"):
        load_peft(network, params, tmp_path)
    with pytest.raises(FileNotFoundError, match="adapter_config.json is not there"):
        load_peft(network, params, tmp_path / "nowhere")
