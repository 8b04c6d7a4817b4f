"""Memory and seconds of `load_huggingface`, on a checkpoint of random numbers; prints one JSON line for each way of loading.

python benchmarks/loading.py [--megabytes=2000 --layers=20 --dtypes=bfloat16,float32 --devices=1,8]

Writes a Llama-like bfloat16 checkpoint of several files with an index into a temporary directory, then loads it in a fresh
process for each dtype and number of virtual CPU devices (with more than one, `fsdp` splits the parameters over all). On CPU
the shards of the devices are host memory too, so `peak_mb` can never be less than `shards_mb`: `over_mb` is what loading
needs beside them. Peaks are of resident memory above that of an imported and initialised jax, pages of the files that the
process has mapped included. `read_s` are the seconds that `safetensors.numpy.load_file` takes for the same files. They have
just been written, so the disk takes no part in any of this.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy
from absl import app, flags

from jaxrl_llm import distributed
from jaxrl_llm.networks import load_huggingface
from jaxrl_llm.networks.tensor_files import find_tensors, write_json, write_tensors

FLAGS = flags.FLAGS
flags.DEFINE_integer("megabytes", 2000, "of the checkpoint, about", lower_bound=50)
flags.DEFINE_integer("layers", 20, "of the network", lower_bound=1)
flags.DEFINE_list("dtypes", ["bfloat16", "float32"], "of the parameters")
flags.DEFINE_list("devices", ["1", "8"], "numbers of virtual CPU devices")
flags.DEFINE_string("directory", None, "checkpoint to load in this process, in the first dtype, on all devices")


def tensor_shapes(megabytes: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama checkpoint of about so many bfloat16 megabytes; embedding and head are the largest."""
    width = round((megabytes * 1e6 / 2 / (2 * 32 + 13 * layers)) ** 0.5 / 64) * 64
    inner, vocabulary = 3 * width, 32 * width
    attention = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    mlp = {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    norms = {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    ends = {"model.embed_tokens": (vocabulary, width), "model.norm": (width,), "lm_head": (vocabulary, width)}
    layer = attention | mlp | norms
    shapes = ends | {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def config_json(shapes: dict[str, tuple[int, ...]]) -> dict:
    """The config.json of a Llama whose tensors have these shapes."""
    vocabulary, width = shapes["model.embed_tokens.weight"]
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["model.layers.0.mlp.up_proj.weight"][0],
        "num_hidden_layers": sum("input_layernorm" in name for name in shapes),
        "num_attention_heads": width // 64,
    }


def write_checkpoint(shapes: dict[str, tuple[int, ...]], directory: pathlib.Path) -> None:
    """Random bfloat16 numbers between -2 and 2 in files of a fifth of the whole each."""
    random = np.random.default_rng(0)

    def draw(name: str) -> np.ndarray:
        bits = np.frombuffer(random.bytes(2 * math.prod(shapes[name])), np.uint16)
        return (bits & 0xBFFF).view(ml_dtypes.bfloat16).reshape(shapes[name])

    sizes = {name: 2 * math.prod(shape) for name, shape in shapes.items()}
    write_tensors(directory, sizes, draw, max_shard_bytes=sum(sizes.values()) // 5)
    write_json(directory / "config.json", config_json(shapes))


def resident(name: str) -> float:
    """Megabytes that are resident now, "VmRSS", or the most that ever were, "VmHWM"."""
    line = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def measure(directory: pathlib.Path) -> dict:
    """Loads the checkpoint in this process and says what it took."""
    mesh = distributed.make_mesh(1, jax.device_count(), 1)
    shardings = (lambda network: distributed.parameter_shardings(network, mesh)) if jax.device_count() > 1 else None
    jax.block_until_ready(jax.jit(lambda x: x + 1)(np.zeros(8)))
    before, begin = resident("VmRSS"), time.perf_counter()
    network = load_huggingface(directory, FLAGS.dtypes[0], shardings=shardings)
    jax.block_until_ready(network.params)
    seconds, peak = time.perf_counter() - begin, resident("VmHWM") - before
    leaves = jax.tree.leaves(network.params)
    shards = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards) / 1e6
    largest = max(tensor.bytes for tensor in find_tensors(directory).values()) / 1e6
    del network, leaves
    return {
        "dtype": FLAGS.dtypes[0],
        "devices": jax.device_count(),
        "shards_mb": round(shards),
        "largest_tensor_mb": round(largest),
        "peak_mb": round(peak),
        "over_mb": round(peak - shards),
        "over_in_largest_tensors": round((peak - shards) / largest, 2),
        "load_s": round(seconds, 2),
        "read_s": round(reading_seconds(directory), 2),
    }


def reading_seconds(directory: pathlib.Path) -> float:
    """Seconds that safetensors takes to read the files, one after the other."""
    begin = time.perf_counter()
    for file in sorted(directory.glob("*.safetensors")):
        safetensors.numpy.load_file(file)
    return time.perf_counter() - begin


def main(_):
    """Writes a checkpoint, loads it in fresh processes, and prints each measurement as a JSON object."""
    if FLAGS.directory:
        print(json.dumps(measure(pathlib.Path(FLAGS.directory))))
        return
    with tempfile.TemporaryDirectory() as directory:
        write_checkpoint(tensor_shapes(FLAGS.megabytes, FLAGS.layers), pathlib.Path(directory))
        for dtype in FLAGS.dtypes:
            for devices in FLAGS.devices:
                flag = f"--xla_force_host_platform_device_count={devices}"
                environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
                command = [sys.executable, __file__, f"--directory={directory}", f"--dtypes={dtype}"]
                subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    app.run(main)
