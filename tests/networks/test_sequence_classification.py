"""Reward models and other sequence classifiers in the format of the Hub: `*ForSequenceClassification`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_huggingface
import torch
import transformers

from jaxrl_llm.networks import DecoderConfig, decoder, families, load_huggingface, save_huggingface

pytestmark = pytest.mark.slow

# Every family whose class `transformers` has, some with their variants; biases, ties, windows and routers among them.
CLASSES = {
    "llama2": "LlamaForSequenceClassification",
    "llama3_tied": "LlamaForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
    "gemma": "GemmaForSequenceClassification",
    "gemma2": "Gemma2ForSequenceClassification",
    "gemma3": "Gemma3TextForSequenceClassification",
    "phi3": "Phi3ForSequenceClassification",
    "mixtral": "MixtralForSequenceClassification",
    "qwen3_moe": "Qwen3MoeForSequenceClassification",
    "olmo2": "Olmo2ForSequenceClassification",
    "olmo3": "Olmo3ForSequenceClassification",
    "smollm3": "SmolLM3ForSequenceClassification",
    "ministral3": "Ministral3ForSequenceClassification",
    "seed_oss": "SeedOssForSequenceClassification",
    "glm4": "Glm4ForSequenceClassification",
    "hunyuan": "HunYuanDenseV1ForSequenceClassification",
    "gpt_oss": "GptOssForSequenceClassification",
    "deepseek_v3": "DeepseekV3ForSequenceClassification",
    "qwen3_5": "Qwen3_5TextForSequenceClassification",
    "qwen3_next": "Qwen3NextForSequenceClassification",
}
LENGTHS = np.asarray([14, 20, 1])
# Token 0 is padding: `transformers` takes the last token that is none to be the last real one.
TOKENS = np.random.default_rng(0).integers(1, tiny_huggingface.VOCABULARY, (3, 20))
REAL = (np.arange(20) < LENGTHS[:, None]).astype(int)
TOLERANCE = 2e-4


def save_classifier(name, directory, outputs):
    auto = transformers.AutoModelForSequenceClassification
    model = tiny_huggingface.make_model(name, auto=auto, num_labels=outputs)
    model.save_pretrained(directory)
    return model


def their_scores(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS * REAL), attention_mask=torch.tensor(REAL)).logits.float().numpy()


def our_scores(network, params):
    """Values of the last real tokens, [B, outputs]."""
    values = jax.jit(lambda params: network.value(params, network.hidden(params, TOKENS * REAL, None, REAL)))(params)
    return np.asarray(values[np.arange(3), LENGTHS - 1]).reshape(3, -1)


@pytest.mark.parametrize("outputs", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CLASSES)
def test_scores_are_those_of_transformers_and_survive_an_export(name, outputs, tmp_path):
    model = save_classifier(name, tmp_path / "theirs", outputs)
    network = load_huggingface(tmp_path / "theirs")
    assert (network.config.language_head, network.config.value_head) == (False, outputs)
    expected = their_scores(model)
    assert type(model).__name__ == CLASSES[name] and expected.shape == (3, outputs) and expected.std() > 0.05
    np.testing.assert_allclose(our_scores(network, network.params), expected, rtol=0, atol=TOLERANCE)

    save_huggingface(network, network.params, tmp_path / "ours")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert type(again).__name__ == CLASSES[name] and again.config.architectures == [CLASSES[name]]
    assert again.config.num_labels == outputs
    np.testing.assert_allclose(their_scores(again), expected, rtol=0, atol=TOLERANCE)
    stored = safetensors.numpy.load_file(tmp_path / "ours" / "model.safetensors")
    assert stored.keys() == safetensors.numpy.load_file(tmp_path / "theirs" / "model.safetensors").keys()


def test_two_labels_are_what_a_config_without_labels_means(tmp_path):
    save_classifier("qwen3", tmp_path, 2)
    theirs = json.loads((tmp_path / "config.json").read_text())
    theirs.pop("id2label", None), theirs.pop("label2id", None)
    assert transformers.AutoConfig.for_model(**theirs).num_labels == families.from_huggingface(theirs).value_head == 2


def test_a_classifier_has_no_logits_and_a_causal_checkpoint_no_values(tmp_path):
    save_classifier("llama3_tied", tmp_path / "classifier", 1)
    network = load_huggingface(tmp_path / "classifier")
    with pytest.raises(ValueError, match="language_head=False: this network has no logits"):
        network.apply(network.params, TOKENS)
    tiny_huggingface.save_model("llama3_tied", tmp_path / "causal")
    before = {file.name: file.read_bytes() for file in (tmp_path / "causal").iterdir()}
    causal = load_huggingface(tmp_path / "causal")
    assert causal.value is None and causal.config.language_head
    save_huggingface(causal, causal.params, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert "id2label" not in json.loads((tmp_path / "again" / "config.json").read_text())
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "causal").iterdir()}


def test_a_reward_model_made_here_loads_in_transformers(tmp_path):
    sizes = {"vocab_size": 67, "hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 2, "pad_id": 0}
    network = decoder(DecoderConfig(**sizes, family="qwen2", attention_bias=True, language_head=False, value_head=1))
    params = network.init(jax.random.key(0))
    params |= {"value_head": jax.random.normal(jax.random.key(1), (1, 16))}
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    for own in (params, narrow):
        save_huggingface(network, own, tmp_path)
        again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), own)
        np.testing.assert_allclose(our_scores(network, wide), their_scores(again), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("architecture", ["Qwen3Model", "Qwen3ForTokenClassification"])
def test_other_heads_are_refused_by_name(architecture, tmp_path):
    save_classifier("qwen3", tmp_path, 1)
    theirs = json.loads((tmp_path / "config.json").read_text()) | {"architectures": [architecture]}
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    with pytest.raises(ValueError, match=f"architectures=.'{architecture}'. is not supported; the classes are .ForCausalLM"):
        load_huggingface(tmp_path)
