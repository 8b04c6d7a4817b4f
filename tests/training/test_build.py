"""From a configuration to the things it names."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import optax
import pytest
from data.chat_templates import write_family
from training import tiny_rewards, tiny_runs
from training.tiny_runs import ALPHABET, SIZES, tiny_config

from jaxrl_llm import data, rewards
from jaxrl_llm.distributed import AXES
from jaxrl_llm.training import build, default_config, meshes, reward_functions


def optimizer_settings(**values):
    settings = default_config().rl.optimizer
    settings.update(learning_rate=0.1, **values)
    return settings


@pytest.fixture(scope="module")
def chat_model():
    return tiny_runs.chat_model()


# ---- tokenizers and sources


def test_the_tokenizer_is_named_or_lies_with_the_checkpoint(chat_model):
    config = tiny_config()
    assert build.build_tokenizer(config).vocab_size == len(ALPHABET.removeprefix("characters:")) + 2
    config.update(tokenizer="bytes")
    assert build.build_tokenizer(config).vocab_size == 259
    config.tokenizer, config.network.directory = "", str(chat_model)
    assert build.build_tokenizer(config).chat_template is not None
    config.network.directory = ""
    with pytest.raises(ValueError, match=r"config\.tokenizer and config\.network\.directory are both empty"):
        build.build_tokenizer(config)


def test_held_out_options_replace_those_of_training():
    config = tiny_config()
    tokenizer = build.build_tokenizer(config)
    train, held_out = (build.build_source(config, tokenizer, test=test) for test in (False, True))
    assert (len(train), len(held_out)) == (50, 4)
    assert not {train[i]["prompt"] for i in range(50)} & {held_out[i]["prompt"] for i in range(4)}
    assert all(len(held_out[i]["prompt"]) == 4 for i in range(4))  # one digit each, as in training


def test_texts_become_chats(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "1+1?", "answer": "2"}) + "\n")
    config = tiny_config()
    config.update(tokenizer="bytes")
    config.task.update(source="jsonl", max_prompt_tokens=100)
    for key in list(config.task.options):
        del config.task.options[key]
    config.task.options.update(path=str(path), columns={"prompt": "question", "answer": "answer"})
    tokenizer = build.build_tokenizer(config)
    plain = build.build_source(config, tokenizer)[0]
    assert plain == {"prompt": "1+1?", "answer": "2"}
    config.task.suffix = " Think."
    with pytest.raises(ValueError, match=r"config\.task\.suffix would change nothing: config\.task\.chat is False"):
        build.build_source(config, tokenizer)
    config.task.chat = True
    with pytest.raises(ValueError, match="no chat_template"):
        build.build_source(config, tokenizer)


def test_prompts_show_the_tools(tmp_path):
    tokenizer = data.load_tokenizer(str(write_family(tmp_path / "chatml", "chatml")))
    config = tiny_config()
    config.task.update(chat=True, tools=("calculator",), max_prompt_tokens=2000)
    config.sft.row_tokens = 2000
    example = build.build_source(config, tokenizer)[0]
    (function,) = [each["function"] for each in example["tools"]]
    assert function["name"] == "calculator" and list(function["parameters"]["properties"]) == ["expression"]
    assert len(data.encode_prompt(tokenizer, example["prompt"], tools=example["tools"])) > 100
    config.task.chat = False
    with pytest.raises(ValueError, match=r"config\.task\.tools has no place in a prompt that is a text"):
        build.build_source(config, tokenizer)


def test_chats_have_the_system_message_and_the_suffix(chat_model):
    config = tiny_config()
    config.tokenizer, config.network.directory = "", str(chat_model)
    config.task.update(chat=True, system="Be brief.", suffix=" Go.", max_prompt_tokens=100)
    prompt = build.build_source(config, build.build_tokenizer(config))[0]["prompt"]
    assert [message["role"] for message in prompt] == ["system", "user"]
    assert prompt[0]["content"] == "Be brief." and prompt[1]["content"].endswith("= Go.")
    config.task.system = ""
    assert len(build.build_source(config, build.build_tokenizer(config))[0]["prompt"]) == 1


def test_long_prompts_are_errors_or_left_out():
    config = tiny_config()
    config.task.options.update(digits=(1, 2))
    tokenizer = build.build_tokenizer(config)
    with pytest.raises(ValueError, match="more than 4"):
        build.build_source(config, tokenizer)
    config.task.drop_long = True
    kept = build.build_source(config, tokenizer)
    assert 0 < len(kept) < 50 and all(len(kept[i]["prompt"]) <= 4 for i in range(len(kept)))


def test_wrong_sources_name_the_mend():
    config = tiny_config()
    tokenizer = build.build_tokenizer(config)
    config.task.options.nosuch = 3
    with pytest.raises(ValueError, match=r"config\.task\.options for 'arithmetic' are .*'nosuch'"):
        build.build_source(config, tokenizer)
    config.task.source = "nowhere"
    with pytest.raises(ValueError, match=r"config\.task\.source is 'nowhere'; it must be one of .*jsonl.*reasoning_gym"):
        build.build_source(config, tokenizer)


# ---- meshes


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, None),
        ({"data": 2, "fsdp": 4}, (2, 4, 1, 1, 1)),
        ({"data": 2, "fsdp": -1}, (2, 4, 1, 1, 1)),
        ({"expert": -1, "data": 2}, (2, 1, 4, 1, 1)),
        ({"tensor": -1}, (1, 1, 1, 1, 8)),
        ({"data": -1, "tensor": 8}, (1, 1, 1, 1, 8)),
    ],
)
def test_meshes(sizes, shape):
    config = tiny_config()
    config.mesh.update(sizes)
    mesh = meshes.build_mesh(config)
    assert mesh is None if shape is None else mesh.devices.shape == shape and mesh.axis_names == AXES


def test_a_sampling_mesh_that_does_not_fit():
    config = tiny_config()
    config.mesh.update(fsdp=-1, sampling_tensor=3)
    with pytest.raises(ValueError, match=r"config.mesh.sampling_tensor: 3 devices that share out a copy do not divide the 8"):
        meshes.build_sampling_mesh(config, meshes.build_mesh(config))


@dataclasses.dataclass(frozen=True)
class Chip:
    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def test_actors_of_several_hosts_are_as_many_of_each():
    config, chips = tiny_config(), [Chip(number, number // 4) for number in range(8)]
    config.mesh.update(fsdp=-1, actors=4, sampling_tensor=2)
    mesh = meshes.build_mesh(config, chips)
    sampling = meshes.build_sampling_mesh(config, mesh, chips)
    assert [chip.id for chip in mesh.devices.flat] == [0, 1, 4, 5]
    assert [[chip.id for chip in copy.flat] for copy in sampling.devices] == [[2, 3], [6, 7]]
    config.mesh.sampling_tensor = 4
    with pytest.raises(ValueError, match=r"config\.mesh\.sampling_tensor: 4 actors share out .* config\.mesh\.actors=4"):
        meshes.build_sampling_mesh(config, mesh, chips)
    for actors in (3, 8):
        config.mesh.actors = actors
        with pytest.raises(ValueError, match=rf"config\.mesh\.actors is {actors} of 8 devices of 2 hosts, each of which"):
            meshes.build_mesh(config, chips)
    config.mesh.actors = 4
    with pytest.raises(ValueError, match=r"config\.mesh\.actors is 4 on 2 hosts with TPUs, whose programs take all chips"):
        meshes.build_mesh(config, [dataclasses.replace(chip, platform="tpu") for chip in chips])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "there are 8"),
        ({"data": -1, "fsdp": -1}, r"-1 for \['data', 'fsdp'\]; only one"),
        ({"data": -1, "fsdp": 3}, "8"),
        ({"data": -1, "fsdp": 0}, "fsdp"),
        ({"data": -2}, "data"),
        ({"data": -1, "fsdp": 16}, "8"),
    ],
)
def test_meshes_that_do_not_fit(sizes, message):
    config = tiny_config()
    config.mesh.update(sizes)
    with pytest.raises(ValueError, match=message):
        meshes.build_mesh(config)


# ---- networks


def test_a_network_from_scratch():
    config = tiny_config()
    tokenizer = build.build_tokenizer(config)
    network = build.build_network(config, tokenizer)
    assert network.config.vocab_size == tokenizer.vocab_size and network.config.eos_ids == tokenizer.stop_ids
    assert {name: getattr(network.config, name) for name in SIZES} == SIZES
    assert network.config.family == "qwen3" and network.config.qk_norm
    assert network.without_params() == build.network_structure(config, tokenizer)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_families_have_their_traits(family):
    config = tiny_config()
    config.network.family = family
    structure = build.network_structure(config, build.build_tokenizer(config))
    assert structure.config.family == family
    assert (structure.config.attention_bias, structure.config.qk_norm) == (
        family == "qwen2",
        "head" if family == "qwen3" else "none",
    )


def test_networks_that_cannot_be():
    config = tiny_config()
    tokenizer = build.build_tokenizer(config)
    config.network.family = "nosuch"
    with pytest.raises(ValueError, match=r"config\.network\.family is 'nosuch'; it must be one of .*qwen3"):
        build.network_structure(config, tokenizer)
    config.network.update(family="qwen3", num_heads=3, num_kv_heads=2)
    with pytest.raises(ValueError, match="num_heads=3 must be a multiple of num_kv_heads=2"):
        build.network_structure(config, tokenizer)


def test_columns_are_not_shared_out_where_a_state_goes_through_them():
    config = default_config()
    config.network.name, config.tokenizer = "qwen3.5-0.8b", "bytes"
    tokenizer = build.build_tokenizer(config)
    assert build.network_structure(config, tokenizer).config.delta is not None
    config.mesh.context = 2
    with pytest.raises(ValueError, match="config.mesh.context is 2; it must be 1, as the network has layers whose state"):
        build.network_structure(config, tokenizer)


def test_a_network_of_a_checkpoint(chat_model):
    config = tiny_config()
    config.network.update(directory=str(chat_model), dtype="bfloat16", param_dtype="float32", remat="full")
    config.tokenizer = ""
    network = build.build_network(config, build.build_tokenizer(config))
    assert (network.config.dtype, network.config.param_dtype, network.config.remat) == ("bfloat16", "float32", "full")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(network.params)} == {"float32"}
    config.network.param_dtype = "bfloat16"
    network = build.build_network(config, build.build_tokenizer(config))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(network.params)} == {"bfloat16"}


def test_a_network_lies_on_the_mesh():
    config = tiny_config()
    config.mesh.update(fsdp=-1)
    mesh = meshes.build_mesh(config)
    network = build.build_network(config, build.build_tokenizer(config), mesh)
    shards = {leaf.sharding.shard_shape(leaf.shape) != leaf.shape for leaf in jax.tree.leaves(network.params)}
    assert True in shards and all(len(leaf.devices()) == 8 for leaf in jax.tree.leaves(network.params))


# ---- rewards and sampling


def test_rewards_by_name():
    assert reward_functions.load_reward("gsm8k") is rewards.gsm8k
    assert reward_functions.load_reward("training.tiny_rewards:half") is tiny_rewards.half
    config = tiny_config()
    config.rewards.names = ("arithmetic", "training.tiny_rewards:half")
    config.evaluation.reward = "exact_match"
    assert list(reward_functions.build_rewards(config)) == ["arithmetic", "training.tiny_rewards:half", "exact_match"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", r"reward 'nosuch' is unknown; give 'package\.module:function' or one of .*gsm8k"),
        ("nosuch.module:reward", "'nosuch.module:reward' cannot be imported: No module named 'nosuch'.*PYTHONPATH"),
        ("training.tiny_rewards:nosuch", "'training.tiny_rewards:nosuch' cannot be imported: .*nosuch"),
    ],
)
def test_rewards_that_are_not_there(name, message):
    with pytest.raises(ValueError, match=message):
        reward_functions.load_reward(name)


def test_evaluation_never_samples_as_training_does():
    config = tiny_config()
    config.rl.update(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1)
    tokenizer = build.build_tokenizer(config)
    training, held_out = build.training_sampling(config, tokenizer), build.evaluation_sampling(config, tokenizer)
    assert (training["temperature"], training["top_k"], training["top_p"], training["min_p"]) == (0.7, 5, 0.9, 0.1)
    assert held_out == {"max_new_tokens": 12, "temperature": 0.0, "stop_ids": tokenizer.stop_ids}
    config.evaluation.temperature = 0.4
    assert build.evaluation_sampling(config, tokenizer)["temperature"] == 0.4
    config.rl.slots = 7
    assert build.evaluation_sampling(config, tokenizer)["slots"] == build.training_sampling(config, tokenizer)["slots"] == 7
    # What ends a completion belongs to the task, and is the same for both.
    config.rl.stop_strings = (";",)
    for chosen in (build.training_sampling(config, tokenizer), build.evaluation_sampling(config, tokenizer)):
        assert chosen["stop_strings"] == (";",) and chosen["detokenize"] == tokenizer.decode


# ---- optimizers


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1] * 10),
        ({"warmup_steps": 4}, [0.0, 0.025, 0.05, 0.075] + [0.1] * 6),
        ({"decay": "linear"}, [0.1 * (1 - step / 10) for step in range(10)]),
        ({"decay": "cosine"}, [0.05 * (1 + np.cos(np.pi * step / 10)) for step in range(10)]),
        ({"decay": "linear", "warmup_steps": 2}, [0.0, 0.05] + [0.1 * (1 - step / 8) for step in range(8)]),
    ],
)
def test_schedules(settings, expected):
    schedule = build.build_schedule(optimizer_settings(**settings), 10)
    np.testing.assert_allclose([schedule(step) for step in range(10)], expected, rtol=1e-5, atol=1e-9)
    if settings.get("decay"):
        assert schedule(10) == pytest.approx(0, abs=1e-9)
    doubled = build.build_schedule(optimizer_settings(**settings), 10, factor=2.0)
    np.testing.assert_allclose([doubled(step) for step in range(10)], 2 * np.array(expected), rtol=1e-5, atol=1e-9)


def test_the_optimizer_is_clipped_adamw():
    params, gradient = {"w": np.ones(4, np.float32)}, {"w": np.float32([3.0, 4.0, 0.0, 0.0])}
    settings = optimizer_settings(clip_norm=0.5, weight_decay=0.1, beta1=0.8, beta2=0.9)
    ours = build.build_optimizer(settings, 10)
    plain = optax.adamw(0.1, b1=0.8, b2=0.9, weight_decay=0.1)
    state, plain_state = ours.init(params), plain.init(params)
    for scale in (0.1, 1.0):  # Adam is blind to one scale, but not to clipping that changes from step to step
        raw = jax.tree.map(lambda leaf, scale=scale: scale * leaf, gradient)
        clipped = jax.tree.map(lambda leaf, scale=scale: leaf * min(1.0, 0.5 / (5 * scale)) * scale, gradient)
        found, state = ours.update(raw, state, params)
        expected, plain_state = plain.update(clipped, plain_state, params)
        np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-5)


def test_without_a_clip_norm_nothing_is_clipped():
    params, gradient = {"w": np.ones(2, np.float32)}, {"w": np.float32([300.0, 400.0])}
    ours = build.build_optimizer(optimizer_settings(clip_norm=0.0), 10)
    state = ours.update(gradient, ours.init(params), params)[1]
    moments = next(part.mu["w"] for part in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(part, "mu"))
    np.testing.assert_allclose(moments, 0.1 * gradient["w"], rtol=1e-5)


def test_stop_strings_that_are_special_tokens_are_stop_tokens(chat_model):
    config = tiny_config()
    config.tokenizer = str(chat_model)
    tokenizer = build.build_tokenizer(config)
    special = dict(tokenizer.special_tokens)["pad_token"]
    (token,) = tokenizer.encode_spans(special)[0]
    config.rl.stop_strings = (special, "</answer>")
    found = build.training_sampling(config, tokenizer)
    assert found["stop_ids"] == (*tokenizer.stop_ids, *({token} - set(tokenizer.stop_ids)))
    assert found["stop_strings"] == ("</answer>",)
    of_checkpoint = dataclasses.replace(tokenizer, stop_strings=("###", special))
    found = build.evaluation_sampling(config, of_checkpoint)
    assert found["stop_strings"] == ("###", "</answer>") and token in found["stop_ids"]
    config.rl.stop_strings = (f"a{special}",)
    with pytest.raises(ValueError, match="holds a special token, and texts show none; give the special token alone"):
        build.training_sampling(config, tokenizer)


def test_all_data_are_looked_at_before_a_step(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "1+1=", "completion": "2"}\n{"prompt": "2+2=", "completion": "12345678"}\n')
    config = tiny_config()
    config.task.source, config.task.options = "jsonl", {"path": str(path)}
    config.sft.steps, config.sft.row_tokens = 1, 8
    tokenizer = build.build_tokenizer(config)
    fault = r"line 2: the example of example 1 has 13 tokens, more than 8; raise config\.sft\.row_tokens"
    with pytest.raises(ValueError, match=fault):
        build.build_source(config, tokenizer)
    config.task.drop_long = True
    assert len(build.build_source(config, tokenizer)) == 1
    with pytest.raises(ValueError, match=r"line 1: the prompt has the token id \d+, which a network of 3 tokens does not know"):
        build.build_source(config, tokenizer, vocab_size=3)


# ---- what a network does not have, and files that are damaged


def test_a_tokenizer_may_know_more_than_the_network_but_not_end_with_it(chat_model, tmp_path):
    shutil.copytree(chat_model, tmp_path, dirs_exist_ok=True)
    config = tiny_config()
    config.tokenizer, config.network.directory = "", str(tmp_path)
    path = tmp_path / "config.json"
    theirs = json.loads(path.read_text())
    tokenizer = build.build_tokenizer(config)
    assert build.base_structure(config, tokenizer).config.vocab_size == theirs["vocab_size"] > max(tokenizer.stop_ids)
    path.write_text(json.dumps(theirs | {"vocab_size": min(tokenizer.stop_ids), "eos_token_id": None, "pad_token_id": None}))
    for check in (build.base_structure, build.network_structure, build.build_network):
        with pytest.raises(ValueError, match=r"token \d+ is to end a generation, but the network has \d+ tokens; correct"):
            check(config, tokenizer)
    path.write_text(json.dumps(theirs | {"eos_token_id": -1}))
    with pytest.raises(ValueError, match=r"config.json: eos_token_id is -1; it must be a whole number from 0"):
        build.base_structure(config, tokenizer)
    path.write_text("")
    with pytest.raises(ValueError, match=r"config.json: not valid JSON \(it is empty\); write or download it again"):
        build.base_structure(config, tokenizer)
