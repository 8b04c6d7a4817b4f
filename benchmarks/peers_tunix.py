"""Tunix's figures on a workload, for `peers.py`: run in an environment with google-tunix, with the workload as a JSON object.

python benchmarks/peers_tunix.py '{"prompts": 4, "samples": 8, "length": 32, "new": 128, "stops": 0, "repeats": 3, ...}'

The network is the one of `workload.py` as Tunix has it, Qwen3. Sampling is a call of `Sampler`, updating one of
`RLCluster.update_actor`, and an iteration the time from one batch of rewards to the next in `GRPOLearner.train`.
`micro_batch` are the prompts that an update takes at a time, 0 for all of them.
"""

import importlib.metadata
import itertools
import json
import os
import resource
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from quiet import summary, timed
from tunix.generate import sampler
from tunix.models.qwen3 import model as qwen3
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout


class Numbers:
    """A tokenizer of texts of numbers, each of which is a token."""

    def encode(self, text, **_):
        return list(map(int, text.split()))

    def decode(self, ids, **_):
        return " ".join(str(int(number)) for number in ids)

    def bos_id(self):
        return 0

    def eos_id(self):
        return 1

    def pad_id(self):
        return 0


def network(size: dict) -> nnx.Module:
    """Qwen3 of the sizes of the workload, with random parameters."""
    config = qwen3.ModelConfig(
        num_layers=size["layers"],
        vocab_size=size["vocabulary"],
        embed_dim=size["width"],
        hidden_dim=4 * size["width"],
        num_heads=size["width"] // 32,
        head_dim=32,
        num_kv_heads=max(1, size["width"] // 64),
        rope_theta=1_000_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
    )
    return qwen3.Qwen3(config, rngs=nnx.Rngs(params=0))


def stop_ids(size: dict) -> list[int]:
    """Tokens that end an answer: as many as the workload has, or one that no network says."""
    return list(range(10, 10 + size["stops"])) or [size["vocabulary"] + 1]


def prompts(size: dict, seed: int) -> list[str]:
    """Different prompts."""
    drawn = np.random.default_rng(seed).integers(200, size["vocabulary"], (size["prompts"], size["length"]))
    return [" ".join(map(str, row)) for row in drawn]


def sampling(size: dict) -> dict:
    """Figures of sampling alone."""
    own = network(size)
    shape = {"num_layers": size["layers"], "num_kv_heads": max(1, size["width"] // 64), "head_dim": 32}
    made = sampler.Sampler(own, Numbers(), sampler.CacheConfig(cache_size=size["length"] + size["new"], **shape))
    limits = {"max_generation_steps": size["new"], "max_prompt_length": size["length"], "eos_tokens": stop_ids(size)}

    def sample(seed):
        texts = [text for text in prompts(size, seed) for _ in range(size["samples"])]
        return np.asarray(made(texts, temperature=1.0, top_p=1.0, seed=seed, **limits).tokens[0])

    sample(0)
    return summary(*timed(sample, size["repeats"]))


def learner(size: dict, steps: int, reward) -> grpo_learner.GRPOLearner:
    """GRPO without a reference policy."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = dict.fromkeys((rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT), mesh)
    parts = {"mini_batch_size": size["prompts"], "train_micro_batch_size": size["micro_batch"]} if size["micro_batch"] else {}
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.adamw(1e-6), eval_every_n_steps=10**9, max_steps=steps, **parts
    )
    rollout = base_rollout.RolloutConfig(
        max_tokens_to_generate=size["new"],
        max_prompt_length=size["length"],
        kv_cache_size=size["length"] + size["new"],
        temperature=1.0,
        top_p=1.0,
        eos_tokens=stop_ids(size),
    )
    cluster = rl_cluster.RLCluster(
        actor=network(size),
        reference=None,
        tokenizer=Numbers(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=roles, rollout_engine="vanilla", offload_to_cpu=False, training_config=training, rollout_config=rollout
        ),
    )
    settings = grpo_learner.GRPOConfig(num_generations=size["samples"], num_iterations=1, beta=0.0, epsilon=0.2)
    return grpo_learner.GRPOLearner(rl_cluster=cluster, algo_config=settings, reward_fns=reward)


def updating(size: dict) -> dict:
    """Figures of an update alone, of answers that all have the full length."""
    owner = learner(size | {"micro_batch": 0}, None, lambda prompts, **_: [0.0] * len(prompts)).rl_cluster
    random, rows = np.random.default_rng(0), size["prompts"] * size["samples"]
    read, said = (rows, size["length"]), (rows, size["new"])
    example = grpo_learner.TrainExample(
        prompt_ids=jnp.asarray(random.integers(200, size["vocabulary"], read), jnp.int32),
        prompt_mask=jnp.ones(read, bool),
        completion_ids=jnp.asarray(random.integers(200, size["vocabulary"], said), jnp.int32),
        completion_mask=jnp.ones(said, bool),
        advantages=jnp.asarray(random.normal(size=rows), jnp.float32),
        ref_per_token_logps=None,
        old_per_token_logps=jnp.full(said, -np.log(size["vocabulary"]), jnp.float32),
    )

    def update(_):
        owner.update_actor([example], None)
        jax.block_until_ready(nnx.state(owner.actor_trainer.model, nnx.Param))

    update(0)
    return summary(*timed(update, size["repeats"]))


def iterations(size: dict) -> dict:
    """Figures of whole steps, but the first two."""
    moments, warm = [], 2
    steps = warm + size["repeats"] + 1

    def reward(prompts, **_):
        moments.append(time.perf_counter())
        return np.random.default_rng(len(moments)).normal(size=len(prompts)).tolist()

    data = [{"prompts": np.array(prompts(size, step))} for step in range(steps)]
    _, others = timed(lambda _: learner(size, steps, reward).train(data), 1)
    # Micro-batches are rewarded one by one.
    begins = moments[:: size["prompts"] // (size["micro_batch"] or size["prompts"])]
    return summary([end - start for start, end in itertools.pairwise(begins)][warm - 1 :], others)


def main() -> None:
    """Prints the figures as a JSON object."""
    size = json.loads(sys.argv[1])
    parts = {"sample": sampling, "update": updating, "iteration": iterations}
    found = {name: parts[name](size) for name in size["parts"]}
    memory = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    version = importlib.metadata.version("google-tunix")
    print(json.dumps({"library": f"tunix {version}", **found, "peak_process_gb": memory}))


if __name__ == "__main__":
    main()
