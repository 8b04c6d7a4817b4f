"""A policy from wherever it lies, and conversion between the formats."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from training import tiny_runs
from training.tiny_runs import finished, finished_grade_school, quick_compilation  # noqa: F401

from jaxrl_llm import data, networks
from jaxrl_llm.distributed import make_mesh
from jaxrl_llm.training import checkpoint, policies
from jaxrl_llm.training.evaluate import evaluate_policy

TOKENS = np.array([[5, 1, 3, 7, 2, 9], [2, 2, 4, 8, 1, 6]])


@pytest.fixture(scope="module")
def chat_model():
    return tiny_runs.chat_model()


def assert_same_policy(one, other):
    assert one.without_params() == other.without_params()
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def assert_transformers_agrees(network, directory, atol=2e-4):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS)).logits.numpy()
    np.testing.assert_allclose(network.apply(network.params, jnp.asarray(TOKENS)), theirs, atol=atol)


def test_a_run(tmp_path):
    run = finished("dr_grpo")
    network, tokenizer = policies.load_policy(run.workdir)
    like = jax.eval_shape(network.init, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, network.params, checkpoint.restore_params(run.workdir / "checkpoints", like))
    assert tokenizer.decode(tokenizer.encode("1+2=3")) == "1+2=3"
    assert network.config.eos_ids == tokenizer.stop_ids


def test_the_policy_of_an_actor_and_a_critic():
    run = finished("ppo")
    network, _ = policies.load_policy(run.workdir)
    assert not network.config.value_head and "value_head" not in network.params
    like = jax.eval_shape(network.init, jax.random.key(0))
    stored = checkpoint.restore_params(run.workdir / "checkpoints", like, path=("params", "policy"))
    jax.tree.map(np.testing.assert_array_equal, network.params, stored)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dr_grpo", "ppo"])
def test_a_run_to_huggingface(method, tmp_path):
    run = finished(method)
    network, _ = policies.load_policy(run.workdir)
    policies.convert(run.workdir, tmp_path / "exported", to="huggingface")
    assert_transformers_agrees(network, tmp_path / "exported")
    again = networks.load_huggingface(tmp_path / "exported")
    jax.tree.map(np.testing.assert_array_equal, again.params, network.params)


@pytest.mark.slow
def test_a_run_from_a_checkpoint_keeps_its_tokenizer(chat_model, tmp_path):
    run, target = finished_grade_school(), tmp_path / "exported"
    policies.convert(run.workdir, target, to="huggingface")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (target / name).read_bytes() == (chat_model / name).read_bytes()
    ours, tokenizer = policies.load_policy(target)
    trained, _ = policies.load_policy(run.workdir)
    jax.tree.map(np.testing.assert_array_equal, ours.params, trained.params)
    start = networks.load_huggingface(chat_model).params
    pairs = zip(jax.tree.leaves(start), jax.tree.leaves(ours.params), strict=True)
    assert any(np.any(np.asarray(before) != np.asarray(after)) for before, after in pairs)
    assert_transformers_agrees(ours, target)
    # transformers reads tokenizer and template as we do.
    messages = [{"role": "user", "content": "A baker fills 12 trays. €"}]
    theirs = transformers.AutoTokenizer.from_pretrained(target)
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert theirs(text)["input_ids"] == data.encode_prompt(tokenizer, messages)
    assert tokenizer.stop_ids[0] == theirs.eos_token_id


@pytest.mark.slow
def test_a_run_from_a_model_that_sees_learns_its_text_part(chat_model, tmp_path):
    shutil.copytree(chat_model, tmp_path / "sees", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    tokens = json.loads((chat_model / "config.json").read_text())
    text = {name: tokens[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id") if name in tokens}
    text |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
    text |= {"num_key_value_heads": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    text |= {"linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
    seeing = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    kind = transformers.Qwen3_5ForConditionalGeneration
    theirs = transformers.Qwen3_5Config(text_config=text, vision_config=seeing | {"num_position_embeddings": 16})
    model = kind(theirs)
    model.save_pretrained(tmp_path / "sees")
    config = tiny_runs.grade_school_config()
    config.network.directory, config.rl.steps = str(tmp_path / "sees"), 1
    tiny_runs.finish(config, tmp_path / "run")
    policies.convert(tmp_path / "run", tmp_path / "exported", to="huggingface")
    before, after = model.state_dict(), kind.from_pretrained(tmp_path / "exported").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed and not any("visual" in name for name in changed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_huggingface_to_orbax_and_back(dtype, chat_model, tmp_path):
    original, tokenizer = policies.load_policy(chat_model, dtype=dtype)
    policies.convert(chat_model, tmp_path / "orbax", to="orbax", dtype=dtype)
    assert policies.folder_kind(tmp_path / "orbax") == "orbax"
    network, again = policies.load_policy(tmp_path / "orbax")
    assert_same_policy(network, original)
    assert again.stop_ids == tokenizer.stop_ids and again.chat_template == tokenizer.chat_template
    policies.convert(tmp_path / "orbax", tmp_path / "back", to="huggingface")
    back, _ = policies.load_policy(tmp_path / "back", dtype=dtype)
    jax.tree.map(np.testing.assert_array_equal, back.params, original.params)
    assert_transformers_agrees(back, tmp_path / "back", atol=2e-4 if dtype == "float32" else 1e-2)


def test_rope_scaling_survives_orbax(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 2}
    network = networks.decoder(networks.DecoderConfig(**sizes, rope_scaling=scaling, rope_theta=5e5, eos_ids=(3, 4)))
    network = network.with_params(network.init(jax.random.key(0)))
    policies.convert_to_orbax(network, tmp_path / "orbax")
    again = policies._load_orbax(tmp_path / "orbax")
    assert_same_policy(again, network)
    assert dict(again.config.rope_scaling) == scaling and again.config.eos_ids == (3, 4)


def test_what_exists_is_not_overwritten(chat_model, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="mine exists already; give a folder that does not"):
        policies.convert(chat_model, tmp_path / "mine", to="orbax")
    assert list((tmp_path / "mine").iterdir()) == []
    with pytest.raises(ValueError, match="to is 'gguf'; it must be one of .*huggingface.*orbax"):
        policies.convert(chat_model, tmp_path / "new", to="gguf")
    assert not (tmp_path / "new").exists()


def test_folders_that_hold_no_policy(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    for folder in (tmp_path, tmp_path / "nosuch"):
        with pytest.raises(ValueError, match="neither the workdir of a run .*, nor a Hugging Face directory .*check the path"):
            policies.load_policy(folder)
        with pytest.raises(ValueError, match="neither the workdir of a run"):
            policies.convert(folder, tmp_path / "target", to="orbax")
    assert not (tmp_path / "target").exists()


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    run = finished("dr_grpo")
    shutil.copy(run.workdir / "config.json", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="holds no checkpoint; train first"):
        policies.load_policy(tmp_path)


def test_a_character_tokenizer_has_no_files_to_take_along(tmp_path, monkeypatch):
    """Neither of the folder that one happens to stand in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text("{}")
    assert policies.tokenizer_files(finished("dr_grpo").workdir) == []


def test_tokenizer_files_beside_a_named_file(chat_model, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in (str(chat_model / "tokenizer.json"), str(chat_model)):
        (tmp_path / "config.json").write_text(json.dumps({"tokenizer": name, "network": {"directory": ""}}))
        found = {file.name for file in policies.tokenizer_files(tmp_path)}
        assert found == {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}


def test_damaged_files_of_a_policy_are_named(tmp_path):
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 2}
    path = tmp_path / "network.json"
    faults = {
        "hidden_size is 'x'; it must be a whole number": {"hidden_size": "x"},
        "num_layers is missing": {"num_layers": None},
        "nosuch is unknown": {"nosuch": 1},
        "hidden_size=8 must be a multiple of num_heads=0": {"num_heads": 0},
        "eos_ids=.20,. has a token outside of vocab_size=20": {"eos_ids": [20]},
        "rope_scaling.factor is 'x'": {"rope_scaling": [["factor", "x"], ["rope_type", "linear"]]},
    }
    for message, change in faults.items():
        path.write_text(json.dumps(sizes | change))
        with pytest.raises(ValueError, match=f"network.json: {message}"):
            policies.read_network(path)
    path.write_text(json.dumps(sizes | {"rope_scaling": [["factor", 2], ["rope_type", "linear"]], "head_dim": None}))
    assert dict(policies.read_network(path).rope_scaling) == {"factor": 2, "rope_type": "linear"}
    (tmp_path / "checkpoints").mkdir()
    contents = {"": "it is empty", "[]": "holds a list", '{"rl": {"steps": "x"}}': "rl.steps is 'x'; it must"}
    for content, message in contents.items():
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=rf"config.json: .*{message}"):
            policies.load_policy(tmp_path)


@pytest.mark.slow
def test_a_run_is_measured_on_a_mesh_as_on_one_device():
    """Its parameters are read on to the mesh of the configuration; three prompts on eight devices."""
    run = finished("dr_grpo")
    config = run.config.copy_and_resolve_references()
    config.evaluation.prompts = 3
    expected, records = evaluate_policy(run.workdir, config)
    config.mesh.update(data=2, fsdp=2, tensor=2, sampling_tensor=8)
    found, others = evaluate_policy(run.workdir, config)
    assert [record["completion"] for record in others] == [record["completion"] for record in records]
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-4, atol=2e-6, err_msg=name)
    network, _ = policies.load_policy(run.workdir, mesh=make_mesh(1, 4, 2))
    assert not jax.tree.leaves(network.params)[0].sharding.is_fully_replicated
