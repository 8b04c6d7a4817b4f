"""The plan of a small model on a slice, against formulas. Wants libtpu, which needs no TPU for this."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

import jaxrl_llm
from jaxrl_llm import networks
from jaxrl_llm.training.plan import meshes_of, mixing_flops

SKIP = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
WIDTH, INNER, LAYERS, HEADS, KEYS, HEAD, VOCABULARY = 256, 1024, 4, 4, 2, 128, 8192
PROMPT, ANSWER, PROMPTS, SAMPLES = 128, 384, 4, 4
PROGRAM = """
import dataclasses, json, sys
from jaxrl_llm import networks
from jaxrl_llm.distributed import chips
from jaxrl_llm.training import default_config
from jaxrl_llm.training.plan import make_plan

sizes = json.loads(sys.argv[1])
config = default_config()
config.network.update(dtype="bfloat16", param_dtype="bfloat16", remat="full", **sizes["network"])
config.tokenizer = "characters:" + "".join(map(chr, range(0x4E00, 0x4E00 + sizes["characters"])))
config.method.options.update(samples=sizes["samples"], kl_coefficient=0.01)
config.task.max_prompt_tokens = sizes["prompt"]
config.rl.update(prompts=sizes["prompts"], max_new_tokens=sizes["answer"])
config.mesh.update(fsdp=2, tensor=2)
print(json.dumps(make_plan(config, chips.parse_topology("v5e:2x2"))))
"""


@pytest.fixture(scope="module")
def plan():
    network = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_layers": LAYERS, "num_heads": HEADS}
    network |= {"num_kv_heads": KEYS, "head_dim": HEAD}
    sizes = {"network": network, "characters": VOCABULARY - 2, "samples": SAMPLES, "prompts": PROMPTS}
    sizes |= {"prompt": PROMPT, "answer": ANSWER}
    of_tests = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {name: value for name, value in os.environ.items() if name not in of_tests}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(pathlib.Path(jaxrl_llm.__file__).parents[1])}
    # Without these, libtpu looks for the metadata server of Google Cloud, and lets one process alone load it.
    environment |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(sizes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@SKIP
@pytest.mark.slow
def test_the_plan_has_all_programs_and_their_figures(plan):
    programs = {one["name"]: one for one in plan["programs"]}
    assert list(programs) == ["update", "score", "sample", "copy"] and plan["fits"]
    assert plan["mesh"] == {"data": 1, "fsdp": 2, "expert": 1, "context": 1, "tensor": 2}
    matrices = LAYERS * (WIDTH * HEAD * (2 * HEADS + 2 * KEYS) + 3 * WIDTH * INNER)
    update = programs["update"]
    # In bfloat16, and on two by two devices: parameters once, the moments of Adam twice.
    share = 2 * (matrices + VOCABULARY * WIDTH) / 4
    assert update["memory"]["parameters"] == pytest.approx(share, rel=0.02)
    assert update["memory"]["optimizer"] == pytest.approx(2 * share, rel=0.02)
    assert update["memory"]["activations"] > 0 and update["memory"]["padding"] < 0.02 * share
    # The copy for sampling is split over tensor alone.
    assert programs["sample"]["memory"]["parameters"] == pytest.approx(2 * share, rel=0.02)
    assert programs["copy"]["sent"]

    # No gather is larger than half of the head, that of a device: far less than all logits, or than the optimizer's state.
    assert update["gathered"] <= VOCABULARY * WIDTH / 2 < min(VOCABULARY * update["learned"], 2 * matrices) / 4


@SKIP
@pytest.mark.slow
def test_flops_are_those_of_the_formula(plan):
    update, score = plan["programs"][:2]
    assert update["tokens"] >= PROMPTS * (PROMPT + SAMPLES * ANSWER) and update["learned"] >= PROMPTS * SAMPLES * ANSWER
    matrices = LAYERS * (WIDTH * HEAD * (2 * HEADS + 2 * KEYS) + 3 * WIDTH * INNER)
    head, last = VOCABULARY * WIDTH, LAYERS * WIDTH * INNER
    # Forward, again for the backward pass, and twice there; but the last product of a layer, which nothing needs again.
    wanted = (8 * matrices - 2 * last) * update["tokens"] + 8 * head * update["learned"]
    assert update["flops"] - update["attention"] == pytest.approx(wanted / 4, rel=5e-3)
    wanted = score["tokens"] * 2 * matrices + score["learned"] * 2 * head
    assert score["flops"] - score["attention"] == pytest.approx(wanted / 4, rel=5e-3)
    # Each of the 11 products of a forward pass, another one and a backward pass, for half of the pairs at least.
    pairs = PROMPTS * (PROMPT**2 / 2 + SAMPLES * ANSWER * (PROMPT + ANSWER / 2))
    assert update["attention"] > 11 * 2 * LAYERS * HEADS * HEAD * pairs / 4
    assert update["flops"] > update["useful"]


def test_layers_are_counted_by_what_they_mix():
    # Of Qwen3.5-4B 8 layers are attention of 16 heads of 256; 24 keep a state of 128 by 128 for each of 32 heads.
    states = 24 * 32 * 6 * 128 * 128
    assert mixing_flops(networks.config("qwen3.5-4b"), 1000) == 8 * 4 * 16 * 256 * 1000 + states
    # Of Gemma-3-1B 22 of 26 see 512 tokens.
    assert mixing_flops(networks.config("gemma-3-1b"), 1000) == 4 * 4 * 256 * (22 * 512 + 4 * 1000)
    # Keys of DeepSeek-V3 have 192 numbers, and values 128.
    assert mixing_flops(networks.config("deepseek-v3"), 10) == 61 * 2 * 128 * (192 + 128) * 10


def test_meshes_use_all_devices():
    found = meshes_of(16)
    assert {"data": 1, "fsdp": 4, "tensor": 4} in found and {"data": 16, "fsdp": 1, "tensor": 1} in found
    assert all(sizes["data"] * sizes["fsdp"] * sizes["tensor"] == 16 and sizes["tensor"] <= 8 for sizes in found)
