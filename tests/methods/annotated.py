"""Rollouts with everything that environments, judges and earlier passes may say of them, and estimators run on them."""

import functools

import jax
import numpy as np
from oracles import tiny_policy
from oracles.tiny_policy import jit


def annotated_rollouts(params):
    """Ten answers, right and wrong ones in each of three ragged groups, and a second reward of another size."""
    made = tiny_policy.random_rollouts(params)
    random = np.random.default_rng(5)
    rows, width = made.tokens.shape
    extras = {
        "greedy_reward": random.normal(size=rows),
        "anchor_reward": random.random(rows),
        "stratum": random.integers(0, 2, rows),
        "state": random.integers(0, 2, (rows, width)),
        "answer": random.integers(0, 3, rows),
        "embedding": random.normal(size=(rows, 3)),
        "calls": random.integers(0, 4, rows),
        "first_call": random.integers(0, 4, rows),
        "flawed": random.integers(0, 2, rows),
        "format": random.integers(0, 2, rows),
        "role": random.integers(0, 2, rows),
        "easy": random.random(rows),
        "drift": random.random(rows) / 20,
        "feasible": np.arange(rows) % 5 != 3,
        "proximal_entropy": random.exponential(0.5, (rows, width)),
        "proximal_logp": -random.exponential(1.0, (rows, width)),
        "proximal_log_collision": -random.exponential(1.0, (rows, width)),
    }
    kinds = {name: np.int32 if values.dtype.kind == "i" else np.float32 for name, values in extras.items()}
    extras = {name: values.astype(kinds[name]) for name, values in extras.items()}
    right = np.array([1, 0, 1, 0, 0, 1, 0, 1, 1, 0])
    rewards = np.stack([right, 0.1 * random.normal(size=rows)], axis=1).astype(np.float32)
    group = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2], np.int32)
    return made.replace(rewards=rewards, group=group, extras=made.extras | extras)


def estimated(method, rollouts):
    """Advantages and weights of the first step of `method`, as NumPy arrays."""
    if "token_rewards" in method.needs:
        rollouts = rollouts.replace(token_rewards=rollouts.extras["token_rewards"])
    found, _ = _compiled(method.estimator.update)(rollouts, method.estimator.init(), jax.random.key(0))
    return jax.tree.map(np.asarray, found)


_compiled = functools.cache(jit)
