"""What `convert` writes: a reward model as what it is, the dtype that was asked for, the base of an adapter."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors
from training import tiny_runs
from training.tiny_runs import opened, quick_compilation, tiny_config  # noqa: F401

from jaxrl_llm.training.checkpoint import save_params
from jaxrl_llm.training.policies import convert, load_policy


def stored_dtypes(folder) -> set[str]:
    with safetensors.safe_open(folder / "model.safetensors", "np") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def test_the_dtype_counts_for_what_is_written(tmp_path):
    source = tiny_runs.chat_model()
    convert(source, tmp_path / "half", to="huggingface", dtype="bfloat16")
    assert stored_dtypes(tmp_path / "half") == {"BF16"}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    convert(source, tmp_path / "orbax", to="orbax", dtype="bfloat16")
    network, _ = load_policy(tmp_path / "orbax")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(network.params)} == {"bfloat16"}
    # From a folder of ours too, which has a dtype of its own.
    convert(tmp_path / "orbax", tmp_path / "whole", to="huggingface", dtype="float32")
    convert(tmp_path / "orbax", tmp_path / "as_it_is", to="huggingface")
    assert stored_dtypes(tmp_path / "whole") == {"F32"} and stored_dtypes(tmp_path / "as_it_is") == {"BF16"}
    with pytest.raises(ValueError, match="dtype is 'float31'"):
        convert(source, tmp_path / "new", to="orbax", dtype="float31")


def test_of_several_folders_the_mean_is_written(tmp_path):
    convert(tiny_runs.chat_model(), tmp_path / "one", to="orbax")
    network, _ = load_policy(tmp_path / "one")
    others = {"two": jax.tree.map(lambda leaf: 4 * leaf, network.params), "other": {"embedding": np.zeros(3, np.float32)}}
    for name, params in others.items():
        shutil.copytree(tmp_path / "one", tmp_path / name, ignore=shutil.ignore_patterns("params"))
        save_params(tmp_path / name / "params", params)
    convert(f"{tmp_path / 'one'},{tmp_path / 'two'},{tmp_path / 'one'}", tmp_path / "mean", to="orbax")
    found, tokenizer = load_policy(tmp_path / "mean")
    jax.tree.map(lambda mean, leaf: np.testing.assert_allclose(mean, 2 * leaf, rtol=1e-6), found.params, network.params)
    assert tokenizer.chat_template
    with pytest.raises(ValueError):
        convert(f"{tmp_path / 'one'},{tmp_path / 'other'}", tmp_path / "new", to="orbax")


@pytest.mark.slow
def test_an_adapter_names_its_base(tmp_path):
    config = tiny_config()
    config.tokenizer, config.network.directory = "", str(tiny_runs.chat_model())
    config.network.adapter.pattern = "attention"
    from jaxrl_llm.training import loop

    config.rl.steps, config.sft.steps, config.rewards.names = 0, 1, ()
    config.task.max_prompt_tokens = 16
    loop.train(config, tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "adapter", to="peft")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tiny_runs.chat_model())


@pytest.mark.slow
def test_a_reward_model_is_a_classifier_of_transformers(tmp_path):
    import torch
    import transformers
    from training.tiny_preferences import finished_reward_model

    run = finished_reward_model().workdir
    convert(run, tmp_path / "theirs", to="huggingface")
    stored = json.loads((tmp_path / "theirs" / "config.json").read_text())
    network, tokenizer = load_policy(run)
    assert stored["architectures"] == ["Qwen3ForSequenceClassification"] and len(stored["id2label"]) == 1
    assert stored["pad_token_id"] == tokenizer.pad_id != tokenizer.eos_id
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "theirs")
    assert model.config.num_labels == 1
    texts = [[*tokenizer.encode(text), tokenizer.eos_id] for text in ("1+2=1+2=3#3", "7+5=2#2", "9+9=")]
    width = max(map(len, texts))
    tokens = np.array([text + [tokenizer.pad_id] * (width - len(text)) for text in texts])
    real = np.array([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    with torch.no_grad():
        theirs = model(torch.tensor(tokens), attention_mask=torch.tensor(real)).logits[:, 0].numpy()
    hidden = network.hidden(network.params, tokens, None, real)
    ours = np.asarray(network.value(network.params, hidden))[np.arange(3), real.sum(axis=1) - 1]
    np.testing.assert_allclose(theirs, ours, atol=2e-5)
    assert np.ptp(ours) > 1e-3
    convert(run, tmp_path / "orbax", to="orbax")
    convert_config = json.loads((tmp_path / "orbax" / "network.json").read_text())
    assert convert_config["language_head"] is False and convert_config["value_head"] == 1
