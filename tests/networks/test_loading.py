"""Checkpoints on their way to their devices: any mesh, little memory, and errors before anything is allocated."""

import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import tiny_huggingface
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from jaxrl_llm import progress
from jaxrl_llm.distributed import RULES, make_mesh, parameter_shardings
from jaxrl_llm.networks import gguf_files, huggingface, huggingface_config, load_huggingface, placing, save_huggingface

INDEX = "model.safetensors.index.json"
BENCHMARK = pathlib.Path(__file__).parents[2] / "benchmarks" / "loading.py"
# Splits what no mesh of ours splits yet: layers, experts.
OTHER_RULES = (("layers", "data"), ("expert", ("fsdp", "tensor")), ("embed", "tensor"), ("vocab", "fsdp"), ("mlp", "data"))


@pytest.mark.parametrize("name", ["qwen2", "phi3", pytest.param("glm4_moe", marks=pytest.mark.slow)])
def test_blocks_go_to_their_shards_on_any_mesh(name, tmp_path, monkeypatch):
    tiny_huggingface.save_model(name, tmp_path)
    expected = load_huggingface(tmp_path).params
    monkeypatch.setattr(placing, "BLOCK_BYTES", 1000)
    jax.tree.map(np.testing.assert_array_equal, load_huggingface(tmp_path).params, expected)
    for sizes, rules in [((1, 8, 1), RULES), ((2, 1, 4), RULES), ((2, 2, 2), OTHER_RULES)]:
        shardings = functools.partial(parameter_shardings, mesh=make_mesh(*sizes), rules=rules)
        network = load_huggingface(tmp_path, shardings=shardings)
        jax.tree.map(np.testing.assert_array_equal, network.params, expected)
        leaves = list(zip(jax.tree.leaves(network.params), jax.tree.leaves(shardings(network)), strict=True))
        assert all(leaf.sharding.is_equivalent_to(wanted, leaf.ndim) for leaf, wanted in leaves)
        assert any(leaf.addressable_shards[0].data.size < leaf.size for leaf, _ in leaves)


def test_progress_counts_bytes(tmp_path, capsys, monkeypatch):
    tiny_huggingface.save_model("llama2", tmp_path)
    capsys.readouterr()  # what transformers says
    monkeypatch.setattr(progress.paced, "__kwdefaults__", {"every": 0.0})
    quiet = load_huggingface(tmp_path).params
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress.time, "monotonic", itertools.count(0.0, 1.0).__next__)
    jax.tree.map(np.testing.assert_array_equal, load_huggingface(tmp_path, progress=True).params, quiet)
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("loading parameters: 0.0 of 0.0 GB, about ") for line in lines)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert len(lines) == len(tensors) - 1  # behind the last one nothing is left


def test_a_split_that_rows_cannot_follow_is_an_error(tmp_path):
    tiny_huggingface.save_model("llama2", tmp_path)
    rules = (("head_dim", "tensor"),)
    with pytest.raises(ValueError, match=r"params\[layers.attention.key.kernel\] cannot be read with its axis 3 split"):
        load_huggingface(tmp_path, shardings=lambda network: parameter_shardings(network, make_mesh(1, 1, 8), rules))


def cut(file, size):
    file.write_bytes(file.read_bytes()[:size])


def change_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def change_index(folder, file):
    change_json(folder / INDEX, lambda index: index["weight_map"].update({"model.norm.weight": file}))


def change_tensors(folder, change):
    """Changes the tensors of the shard that has the final norm."""
    file = folder / json.loads((folder / INDEX).read_text())["weight_map"]["model.norm.weight"]
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file)


def first_shard(folder):
    return min(folder.glob("model-*.safetensors"))


BROKEN = {
    "truncated shard": (
        lambda folder: cut(first_shard(folder), 20_000),
        "model-00001-of-.* is truncated or no safetensors file .*; fetch it again",
    ),
    "truncated header": (lambda folder: cut(first_shard(folder), 5), "model-00001-of-.* is truncated or no safetensors file"),
    "missing shard": (lambda folder: first_shard(folder).unlink(), "model-00001-of-.* is not there .found: .*model-00002"),
    "tensor that its shard lacks": (
        lambda folder: change_tensors(folder, lambda t: t.pop("model.norm.weight")),
        "model.norm.weight is not in .*, where model.safetensors.index.json says it is",
    ),
    "index without a map": (
        lambda folder: change_json(folder / INDEX, lambda index: index.pop("weight_map")),
        "model.safetensors.index.json has no weight_map; fetch it again",
    ),
    "index that leaves its folder": (
        lambda folder: change_index(folder, "../x.safetensors"),
        r"index.json: weight_map.model.norm.weight is '../x.safetensors'; it must be the name of a safetens",
    ),
    "index with a number": (
        lambda folder: change_index(folder, 5),
        "index.json: weight_map.model.norm.weight is 5; it must be a string",
    ),
    "wrong shape": (
        lambda folder: change_tensors(folder, lambda t: t.update({"model.norm.weight": np.zeros(31, np.float32)})),
        r"model.norm.weight has shape \(31,\); config.json asks for \(32,\)",
    ),
    "missing name": (
        lambda folder: change_json(folder / "config.json", lambda theirs: theirs.update(num_hidden_layers=3)),
        r"11 missing \['model.layers.2.input_layernorm.weight', .* 0 unexpected",
    ),
    "unexpected name": (
        lambda folder: change_tensors(folder, lambda t: t.update({"model.more": np.zeros(3, np.float32)})),
        r"0 missing \[\], 1 unexpected \['model.more'\]",
    ),
    "unsupported dtype": (
        lambda folder: change_tensors(folder, lambda t: t.update({"model.norm.weight": np.zeros(32, np.int8)})),
        "model.norm.weight is stored as I8; only F32, BF16, F16 are supported",
    ),
    "quantised checkpoint": (
        lambda folder: change_json(folder / "config.json", lambda t: t.update(quantization_config={"quant_method": "fp8"})),
        "config.json: quantization_config={'quant_method': 'fp8'} is not supported",
    ),
    "unknown rope type": (
        lambda folder: change_json(folder / "config.json", lambda t: t["rope_parameters"].update(rope_type="longrope")),
        "config.json: rope_parameters.rope_type='longrope' .* is not supported",
    ),
    "bias": (
        lambda folder: change_json(folder / "config.json", lambda t: t.update(attention_bias=True)),
        "config.json: attention_bias=True is not supported",
    ),
    "model that sees images": (
        lambda folder: change_json(folder / "config.json", lambda t: t.update(model_type="gemma3")),
        "config.json: architectures=.'Qwen3ForCausalLM'. is not supported with model_type='gemma3'",
    ),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    tiny_huggingface.save_model("qwen3", directory, max_shard_size="40KB")
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_an_error_before_anything_is_allocated(kind, shards, tmp_path, monkeypatch):
    for name, content in shards.items():
        (tmp_path / name).write_bytes(content)
    damage, message = BROKEN[kind]
    damage(tmp_path)
    monkeypatch.setattr(huggingface, "_read", lambda *_: pytest.fail("went on to allocate parameters"))
    arrays = len(jax.live_arrays())
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_huggingface(tmp_path)
    assert caught.traceback and len(jax.live_arrays()) == arrays  # Arrays of the frames would still be alive.


def test_layers_that_predict_several_tokens_at_once_are_left_out(tmp_path):
    tiny_huggingface.save_model("glm4_moe", tmp_path)
    expected = load_huggingface(tmp_path).params
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    tensors |= {"model.layers.3.eh_proj.weight": np.ones((4, 8), np.float32), "model.layers.3.enorm.weight": np.ones(4)}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    change_json(tmp_path / "config.json", lambda theirs: theirs.update(num_nextn_predict_layers=0))
    with pytest.raises(ValueError, match=r"2 unexpected \['model.layers.3.eh_proj.weight'"):
        load_huggingface(tmp_path)
    change_json(tmp_path / "config.json", lambda theirs: theirs.update(num_nextn_predict_layers=1))
    jax.tree.map(np.testing.assert_array_equal, load_huggingface(tmp_path).params, expected)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_little_more_memory_than_the_parameters(dtype, devices, tmp_path):
    flags = [f"--dtypes={dtype}", f"--devices={devices}", "--megabytes=500", "--layers=1"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, str(BENCHMARK), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=True)
    report = json.loads(done.stdout)
    assert report["devices"] == devices and report["shards_mb"] == pytest.approx({"bfloat16": 500, "float32": 1000}[dtype], 0.1)
    # The whole of it, the compiler's memory included; a second copy of anything large would be more.
    assert report["over_mb"] <= 1.2 * report["largest_tensor_mb"] < 0.6 * report["shards_mb"]


def test_codes_of_mxfp4_are_expanded_as_transformers_does(tmp_path):
    tiny_huggingface.save_model("gpt_oss", tmp_path)
    random = np.random.default_rng(0)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    coded = {name: value for name, value in tensors.items() if name.endswith(("experts.gate_up_proj", "experts.down_proj"))}
    expected = {}
    for name, value in coded.items():
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = random.integers(0, 256, (experts, outputs, inputs // 32, 16), dtype=np.uint8)
        scales = random.integers(118, 128, blocks.shape[:-1], dtype=np.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        whole = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales))
        assert whole.shape == value.shape
        expected[name] = whole.to(torch.bfloat16).contiguous()
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    theirs = json.loads((tmp_path / "config.json").read_text())
    theirs["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    network = load_huggingface(tmp_path, dtype="bfloat16")
    save_huggingface(network, network.params, tmp_path / "ours")
    written = safetensors.torch.load_file(tmp_path / "ours" / "model.safetensors")
    assert all(torch.equal(written[name], value) for name, value in expected.items())
    assert "quantization_config" not in json.loads((tmp_path / "ours" / "config.json").read_text())


@pytest.mark.parametrize("kind", ["BF16", "F16", "Q8_0", "Q5_1", "Q4_1", "Q4_0"])
def test_a_gguf_file_is_read_as_what_its_codes_stand_for(kind, tmp_path):
    gguf = pytest.importorskip("gguf")
    model = tiny_huggingface.save_model("llama2", tmp_path / "theirs")
    kind = getattr(gguf.GGMLQuantizationType, kind)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for field, value in {"embedding_length": 32, "feed_forward_length": 48, "block_count": 2, "context_length": 256}.items():
        writer.add_uint32(f"llama.{field}", value)
    writer.add_uint32("llama.attention.head_count", 4)
    writer.add_uint32("llama.vocab_size", tiny_huggingface.VOCABULARY)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    inner = {theirs: ours for ours, theirs in gguf_files._LAYER_NAMES.items()}
    outer = {theirs: ours for ours, theirs in gguf_files._NAMES.items()}
    expected = {}
    for path, parameter in model.named_parameters():
        name, value = path.removesuffix(".weight"), parameter.detach().numpy()
        layer = name.split(".")[2] if "layers" in name else None
        own = outer[name] if layer is None else inner[name.removeprefix(f"model.layers.{layer}.")]
        turned = own in ("attn_q", "attn_k")
        stored = value.reshape(4, 2, -1, 32).swapaxes(1, 2).reshape(value.shape) if turned else value
        coded = stored.ndim > 1 and stored.shape[-1] % 32 == 0
        codes = gguf.quants.quantize(stored, kind) if coded else stored
        own = own if layer is None else f"blk.{layer}.{own}"
        writer.add_tensor(f"{own}.weight", codes, raw_dtype=kind if coded else None)
        number = gguf.quants.dequantize(codes, kind) if coded else stored
        expected[path] = number.reshape(4, -1, 2, 32).swapaxes(1, 2).reshape(value.shape) if turned else number
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    network = load_huggingface(tmp_path)
    save_huggingface(network, network.params, tmp_path / "ours")
    written = safetensors.numpy.load_file(tmp_path / "ours" / "model.safetensors")
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(written[name], value.astype(np.float32))
    assert network.config.norm_epsilon == pytest.approx(1e-5) and huggingface_config(tmp_path) == network.config
    (tmp_path / "model.gguf").write_bytes((tmp_path / "model.gguf").read_bytes()[:200])
    with pytest.raises(ValueError, match="model.gguf is truncated or no GGUF file"):
        load_huggingface(tmp_path)
