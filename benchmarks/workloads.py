"""Seconds and memory of sampling, packing and updating on three workloads; prints a JSON line for each.

python benchmarks/workloads.py [--cases=short,ragged,long --repeats=5 ...]

* short: 4 prompts of 32 tokens, 8 answers each of 128.
* ragged: 16 prompts of 32 tokens, 8 answers each that end after 41 tokens on average, and after 512 at most.
* long: 4 prompts of 1024 tokens, 8 answers each of 64.

An update is GRPO's without KL, on what was sampled, with AdamW and all settings at their defaults. An iteration is all of it,
with new prompts each time, decoding text and rewarding it. `first_s` has the compilation in it; `others_cpu` is the share of
the machine that other processes used: trust figures where it is below 0.03.
"""

import functools
import json
import resource
import time

import jax
import numpy as np
import optax
import workload
from absl import app, flags
from quiet import summary, timed

from jaxrl_llm import methods
from jaxrl_llm.data.packing import has_weight
from jaxrl_llm.rollouts import make_rollouts
from jaxrl_llm.sampling import generate
from jaxrl_llm.training import TrainState, make_update
from jaxrl_llm.training.layout import lay_out

FLAGS = flags.FLAGS
# Prompts, answers to each, tokens of a prompt, most tokens of an answer, and how many of the vocabulary's tokens end one.
CASES = {"short": (4, 8, 32, 128, 0), "ragged": (16, 8, 32, 512, 100), "long": (4, 8, 1024, 64, 0)}
flags.DEFINE_list("cases", list(CASES), f"of {', '.join(CASES)}")
flags.DEFINE_integer("slots", 0, "rows sampled at a time; 0 for as many as memory has room for", lower_bound=0)
flags.DEFINE_integer("micro_batches", 0, "of the update; 0 for the default", lower_bound=0)


def measure(case: str) -> dict:
    """Figures of a case."""
    prompts, count, length, new, stops = CASES[case]
    network, method = workload.network(), methods.get("grpo", kl_coefficient=0.0, samples=count)
    params, optimizer = network.init(jax.random.key(0)), optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6))
    random = np.random.default_rng(0)
    ids = [random.integers(0, FLAGS.vocabulary, length).tolist() for _ in range(prompts)]
    options = {"max_new_tokens": new, "num_samples": count, "stop_ids": range(stops), "slots": FLAGS.slots or None}
    sample = functools.partial(generate, network, params, ids, **options)
    found, samples = _phase("sample", lambda _: sample())
    found["tokens"] = int(samples.length.sum())
    found["tokens_per_second"] = round(found["tokens"] / found["sample"]["seconds"])
    estimate = jax.jit(method.estimator.update)

    def laid_out(ids, samples):
        rewards = random.normal(size=(prompts * count, 1))
        rollouts = make_rollouts(ids, samples, rewards, range(prompts), width=length + new)
        rollouts = jax.device_get(estimate(rollouts, method.estimator.init(), jax.random.key(0))[0])
        return lay_out(network, rollouts, 0, FLAGS.micro_batches, keep=has_weight(rollouts))

    packing, batch = _phase("pack", lambda _: laid_out(ids, samples))
    state = TrainState.create(params, optimizer)
    update = jax.jit(make_update(network, method.objective, optimizer), donate_argnums=0)

    def call(_):
        nonlocal state
        state, metrics = update(state, batch)
        return jax.block_until_ready(metrics)

    updating, _ = _phase("update", call)

    def iterate(number):
        nonlocal state
        ids = random.integers(0, FLAGS.vocabulary, (prompts, length)).tolist()
        samples = generate(network, state.params, ids, step=number, **options)
        for tokens, end in zip(samples.tokens, samples.length, strict=True):
            " ".join(map(str, tokens[:end].tolist()))
        state, metrics = update(state, laid_out(ids, samples))
        return jax.device_get(metrics)

    iterating, _ = _phase("iteration", iterate)
    temporary = update.lower(state, batch).compile().memory_analysis().temp_size_in_bytes
    read = batch.forest.tokens.shape
    shapes = {"forest": read, "actions": batch.tokens.shape, "filled": batch.parts.tolist()}
    shapes["read_of_computed"] = round(float((batch.forest.reach > 0).sum() / (batch.parts > 0).mean() / np.prod(read)), 3)
    memory = {"update_temporary_gb": round(temporary / 1e9, 3), "peak_process_gb": round(_peak(), 2)}
    return {"case": case} | found | packing | updating | iterating | shapes | memory


def _phase(name: str, call) -> tuple[dict, object]:
    """Figures of repeated calls, and what one gave; the first, which compiles, stands apart."""
    begin = time.perf_counter()
    result = call(0)
    first = time.perf_counter() - begin
    return {name: {"first_s": round(first, 2)} | summary(*timed(call, FLAGS.repeats))}, result


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(_):
    """Measures the cases that the flags name."""
    for case in FLAGS.cases:
        print(json.dumps(measure(case) | {"settings": workload.settings("slots", "micro_batches")}), flush=True)


if __name__ == "__main__":
    app.run(main)
