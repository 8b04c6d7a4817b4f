"""New tokens per second of `generate`; prints one JSON line.

python benchmarks/sampling.py [--rows=32 --prompt=32 --new=128 --samples=1 --repeats=7 ...]

The network is Qwen3-like, random, float32 unless told otherwise. Times are wall clock around `generate`, which ends with
NumPy arrays on the host; the first call, which compiles, stands apart. `others_cpu` is the share of the machine that other
processes used during the timed calls: trust figures where it is below 0.03.
"""

import json
import time

import jax
import numpy as np
import workload
from absl import app, flags
from quiet import summary, timed

from jaxrl_llm.sampling import generate

FLAGS = flags.FLAGS
flags.DEFINE_integer("samples", 1, "completions of each prompt; rows must be a multiple of it", lower_bound=1)
flags.DEFINE_float("temperature", 1.0, "0 is greedy")
flags.DEFINE_float("top_p", None, "share of the probability that stays")


def main(_):
    """Samples, and prints the figures as a JSON object."""
    network = workload.network()
    params = network.init(jax.random.key(0))
    rng = np.random.default_rng(0)

    def call(seed: int) -> None:
        prompts = rng.integers(0, FLAGS.vocabulary, (FLAGS.rows // FLAGS.samples, FLAGS.prompt))
        options = {"num_samples": FLAGS.samples, "temperature": FLAGS.temperature, "top_p": FLAGS.top_p, "seed": seed}
        samples = generate(network, params, prompts, max_new_tokens=FLAGS.new, **options)
        assert samples.tokens.shape == (FLAGS.rows, FLAGS.new)

    begin = time.perf_counter()
    call(0)
    first = time.perf_counter() - begin
    call(1)
    measured = summary(*timed(lambda repeat: call(2 + repeat), FLAGS.repeats))
    report = {
        "new_tokens_per_s": round(FLAGS.rows * FLAGS.new / measured["seconds"], 1),
        **measured,
        "first_call_s": round(first, 2),
        "device": jax.devices()[0].device_kind,
        "settings": workload.settings("samples", "temperature", "top_p"),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    app.run(main)
