"""Seconds and memory of one GRPO update; prints one JSON line.

python benchmarks/update.py [--remat=dots --kl_coefficient=0.04 --micro_batches=1 --rows=32 --prompt=32 --new=128 ...]

One update scores rows of prompt and completion, differentiates, and takes a step of AdamW; sampled (and, where
`--kl_coefficient` is not 0, reference) log-probabilities are given. Compilation stands apart. `others_cpu` is the share of
the machine that other processes used during the timed calls: trust figures where it is below 0.03.
"""

import json
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import workload
from absl import app, flags
from quiet import summary, timed

from jaxrl_llm import methods
from jaxrl_llm.training import TrainState, make_update
from jaxrl_llm.types import Batch

FLAGS = flags.FLAGS
flags.DEFINE_enum("remat", "dots", ("none", "dots", "full"), "what the backward pass recomputes")
flags.DEFINE_float("kl_coefficient", 0.0, "of the KL penalty in the loss; 0 for none", lower_bound=0.0)
flags.DEFINE_integer("micro_batches", 1, "parts that the rows are scored in", lower_bound=1)


def random_batch() -> Batch:
    """Rows of random tokens, of which the completion's are actions; one advantage a row."""
    rng = np.random.default_rng(0)
    shape = (FLAGS.rows, FLAGS.prompt + FLAGS.new)
    mask = np.broadcast_to(np.arange(shape[1]) >= FLAGS.prompt, shape).astype(np.float32)
    logp = jnp.full(shape, -np.log(FLAGS.vocabulary), jnp.float32)
    return Batch(
        tokens=jnp.asarray(rng.integers(0, FLAGS.vocabulary, shape), jnp.int32),
        mask=jnp.asarray(mask),
        advantage=jnp.asarray(mask * rng.normal(size=(FLAGS.rows, 1)), jnp.float32),
        behavior_logp=logp,
        reference_logp=logp if FLAGS.kl_coefficient else None,
    )


def main(_):
    """Runs updates, and prints the figures as a JSON object."""
    network = workload.network(remat=FLAGS.remat)
    optimizer = optax.adamw(1e-6)
    objective = methods.get("grpo", kl_coefficient=FLAGS.kl_coefficient).objective
    update = make_update(network, objective, optimizer, micro_batches=FLAGS.micro_batches)
    batch = random_batch()
    state = TrainState.create(network.init(jax.random.key(0)), optimizer)
    begin = time.perf_counter()
    compiled = jax.jit(update, donate_argnums=0).lower(state, batch).compile()
    compilation = time.perf_counter() - begin

    def call(_) -> None:
        nonlocal state
        state, metrics = jax.block_until_ready(compiled(state, batch))
        assert metrics["skipped"] == 0

    call(0)
    measured = summary(*timed(call, FLAGS.repeats))
    report = {
        **measured,
        "tokens_per_s": round(batch.tokens.size / measured["seconds"], 1),
        "compile_s": round(compilation, 2),
        # Linux counts the peak in KiB.
        "peak_process_GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "temporaries_GB": round(compiled.memory_analysis().temp_size_in_bytes / 1e9, 2),
        "device": jax.devices()[0].device_kind,
        "settings": workload.settings("remat", "kl_coefficient", "micro_batches"),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    app.run(main)
